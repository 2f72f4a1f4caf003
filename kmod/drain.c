// SPDX-License-Identifier: GPL-2.0
/*
 * Waiting packets leave.
 *
 * Order. A row's lock decides who was first. While a queue empties (M2M_WAIT_DRAINING), whoever
 * comes is put behind it, and it counts as empty only after the last of them has been sent, not
 * taken out: nobody overtakes. So that there is an end to it, once those are gone that were there
 * at the beginning, others wait in their hook for the moment it takes (row->closing): what leaves
 * makes the sender send more.
 *
 * All draining happens in process context under &m2m_net.lock: packets only ask for it.
 */
#include <linux/netdevice.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "queue.h"

/* How often a packet looks whether another processor is through: for a millisecond or so. */
#define M2M_PATIENCE 20000

/* So many are sent before other work of this processor has its turn. */
#define M2M_AT_ONCE 64

/* The last of a queue are leaving, on another processor: they must be gone first. */
void m2m_see_them_off(const struct m2m_row *row)
{
	int look;

	for (look = 0; look < M2M_PATIENCE && READ_ONCE(row->closing); look++)
		cpu_relax();
}

/* One packet goes on as if it came just now, and does not wait again. */
static void send(struct m2m_state *state, struct m2m_row *row, struct m2m_parcel *parcel)
{
	struct nf_hook_state at = {
		.hook = parcel->hook,
		.pf = NFPROTO_IPV4,
		.sk = parcel->sk,
		.net = state->net,
		.okfn = parcel->okfn,
		.in = parcel->in ? dev_get_by_index_rcu(state->net, parcel->in) : NULL,
		.out = parcel->out ? dev_get_by_index_rcu(state->net, parcel->out) : NULL,
	};
	u8 hook = parcel->hook == NF_INET_PRE_ROUTING ? M2M_HOOK_IN : M2M_HOOK_OUT;
	struct sk_buff *skb = parcel->skb;
	struct m2m_headers headers;

	skb->dev = hook == M2M_HOOK_IN ? at.in : at.out;
	if (!skb->dev || (parcel->in && !at.in)) { /* it has gone, and all that waited for it */
		m2m_count(state, M2M_NO_NEIGHBOUR, 1);
		kfree_skb(skb);
	} else if (!m2m_parse(skb, &headers)) {
		m2m_count(state, M2M_TRUNCATED, 1);
		kfree_skb(skb);
	} else {
		m2m_go_on(state, skb, &at, m2m_meet(state, row, skb, &at, &headers, hook, true));
	}
	m2m_parcel_free(state, parcel);
}

/**
 * m2m_drain - let go what waits for a row, in order; nothing waits for it any more
 * @state: the namespace's
 * @row: under &m2m_net.lock
 *
 * All have left when it returns. Returns how many had been held.
 */
u32 m2m_drain(struct m2m_state *state, struct m2m_row *row)
{
	struct m2m_parcel *parcel;
	struct m2m_wait *wait;
	u32 held = 0, left, sent = 0;

	local_bh_disable();
	rcu_read_lock();
	spin_lock(&row->lock);
	wait = row->wait;
	if (!wait)
		goto out;
	held = wait->held;
	wait->held = 0;
	left = wait->queued;
	list_del_init(&wait->node);
	wait->state &= ~(M2M_WAIT_FIRST | M2M_WAIT_HOLD | M2M_WAIT_SUBSTREAM | M2M_WAIT_OVERFLOW |
			 M2M_UNTOLD_HELD);
	wait->state |= M2M_WAIT_DRAINING;
	while ((parcel = list_first_entry_or_null(&wait->queue, struct m2m_parcel, node))) {
		list_del(&parcel->node);
		wait->queued--;
		if (left)
			left--;
		else
			WRITE_ONCE(row->closing, true);
		spin_unlock(&row->lock);
		send(state, row, parcel);
		if (!(++sent % M2M_AT_ONCE)) {
			WRITE_ONCE(row->closing, false); /* nobody waits for what may take long */
			rcu_read_unlock();
			local_bh_enable();
			cond_resched();
			local_bh_disable();
			rcu_read_lock();
		}
		spin_lock(&row->lock);
	}
	WRITE_ONCE(row->closing, false);
	wait->held = 0;
	wait->state &= ~M2M_WAIT_DRAINING;
	m2m_wait_done(row);
out:
	spin_unlock(&row->lock);
	rcu_read_unlock();
	local_bh_enable();
	return held;
}

/**
 * m2m_discard - take a row out; what waits for it goes first
 * @state: the namespace's
 * @row: under &m2m_net.lock
 */
void m2m_discard(struct m2m_state *state, struct m2m_row *row)
{
	for (;;) {
		m2m_drain(state, row);
		spin_lock_bh(&row->lock);
		if (!row->wait || list_empty(&row->wait->queue))
			break;
		spin_unlock_bh(&row->lock); /* another first packet has come meanwhile */
	}
	row->dead = true;
	kfree(row->wait);
	row->wait = NULL;
	if (row->kind == M2M_ROW_UNDECIDED)
		atomic_dec(&state->undecided);
	m2m_hop_put(row->hop);
	m2m_table_remove(&state->table, row);
	spin_unlock_bh(&row->lock);
	kfree_rcu(row, rcu);
}
