/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The tables that all programs of one agent share, by their pins under
 * /sys/fs/bpf/m2m/<agent>/. An object that needs only some of them takes all: the loader gives
 * each map that is pinned already to every object that names it.
 *
 * Sizes are those of the smallest agent; the loader sets max_entries of `flows` before the first
 * load.
 */
#ifndef M2M_BPF_MAPS_H
#define M2M_BPF_MAPS_H

#include <stddef.h>

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "core/core.h"

/*
 * IPv4 flows. Preallocated: an insertion never waits for memory, and the whole table is paid for at
 * start.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct m2m_key4);
	__type(value, struct m2m_entry);
} flows SEC(".maps");

/* Of entries with M2M_SPLICED; of those that are being redirected, `redirects` has it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC); /* few sessions have lost a proxy */
	__uint(max_entries, 65536);
	__type(key, struct m2m_key);
	__type(value, struct m2m_splice);
} splices SEC(".maps");

static __always_inline struct m2m_entry *m2m_find_entry(const struct m2m_key *key)
{
	struct m2m_key4 narrow;

	m2m_key_narrow(&narrow, key);
	return bpf_map_lookup_elem(&flows, &narrow);
}

/* Two sets of M2M_MAX_RULES rows each; config.active_rules says which one counts. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * M2M_MAX_RULES);
	__type(key, u32);
	__type(value, struct m2m_rule);
} rules SEC(".maps");

/* Mapped into the agent's memory, so that a heartbeat is one store. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, u32);
	__type(value, struct m2m_config);
} config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, M2M_REASONS);
	__type(key, u32);
	__type(value, u64);
} reasons SEC(".maps");

/*
 * Set and clear marks of entry->role and entry->flags while packets, the sweeper and the agent do the
 * same. They are the first two octets of an aligned word of four; the others are not touched.
 */
#define M2M_ROLE_WORD(entry) ((u32 *)&(entry)->role)
#define M2M_ROLE_BITS(marks) ((u32)(marks) << (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? 0 : 24))
#define M2M_FLAG_BITS(marks) ((u32)(marks) << (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? 8 : 16))

_Static_assert(offsetof(struct m2m_entry, role) % 4 == 0, "M2M_ROLE_WORD");
_Static_assert(offsetof(struct m2m_entry, flags) == offsetof(struct m2m_entry, role) + 1,
	       "M2M_FLAG_BITS");

static __always_inline void m2m_mark(struct m2m_entry *entry, u8 marks)
{
	__sync_fetch_and_or(M2M_ROLE_WORD(entry), M2M_ROLE_BITS(marks));
}

static __always_inline void m2m_unmark(struct m2m_entry *entry, u8 marks)
{
	__sync_fetch_and_and(M2M_ROLE_WORD(entry), ~M2M_ROLE_BITS(marks));
}

/* Count packets under a reason. Atomic, because PREEMPT_RT lets programs of one CPU interleave. */
static __always_inline void m2m_count(enum m2m_reason reason, u32 packets)
{
	u32 index = reason;
	u64 *count = bpf_map_lookup_elem(&reasons, &index);

	if (count)
		__sync_fetch_and_add(count, packets);
}

static __always_inline const struct m2m_config *m2m_get_config(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&config, &zero);
}

#endif /* M2M_BPF_MAPS_H */
