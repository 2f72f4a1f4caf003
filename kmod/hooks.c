// SPDX-License-Identifier: GPL-2.0
/*
 * Where packets meet the datapath.
 *
 *   network ─► PRE_ROUTING, first: (IN, tuple) ─► DELIVER: restored, on to the stack
 *                                            └─► SEND: translated, to the next hop
 *   stack ───► POST_ROUTING, last: (OUT, tuple) ─► SEND: translated, by its next hop
 *
 * So connection tracking and filters see the supersession alone, as they do with tc programs.
 * Both directions of a forwarded packet, and what leaves the host's own sockets, pass POST_ROUTING:
 * first packets are held there too.
 */
#include <linux/ip.h>
#include <linux/netdevice.h>
#include <linux/netfilter_bridge.h>
#include <linux/netfilter_ipv4.h>
#include <net/dst.h>
#include <net/netfilter/ipv4/nf_defrag_ipv4.h>

#include "module.h"

/* A fragment that conntrack would put together is still one: as on the wire. */
#define M2M_PRI_IN NF_IP_PRI_RAW_BEFORE_DEFRAG

static bool is_attached(const struct m2m_state *state, const struct net_device *device)
{
	const struct m2m_links *links = rcu_dereference(state->links);
	u32 index;

	if (!links || !device)
		return false;
	for (index = 0; index < links->count; index++) {
		if (links->ifindex[index] == (u32)device->ifindex)
			return true;
	}
	return false;
}

/* A frame that the host only bridges, shown to IP hooks by br_netfilter. */
static bool is_bridged(const struct sk_buff *skb)
{
#if IS_ENABLED(CONFIG_BRIDGE_NETFILTER)
	const struct nf_bridge_info *bridged = nf_bridge_info_get(skb);

	return bridged && (bridged->pkt_otherhost || bridged->physoutdev);
#else
	return false;
#endif
}

static unsigned int m2m_in(void *priv, struct sk_buff *skb, const struct nf_hook_state *at)
{
	struct m2m_state *state = priv;
	const __be16 *ports = m2m_ports_of(skb);

	/* Most of what comes is of no session. */
	if (ports && !(m2m_may_come_in(&state->config, ports[0]) &&
		       m2m_may_come_in(&state->config, ports[1])))
		return NF_ACCEPT;
	if (skb->pkt_type != PACKET_HOST || !is_attached(state, at->in) || is_bridged(skb))
		return NF_ACCEPT;
	return m2m_process(state, skb, at, ports, M2M_HOOK_IN);
}

static unsigned int m2m_out(void *priv, struct sk_buff *skb, const struct nf_hook_state *at)
{
	struct m2m_state *state = priv;

	if (!is_attached(state, at->out) || is_bridged(skb))
		return NF_ACCEPT;
	/* What is yet to be encrypted leaves the host as something else. */
	if (skb_dst(skb) && dst_xfrm(skb_dst(skb)))
		return NF_ACCEPT;
	return m2m_process(state, skb, at, m2m_ports_of(skb), M2M_HOOK_OUT);
}

static const struct nf_hook_ops hooks[] = {
	{
		.hook = m2m_in,
		.pf = NFPROTO_IPV4,
		.hooknum = NF_INET_PRE_ROUTING,
		.priority = M2M_PRI_IN,
	},
	{
		.hook = m2m_out,
		.pf = NFPROTO_IPV4,
		.hooknum = NF_INET_POST_ROUTING,
		.priority = NF_IP_PRI_LAST,
	},
};

/* From now on packets meet the namespace's tables. */
int m2m_hooks_register(struct m2m_state *state)
{
	size_t index;

	BUILD_BUG_ON(ARRAY_SIZE(state->ops) != ARRAY_SIZE(hooks));
	for (index = 0; index < ARRAY_SIZE(hooks); index++) {
		state->ops[index] = hooks[index];
		state->ops[index].priv = state;
	}
	return nf_register_net_hooks(state->net, state->ops, ARRAY_SIZE(hooks));
}

/* No more; those that are under way still may, until a grace period has passed. */
void m2m_hooks_unregister(struct m2m_state *state)
{
	nf_unregister_net_hooks(state->net, state->ops, ARRAY_SIZE(hooks));
}
