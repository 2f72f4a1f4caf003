/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What a splice asks of rows (docs/splicing.md), at one moment: that those of the two sessions that met
 * at a proxy are one session's, and that a session has another name.
 */
#ifndef M2M_BPF_AGENT_SPLICE_H
#define M2M_BPF_AGENT_SPLICE_H

#include "change.h"

/* Context of the program; packed in Python (m2m.datapath.change_tables). */
struct m2m_splice_request {
	/* By enum m2m_toward: what comes to the host, and what its sockets send. */
	struct m2m_key comes[2];
	struct m2m_key leaves[2];
	struct m2m_entry become[2];
	struct m2m_entry silent[2];
	struct m2m_splice splice;
	u32 done;
};

_Static_assert(sizeof(struct m2m_splice_request) == 536, "packed in Python");

/* Whether all that comes to a row waits, and nothing else is done with it. */
static __always_inline int m2m_all_waits(const struct m2m_key *key)
{
	const struct m2m_change *change = bpf_map_lookup_elem(&changes, key);

	return change && (change->state & (M2M_CHANGE_HOLD | M2M_CHANGE_SUBSTREAM |
					   M2M_CHANGE_REDIRECT)) == M2M_CHANGE_HOLD;
}

/* What a row becomes, with what it has seen. */
static __noinline int m2m_become(const struct m2m_key *key, const struct m2m_entry *as,
				 const struct m2m_splice *splice)
{
	const struct m2m_entry *was;
	struct m2m_entry *is;
	struct m2m_key4 narrow;
	struct m2m_entry next;

	if (!key || !as || !splice)
		return 0;
	was = m2m_find_entry(key);
	if (!was)
		return 0;
	next = *as;
	next.max_seq = was->max_seq;
	next.max_ack = was->max_ack;
	m2m_left_numbers(splice, next.role, &next.max_seq, &next.max_ack);
	next.role |= M2M_ROLE_CHANGING;
	next.flags = (was->flags & M2M_SEEN) | M2M_SPLICED;
	next.packets = was->packets;
	next.bytes = was->bytes;
	m2m_key_narrow(&narrow, key);
	if (bpf_map_update_elem(&flows, &narrow, &next, BPF_EXIST))
		return 0;
	is = m2m_find_entry(key);
	if (is) /* a program may have counted where it was just now */
		__sync_fetch_and_add(&is->packets, was->packets - next.packets);
	return 1;
}

static __noinline int m2m_silence(const struct m2m_key *key, const struct m2m_entry *silent)
{
	struct m2m_key4 narrow;

	if (!key || !silent)
		return 0;
	m2m_key_narrow(&narrow, key);
	bpf_map_update_elem(&flows, &narrow, silent, BPF_ANY);
	return 0;
}

SEC("syscall")
int m2m_splice_rows(struct m2m_splice_request *request)
{
	struct m2m_key comes[2] = {request->comes[0], request->comes[1]}, leaves;
	struct m2m_splice splice = request->splice;
	struct m2m_entry entry;

	request->done = 0;
	if (!m2m_all_waits(&comes[0]) || !m2m_all_waits(&comes[1]) ||
	    bpf_map_update_elem(&splices, &comes[0], &splice, BPF_ANY) ||
	    bpf_map_update_elem(&splices, &comes[1], &splice, BPF_ANY))
		return 0;
	entry = request->become[0];
	if (!m2m_become(&comes[0], &entry, &splice))
		return 0;
	entry = request->become[1];
	m2m_become(&comes[1], &entry, &splice);
	leaves = request->leaves[0];
	entry = request->silent[0];
	m2m_silence(&leaves, &entry);
	leaves = request->leaves[1];
	entry = request->silent[1];
	m2m_silence(&leaves, &entry);
	request->done = 1;
	return 0;
}

/* Context of the program; packed in Python (m2m.datapath.change_tables). */
struct m2m_naming {
	struct m2m_key key;
	u64 from;
	u64 to;
};

/* A session has another name: its rows live on. */
SEC("syscall")
int m2m_rename(struct m2m_naming *request)
{
	struct m2m_key key = request->key;
	struct m2m_entry *entry = m2m_find_entry(&key);

	if (entry && entry->session == request->from)
		*(volatile u64 *)&entry->session = request->to;
	return 0;
}

#endif /* M2M_BPF_AGENT_SPLICE_H */
