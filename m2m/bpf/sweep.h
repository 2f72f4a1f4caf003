/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The sweeper: one pass over the table, started by the agent about once a second. It tells the
 * agent which sessions are over (their entries stay until the agent has told its neighbours) and
 * takes out by itself what no agent needs to know about.
 *
 * A syscall program on purpose: it can be preempted, whereas a tc program run from user space
 * keeps its CPU from all networking for the 0.2 s that two million entries take.
 */
#ifndef M2M_BPF_SWEEP_H
#define M2M_BPF_SWEEP_H

#include "maps.h"

/* What the agent is told, beside enum m2m_end: of sessions that change. */
enum m2m_event {
	M2M_EVENT_OVERFLOW = 16, /* too many packets wait, or for too long */
	M2M_EVENT_ACKED = 17,
	M2M_EVENT_STRAY = 18, /* a packet has come out before its turn */
	M2M_EVENT_COUNTED = 19,
};

struct m2m_event_record {
	u64 session;
	u32 kind;   /* enum m2m_end or m2m_event */
	u32 toward; /* of an m2m_event: enum m2m_toward, and above it which of the agent's wishes */
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} events SEC(".maps");

/* Context of the program, read and written by the agent. */
struct m2m_sweep {
	u32 again;    /* report what was reported before: the agent is a new one */
	u32 entries;  /* seen */
	u32 reported;
	u32 deleted;
	u32 postponed; /* over, but the ring buffer is full: next time */
};

struct m2m_sweeping {
	struct m2m_config config;
	struct m2m_sweep sum;
	u32 now;
};

static __always_inline const struct m2m_entry *m2m_find(const struct m2m_key *key, u64 session)
{
	const struct m2m_entry *entry = m2m_find_entry(key);

	return entry && entry->session == session ? entry : NULL;
}

/*
 * Whether packets of a session pass an inline middlebox's other side. Idleness, unlike an end that
 * was seen, must be true of both: a firewall may swallow all that reaches it from one of them.
 */
static __noinline int m2m_other_side_busy(const struct m2m_key *key,
					  const struct m2m_entry *entry, u32 now, u32 limit)
{
	struct m2m_key other, partner;
	const struct m2m_entry *found;

	if (!key || !entry)
		return 0;
	/* The caller looks from (IN, left): the other side is (OUT, supersession). */
	m2m_super_key(&other, key->tuple.proto, entry);
	found = m2m_find(&other, entry->session);
	if (!found)
		return 0;
	if (m2m_ticks_since(found->last_seen, now) <= limit)
		return 1;
	m2m_partner_key(&partner, &other, found);
	found = m2m_find(&partner, entry->session);
	return found && m2m_ticks_since(found->last_seen, now) <= limit;
}

/*
 * One entry of each session speaks for it: the first that a packet towards the server meets.
 * Others are looked at only when they have been silent for long: should their speaker be missing,
 * they are left over from an installation that was cut short, and go.
 */
static __always_inline int m2m_speaks(const struct m2m_key *key, const struct m2m_entry *entry)
{
	u8 hook = M2M_ROLE_POSITION(entry->role) == M2M_CLIENT ? M2M_HOOK_OUT : M2M_HOOK_IN;

	return M2M_ROLE_TOWARD(entry->role) == M2M_RIGHT && key->tuple.hook == hook;
}

static __noinline int m2m_has_speaker(const struct m2m_key *key, const struct m2m_entry *entry)
{
	struct m2m_key partner, other;
	const struct m2m_entry *found;

	if (!key || !entry)
		return 0;
	m2m_partner_key(&partner, key, entry);
	found = m2m_find(&partner, entry->session);
	if (found && m2m_speaks(&partner, found))
		return 1;
	if (M2M_ROLE_POSITION(entry->role) != M2M_INLINE)
		return 0;
	/* From the right side: (OUT, ~supersession) is the partner of (IN, left). */
	m2m_super_key(&other, key->tuple.proto, entry);
	partner.tuple.src = other.tuple.dst;
	partner.tuple.dst = other.tuple.src;
	partner.tuple.sport = other.tuple.dport;
	partner.tuple.dport = other.tuple.sport;
	partner.tuple.proto = key->tuple.proto;
	partner.tuple.hook = M2M_HOOK_OUT;
	found = m2m_find(&partner, entry->session);
	if (!found)
		return 0;
	m2m_partner_key(&other, &partner, found);
	found = m2m_find(&other, entry->session);
	return found && m2m_speaks(&other, found);
}

