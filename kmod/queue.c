// SPDX-License-Identifier: GPL-2.0
/* Queues of packets that wait: each row has one of its own, in a record made when it is needed. */
#include <linux/netdevice.h>
#include <linux/slab.h>
#include <net/inet_hashtables.h>
#include <net/sock.h>

#include "queue.h"

/* A row's record of what waits: the one it has, or else this one; its lock is held. */
struct m2m_wait *m2m_wait_take(struct m2m_row *row, struct m2m_wait *fresh)
{
	if (row->wait) {
		kfree(fresh);
		return row->wait;
	}
	fresh->row = row;
	INIT_LIST_HEAD(&fresh->node);
	INIT_LIST_HEAD(&fresh->queue);
	row->wait = fresh;
	return fresh;
}

/* The same, made if need be. */
struct m2m_wait *m2m_wait_of(struct m2m_row *row, gfp_t gfp)
{
	struct m2m_wait *wait = row->wait;

	if (wait)
		return wait;
	wait = kzalloc(sizeof(*wait), gfp | __GFP_NOWARN);
	return wait ? m2m_wait_take(row, wait) : NULL;
}

/* Forget the record when it says nothing any more; the row's lock is held. */
void m2m_wait_done(struct m2m_row *row)
{
	struct m2m_wait *wait = row->wait;

	if (wait && !wait->state && list_empty(&wait->queue) && list_empty(&wait->node)) {
		row->wait = NULL;
		kfree(wait);
	}
}

void m2m_parcel_free(struct m2m_state *state, struct m2m_parcel *parcel)
{
	atomic_dec(parcel->first ? &state->first_waiting : &state->live_waiting);
	if (parcel->sk)
		sock_gen_put(parcel->sk);
	kfree(parcel);
}

/* Put a packet behind those that wait; the row's lock is held. Takes nothing when it fails. */
int m2m_enqueue(struct m2m_state *state, struct m2m_wait *wait, struct sk_buff *skb,
		const struct nf_hook_state *at, bool first)
{
	struct m2m_parcel *parcel = kmalloc(sizeof(*parcel), GFP_ATOMIC | __GFP_NOWARN);

	if (!parcel)
		goto full;
	*parcel = (struct m2m_parcel){
		.skb = skb,
		.sk = at->sk,
		.okfn = at->okfn,
		.in = at->in ? at->in->ifindex : 0,
		.out = at->out ? at->out->ifindex : 0,
		.hook = at->hook,
		.first = first,
	};
	if ((skb_dst(skb) && !skb_dst_force(skb)) ||
	    (at->sk && !refcount_inc_not_zero(&at->sk->sk_refcnt))) {
		kfree(parcel);
		goto full;
	}
	atomic_inc(first ? &state->first_waiting : &state->live_waiting);
	list_add_tail(&parcel->node, &wait->queue);
	wait->queued++;
	wait->held++;
	m2m_count(state, M2M_HELD, 1);
	return 0;
full:
	m2m_count(state, M2M_HOLD_OVERFLOW, 1);
	return -ENOBUFS;
}

/* Throw away what still waits: its namespace goes, or the module. Nobody else may be looking. */
void m2m_wait_purge(struct m2m_state *state)
{
	struct m2m_parcel *parcel, *next;
	struct m2m_row *row;

	if (!state->table.buckets) /* it has not been made */
		return;
	list_for_each_entry(row, &state->table.all, all) {
		if (!row->wait)
			continue;
		list_for_each_entry_safe(parcel, next, &row->wait->queue, node) {
			kfree_skb(parcel->skb);
			m2m_parcel_free(state, parcel);
		}
	}
}
