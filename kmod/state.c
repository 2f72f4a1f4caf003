// SPDX-License-Identifier: GPL-2.0
/* One namespace's tables: made by the first agent, taken over by the next, taken out at the end. */
#include <linux/slab.h>
#include <net/netfilter/ipv4/nf_defrag_ipv4.h>

#include "module.h"

#define M2M_ROWS_PER_SESSION 2 /* a session takes four at an inline middlebox, which holds half */

/**
 * m2m_state_new - make a namespace's tables, without hooks yet
 * @net: the namespace
 * @sessions: there is room for so many
 *
 * %NULL when there is no memory.
 */
struct m2m_state *m2m_state_new(struct net *net, u32 sessions)
{
	struct m2m_state *state = kzalloc(sizeof(*state), GFP_KERNEL_ACCOUNT);

	if (!state)
		return NULL;
	state->net = net;
	m2m_state_set_clock(state);
	INIT_LIST_HEAD(&state->held);
	INIT_DELAYED_WORK(&state->hold_work, m2m_hold_work);
	INIT_DELAYED_WORK(&state->sweep_work, m2m_sweep_work);
	state->fragments = m2m_fragments_new();
	state->reasons = alloc_percpu_gfp(struct m2m_reasons, GFP_KERNEL_ACCOUNT);
	if (!state->fragments || !state->reasons ||
	    m2m_table_init(&state->table, sessions * M2M_ROWS_PER_SESSION) ||
	    m2m_notes_init(state, sessions)) {
		m2m_state_free(state);
		return NULL;
	}
	return state;
}

/**
 * m2m_state_unhook - no packet meets the tables any more
 * @state: the namespace's
 *
 * After a grace period nobody looks at them, and m2m_state_free() may follow.
 */
void m2m_state_unhook(struct m2m_state *state)
{
	m2m_hooks_unregister(state);
	if (state->defragments)
		nf_defrag_ipv4_disable(state->net);
	state->defragments = false;
}

/* What still waits is thrown away. Neither packets nor works may be at it. */
void m2m_state_free(struct m2m_state *state)
{
	kvfree(rcu_dereference_raw(state->links));
	kvfree(rcu_dereference_raw(state->addresses));
	kvfree(rcu_dereference_raw(state->rules));
	m2m_wait_purge(state);
	m2m_table_free(&state->table);
	m2m_hops_free(state);
	m2m_notes_free(state);
	m2m_fragments_free(state->fragments);
	free_percpu(state->reasons);
	kfree(state);
}

/*
 * To be done again and again, as CLOCK_MONOTONIC is slewed and jiffies are not. These count the
 * beginnings of periods, this clock what has passed since: one period less, and packets are never
 * stamped ahead of the time.
 */
void m2m_state_set_clock(struct m2m_state *state)
{
	struct m2m_config *config = &state->config;

	config->jiffy = TICK_NSEC;
	WRITE_ONCE(config->clock, ktime_get_ns() - (get_jiffies_64() + 1) * config->jiffy);
}

/**
 * m2m_state_leave - the agent has gone, or is about to
 * @state: the namespace's, under &m2m_net.lock
 */
void m2m_state_leave(struct m2m_state *state)
{
	WRITE_ONCE(state->config.heartbeat, 0);
	m2m_release_all(state);
}