static __always_inline int m2m_unsteered_over(const struct m2m_config *config,
					      const struct m2m_key *key,
					      const struct m2m_entry *entry, u32 now)
{
	if (M2M_ROLE_ACTION(entry->role) == M2M_DROP)
		return m2m_ticks_since(entry->last_seen, now) > M2M_REFUSAL_TICKS;
	/* Its other direction is not in the table; one FIN says enough. */
	if (entry->flags & (M2M_SEEN_FIN | M2M_SEEN_RST))
		return m2m_ticks_since(entry->last_seen, now) > config->linger;
	return m2m_ticks_since(entry->last_seen, now) >
	       m2m_idle_limit(config, key->tuple.proto);
}

struct bpf_map;

static long m2m_sweep_entry(struct bpf_map *map, const void *element, void *value,
			    struct m2m_sweeping *sweep)
{
	const struct m2m_config *config = &sweep->config;
	struct m2m_entry *entry = value;
	const struct m2m_entry *partner;
	struct m2m_key key, partner_key;
	struct m2m_key4 narrow;
	struct m2m_event_record *event;
	enum m2m_end end;
	u32 limit;

	(void)map;
	if (!element || !entry)
		return 1;
	/* A copy, since the element may be another flow's by the time this one is judged. */
	narrow = *(const struct m2m_key4 *)element;
	m2m_key_widen(&key, &narrow);
	sweep->sum.entries++;
	if (!entry->session) {
		if (m2m_unsteered_over(config, &key, entry, sweep->now)) {
			bpf_map_delete_elem(&flows, &narrow);
			sweep->sum.deleted++;
		}
		return 0;
	}
	limit = m2m_idle_limit(config, key.tuple.proto);
	if (!m2m_speaks(&key, entry)) {
		if (m2m_ticks_since(entry->last_seen, sweep->now) > limit &&
		    !m2m_has_speaker(&key, entry)) {
			bpf_map_delete_elem(&flows, &narrow);
			sweep->sum.deleted++;
		}
		return 0;
	}
	if (entry->role & M2M_ROLE_REPORTED && !sweep->sum.again)
		return 0;
	m2m_partner_key(&partner_key, &key, entry);
	partner = m2m_find(&partner_key, entry->session);
	end = m2m_pair_end(config, key.tuple.proto, entry, partner, sweep->now);
	if (end == M2M_END_IDLE && M2M_ROLE_POSITION(entry->role) == M2M_INLINE &&
	    m2m_other_side_busy(&key, entry, sweep->now, limit))
		return 0;
	if (end == M2M_END_NOT)
		return 0;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		sweep->sum.postponed++;
		return 0;
	}
	event->session = entry->session;
	event->kind = end;
	event->toward = 0;
	m2m_mark(entry, M2M_ROLE_REPORTED);
	sweep->sum.reported++;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

SEC("syscall")
int m2m_sweep(struct m2m_sweep *request)
{
	const struct m2m_config *current = m2m_get_config();
	struct m2m_sweeping sweep = {};

	if (!current)
		return 1;
	sweep.config = *current;
	sweep.sum.again = request->again;
	/* The coarse clock of entries is not offered to this type; it is never ahead of this one. */
	sweep.now = bpf_ktime_get_ns() >> M2M_TICK_SHIFT;
	bpf_for_each_map_elem(&flows, m2m_sweep_entry, &sweep, 0);
	request->entries = sweep.sum.entries;
	request->reported = sweep.sum.reported;
	request->deleted = sweep.sum.deleted;
	request->postponed = sweep.sum.postponed;
	return 0;
}

#endif /* M2M_BPF_SWEEP_H */
