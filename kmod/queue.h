/* SPDX-License-Identifier: GPL-2.0 */
/* What the files about packets that wait share (queue.c, wait.c, drain.c). */
#ifndef M2M_QUEUE_H
#define M2M_QUEUE_H

#include "module.h"

/* A packet that waits, and what the kernel must know to go on with it. */
struct m2m_parcel {
	struct list_head node;
	struct sk_buff *skb;
	struct sock *sk;
	int (*okfn)(struct net *net, struct sock *sk, struct sk_buff *skb);
	int in; /* interfaces by their indexes: they may go meanwhile */
	int out;
	u8 hook;
	bool first;
};

void m2m_parcel_free(struct m2m_state *state, struct m2m_parcel *parcel);
int m2m_enqueue(struct m2m_state *state, struct m2m_wait *wait, struct sk_buff *skb,
		const struct nf_hook_state *at, bool first);

#endif /* M2M_QUEUE_H */
