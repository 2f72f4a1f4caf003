/* SPDX-License-Identifier: GPL-2.0 */
/*
 * When is a session over? Packets only leave marks in their own direction's entry; one sweeper
 * looks at both directions together, so that no half of a pair is ever taken for the whole.
 */
#ifndef M2M_CORE_LIFETIME_H
#define M2M_CORE_LIFETIME_H

#include "config.h"
#include "entry.h"

enum m2m_end {
	M2M_END_NOT = 0,
	M2M_END_FIN = 1, /* both directions closed, lingering over */
	M2M_END_RST = 2,
	M2M_END_IDLE = 3,
};

/*
 * The key of the entry for the opposite direction. What an entry sends comes back from the
 * network; what it delivers comes back from the host's own stack.
 */
m2m_inline void m2m_partner_key(struct m2m_key *partner, const struct m2m_key *key,
				const struct m2m_entry *entry)
{
	u8 hook = M2M_ROLE_ACTION(entry->role) == M2M_SEND ? M2M_HOOK_IN : M2M_HOOK_OUT;

	m2m_key_v4(partner, hook, key->tuple.proto, entry->dst, entry->dport, entry->src,
		   entry->sport);
}

/* The host's own side of a session towards the server: the entry (OUT, supersession). */
m2m_inline void m2m_super_key(struct m2m_key *key, u8 proto, const struct m2m_entry *entry)
{
	m2m_key_v4(key, M2M_HOOK_OUT, proto, entry->super_src, entry->super_sport,
		   entry->super_dst, entry->super_dport);
}

m2m_inline u32 m2m_idle_limit(const struct m2m_config *config, u8 proto)
{
	return proto == M2M_PROTO_TCP ? config->tcp_idle : config->udp_idle;
}

/*
 * The time in ticks, from the kernel's count of timer interrupts: reading that is one load, while
 * the clocks cost a call each. The agent sets config->clock again and again, since
 * CLOCK_MONOTONIC is slewed and jiffies are not.
 */
m2m_inline u32 m2m_ticks_at(const struct m2m_config *config, u64 jiffies)
{
	return (u32)((config->clock + jiffies * config->jiffy) >> M2M_TICK_SHIFT);
}

/* The two directions of one session at one place, seen together; partner may be absent. */
m2m_inline enum m2m_end m2m_pair_end(const struct m2m_config *config, u8 proto,
				     const struct m2m_entry *entry,
				     const struct m2m_entry *partner, u32 now)
{
	u32 quiet = m2m_ticks_since(entry->last_seen, now);
	u8 any = entry->flags, both = partner ? entry->flags & partner->flags : 0;

	if (partner) {
		u32 other = m2m_ticks_since(partner->last_seen, now);

		if (other < quiet)
			quiet = other;
		any |= partner->flags;
	}
	if (quiet > config->linger) {
		if (any & M2M_SEEN_RST)
			return M2M_END_RST;
		if (both & M2M_SEEN_FIN)
			return M2M_END_FIN;
	}
	return quiet > m2m_idle_limit(config, proto) ? M2M_END_IDLE : M2M_END_NOT;
}

#endif /* M2M_CORE_LIFETIME_H */
