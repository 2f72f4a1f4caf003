/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the agent tells the datapath besides entries and rules. One instance, written field by
 * field by the agent (each field is one aligned store) and read by every packet.
 */
#ifndef M2M_CORE_CONFIG_H
#define M2M_CORE_CONFIG_H

#include "types.h"

/* Any change of a layout in kmod/core that user space or a pinned map sees raises this. */
#define M2M_LAYOUT_VERSION 8

/* Rows in one policy set; the rule table holds two sets, of which one is active. */
#define M2M_MAX_RULES 4096

struct m2m_config {
	u64 heartbeat;	     /* ns, CLOCK_MONOTONIC: the agent's last sign of life; 0: none */
	u64 heartbeat_limit; /* ns after which the agent counts as away */
	u64 clock;	     /* ns, CLOCK_MONOTONIC when jiffies were zero; see m2m_ticks_at() */
	u32 jiffy;	     /* ns */
	u32 active_rules;    /* 0 or 1: rows from active_rules * M2M_MAX_RULES on */
	u32 rule_count[2];   /* rows of each set */
	u32 generation[2];   /* m2m.policy.rules.PolicySet.generation of each set */
	u32 linger;	     /* ticks a finished TCP session is kept */
	u32 tcp_idle;	     /* ticks */
	u32 udp_idle;	     /* ticks */
	u16 port_lo;	     /* subsession ports, both ends' alike; inclusive, host order */
	u16 port_hi;
	u16 in_port_lo;	     /* no entry for incoming packets has a port outside of these; */
	u16 in_port_hi;	     /* inclusive, host order */
	u32 version;	     /* M2M_LAYOUT_VERSION; 0: not yet set up */
};

_Static_assert(sizeof(struct m2m_config) == 72, "packed in Python");

m2m_inline int m2m_agent_away(const struct m2m_config *config, u64 now_ns)
{
	/* a coarse clock may still be behind the heartbeat */
	return now_ns > config->heartbeat && now_ns - config->heartbeat > config->heartbeat_limit;
}

m2m_inline int m2m_is_subsession_port(const struct m2m_config *config, __be16 port)
{
	u16 number = m2m_swap16(port);

	return number >= config->port_lo && number <= config->port_hi;
}

/*
 * Whether an incoming packet with this port can have an entry. Almost all that belongs to no
 * session is told apart by this, before a key is made and looked up.
 */
m2m_inline int m2m_may_come_in(const struct m2m_config *config, __be16 port)
{
	u16 number = m2m_swap16(port);

	return number >= config->in_port_lo && number <= config->in_port_hi;
}

#endif /* M2M_CORE_CONFIG_H */
