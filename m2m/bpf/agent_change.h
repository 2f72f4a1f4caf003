/* SPDX-License-Identifier: GPL-2.0 */
/* What the agent does to a changing entry and only a program can do while packets pass. */
#ifndef M2M_BPF_AGENT_CHANGE_H
#define M2M_BPF_AGENT_CHANGE_H

#include "change.h"

/* request->steps, done in this order */
#define M2M_STEP_QUEUE 0x01	 /* packets that are to wait do it at another address */
#define M2M_STEP_LATE 0x80	 /* those that come out before their turn do */
#define M2M_STEP_CHECKPOINT 0x02 /* all that has passed so far is of the old substream */
#define M2M_STEP_MARK 0x04	 /* from now on packets look at the record */
#define M2M_STEP_SETTLE 0x08	 /* all that have come out have left, if they are let go from here */
#define M2M_STEP_SURELY 0x100	 /* even if they are not: that was long ago */
#define M2M_STEP_LOST 0x10	 /* those that have not come out never will */
#define M2M_STEP_FOLD 0x20	 /* write the redirect into the entry; all packets read the redirect */
#define M2M_STEP_UNMARK 0x40	 /* from now on packets do not look at the record */

/* Context of the program; packed in Python (m2m.datapath.change_tables). */
struct m2m_change_request {
	struct m2m_key key;
	u32 steps;
	u32 set; /* bits of the record's state */
	u32 clear;
	u32 ack;   /* with M2M_CHANGE_WATCH */
	u32 until; /* with M2M_CHANGE_HOLD */
	u32 serial; /* with either, and M2M_CHANGE_COUNT: 31 bits */
	__be32 queue; /* in: new addresses; out: the ones before */
	__be32 late;
	u64 count; /* with M2M_CHANGE_COUNT */
	/* out: */
	u32 known; /* 0: there is no entry or no record, and nothing was done */
	u32 state;
	u32 checkpoint;
	u32 flags; /* of the entry */
	u32 max_ack;
	u32 zero;
	u64 packets;	/* of the entry */
	u64 redirected; /* of the redirect */
	u64 queued;
	u64 released;
	u64 settled;
};

_Static_assert(sizeof(struct m2m_change_request) == 144, "packed in Python");

static __always_inline void m2m_fold(const struct m2m_key *key, struct m2m_entry *entry,
				     const struct m2m_redirect *to)
{
	if (to->spliced)
		bpf_map_update_elem(&splices, key, &to->splice, BPF_ANY);
	entry->ifindex = to->ifindex;
	entry->mss = to->mss;
	entry->mtu = to->mtu;
	entry->addr_diff = to->addr_diff;
	entry->chain = to->chain;
	entry->sport = to->sport;
	entry->dport = to->dport;
	entry->generation = to->generation;
	entry->src = to->src;
	entry->dst = to->dst;
	entry->next_hop = to->next_hop;
	if (to->spliced)
		__sync_fetch_and_or(M2M_ROLE_WORD(entry), M2M_FLAG_BITS(M2M_SPLICED));
	else
		__sync_fetch_and_and(M2M_ROLE_WORD(entry), ~M2M_FLAG_BITS(M2M_SPLICED));
}

