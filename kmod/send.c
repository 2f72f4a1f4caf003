// SPDX-License-Identifier: GPL-2.0
/* The last step: packets leave by their next hop, or go on through the stack. */
#include <linux/netdevice.h>
#include <net/arp.h>
#include <net/ip.h>
#include <net/neighbour.h>

#include "module.h"

/**
 * m2m_transmit - send a packet that came in from a network out again, past routing
 * @skb: translated; consumed
 * @rt: of the next hop
 *
 * The routing table would refuse it: its source is an address of this host. Under RCU, bottom halves off.
 */
int m2m_transmit(struct sk_buff *skb, struct rtable *rt)
{
	struct net_device *device = rt->dst.dev;
	unsigned int room = LL_RESERVED_SPACE(device);
	struct neighbour *neighbour;

	if (skb_warn_if_lro(skb)) {
		kfree_skb(skb);
		return -EINVAL;
	}
	skb_dst_drop(skb);
	skb_forward_csum(skb);
	skb_clear_tstamp(skb);
	skb->dev = device;
	if (unlikely(skb_headroom(skb) < room && device->header_ops)) {
		skb = skb_expand_head(skb, room);
		if (!skb)
			return -ENOMEM;
	}
	neighbour = ip_neigh_gw4(device, rt->rt_gw4);
	if (IS_ERR(neighbour)) {
		kfree_skb(skb);
		return PTR_ERR(neighbour);
	}
	neigh_output(neighbour, skb, false);
	return 0;
}

/**
 * m2m_reroute - have the stack send a packet to its next hop
 * @skb: translated, at POST_ROUTING
 * @rt: of the next hop
 * @edit: what has been done to it
 *
 * Most often its route is the right one: both ways begin at the same router. Under RCU. False when
 * the next hop has just gone.
 */
bool m2m_reroute(struct sk_buff *skb, struct rtable *rt, const struct m2m_edit *edit)
{
	const struct rtable *old = skb_rtable(skb);

	if (edit->mtu && !skb_is_gso(skb) && skb->len > edit->mtu)
		IPCB(skb)->frag_max_size = min_not_zero(IPCB(skb)->frag_max_size, edit->mtu);
	if (old && old->dst.dev == rt->dst.dev &&
	    (old->rt_gw_family == AF_INET ? old->rt_gw4 == rt->rt_gw4 :
	     !old->rt_gw_family && edit->dst == rt->rt_gw4))
		return true;
	if (!dst_hold_safe(&rt->dst))
		return false;
	skb_dst_drop(skb);
	skb_dst_set(skb, &rt->dst);
	skb->dev = rt->dst.dev;
	return true;
}

/* Where our own hook stands among those of its kind; their number when it is not there any more. */
static unsigned int own_place(const struct m2m_state *state, const struct nf_hook_entries *hooks)
{
	unsigned int place;

	for (place = 0; place < hooks->num_hook_entries; place++) {
		if (hooks->hooks[place].priv == state)
			break;
	}
	return place;
}

/**
 * m2m_go_on - do for a packet that has waited what the kernel does after a hook has returned
 * @state: the namespace's
 * @skb: the packet
 * @at: where it was met
 * @verdict: what became of it there
 *
 * Hooks behind our own see it as if it came just now. Under RCU, bottom halves off.
 */
void m2m_go_on(struct m2m_state *state, struct sk_buff *skb, struct nf_hook_state *at,
	       unsigned int verdict)
{
	const struct nf_hook_entries *hooks;
	int go = 1;

	if (verdict == NF_STOLEN)
		return;
	if (verdict != NF_ACCEPT) {
		kfree_skb(skb);
		return;
	}
	hooks = rcu_dereference(state->net->nf.hooks_ipv4[at->hook]);
	if (hooks)
		go = nf_hook_slow(skb, at, hooks,
				  min_t(unsigned int, own_place(state, hooks) + 1,
					hooks->num_hook_entries));
	if (go == 1)
		at->okfn(at->net, at->sk, skb);
}