SEC("syscall")
int m2m_change(struct m2m_change_request *request)
{
	struct m2m_key key = request->key;
	struct m2m_entry *entry = m2m_find_entry(&key);
	struct m2m_change *change = bpf_map_lookup_elem(&changes, &key);
	const struct m2m_redirect *to = bpf_map_lookup_elem(&redirects, &key);
	struct m2m_waiting *all = m2m_get_waiting();
	u32 steps = request->steps;
	__be32 before;

	request->known = 0;
	if (!change || !all || (!entry && steps & (M2M_STEP_MARK | M2M_STEP_CHECKPOINT)))
		return 0;
	if (steps & M2M_STEP_QUEUE) {
		before = change->queue;
		change->queue = request->queue;
		request->queue = before;
	}
	if (steps & M2M_STEP_LATE) {
		before = change->late;
		change->late = request->late;
		request->late = before;
	}
	if (request->set & M2M_CHANGE_HOLD) {
		change->until = request->until;
		change->hold_serial = request->serial;
	}
	if (request->set & M2M_CHANGE_WATCH) {
		change->ack = request->ack;
		change->watch_serial = request->serial;
	}
	if (request->set & M2M_CHANGE_COUNT) {
		change->count = request->count;
		change->count_serial = request->serial;
	}
	if (entry && steps & M2M_STEP_CHECKPOINT)
		change->checkpoint = entry->max_seq;
	if (request->set)
		__sync_fetch_and_or(&change->state, request->set);
	if (request->clear)
		__sync_fetch_and_and(&change->state, ~request->clear);
	if (entry && steps & M2M_STEP_MARK)
		m2m_mark(entry, M2M_ROLE_CHANGING);
	if (steps & M2M_STEP_LOST) {
		u64 lost = change->queued - change->released;

		change->released += lost;
		__sync_fetch_and_add(&all->released, lost);
	}
	if (steps & M2M_STEP_SETTLE &&
	    (steps & M2M_STEP_SURELY || change->drainer == bpf_get_smp_processor_id() + 1)) {
		change->settled = change->released;
		change->drainer = 0;
	} else if (steps & M2M_STEP_SETTLE && change->settled == change->queued) {
		change->drainer = 0; /* packets must not wait for it for nothing */
	}
	if (entry && to && steps & M2M_STEP_FOLD && change->state & M2M_CHANGE_REDIRECT)
		m2m_fold(&key, entry, to);
	if (entry && steps & M2M_STEP_UNMARK)
		m2m_unmark(entry, M2M_ROLE_CHANGING);
	request->known = 1;
	request->state = change->state;
	request->checkpoint = change->checkpoint;
	request->queued = change->queued;
	request->released = change->released;
	request->settled = change->settled;
	/*
	 * A packet that goes the new way is counted by the entry and then by the redirect. Asked in
	 * the opposite order, the difference is never less than what went the old way.
	 */
	request->redirected = to ? to->packets : 0;
	if (entry) {
		request->flags = entry->flags;
		request->max_ack = entry->max_ack;
		request->packets = *(const volatile u64 *)&entry->packets;
	}
	return 0;
}

/* Context of the program; packed in Python (m2m.datapath.change_tables). */
struct m2m_inheritance {
	struct m2m_key from;
	struct m2m_key to;
};

/* Raise a number that packets raise meanwhile, if it is less or none is there. */
static __always_inline void m2m_raise(u32 *number, u32 at_least, int is_there)
{
	u32 seen = *number, found;
	int tries;

	for (tries = 0; tries < 4; tries++) {
		if (is_there && !m2m_seq_after(at_least, seen))
			return;
		found = __sync_val_compare_and_swap(number, seen, at_least);
		if (found == seen)
			return;
		seen = found;
	}
}

/*
 * A leg takes another's place: what has passed on the old one counts as seen on the new one.
 */
SEC("syscall")
int m2m_inherit(struct m2m_inheritance *request)
{
	struct m2m_key from_key = request->from, to_key = request->to;
	const struct m2m_entry *from = m2m_find_entry(&from_key);
	struct m2m_entry *to = m2m_find_entry(&to_key);

	if (!from || !to || from->session != to->session)
		return 0;
	if (from->flags & M2M_SEEN_SEQ)
		m2m_raise(&to->max_seq, from->max_seq, to->flags & M2M_SEEN_SEQ);
	if (from->flags & M2M_SEEN_ACK)
		m2m_raise(&to->max_ack, from->max_ack, to->flags & M2M_SEEN_ACK);
	__sync_fetch_and_or(M2M_ROLE_WORD(to),
			    M2M_FLAG_BITS(from->flags & (M2M_SEEN_SEQ | M2M_SEEN_ACK)));
	return 0;
}

#endif /* M2M_BPF_AGENT_CHANGE_H */
