// SPDX-License-Identifier: GPL-2.0
/*
 * Neighbours to which rows send. Each has a route of its own, made once and shared by its rows: so
 * packets that leave the host's own stack go by it through the rest of the stack (fragmentation,
 * segmentation, neighbour discovery) without another look into the routing table.
 */
#include <linux/hash.h>
#include <linux/netdevice.h>
#include <linux/slab.h>

#include "module.h"

static struct hlist_head *bucket_of(struct m2m_state *state, u32 ifindex, __be32 gateway)
{
	u32 hash = hash_32(ifindex ^ (__force u32)gateway, 6);

	BUILD_BUG_ON(ARRAY_SIZE(state->hops) != 64);
	return &state->hops[hash];
}

static struct rtable *route_to(struct net *net, u32 ifindex, __be32 gateway)
{
	struct net_device *device = dev_get_by_index(net, ifindex);
	struct rtable *rt;

	if (!device)
		return NULL;
	rt = rt_dst_alloc(device, 0, RTN_UNICAST, true);
	if (rt) {
		rt->rt_gw_family = AF_INET;
		rt->rt_gw4 = gateway;
		rt->rt_uses_gateway = 1;
	}
	dev_put(device); /* the route has a reference of its own */
	return rt;
}

/**
 * m2m_hop_get - the hop of this neighbour, for one more row
 * @state: the namespace's
 * @ifindex: of the interface
 * @gateway: the neighbour
 *
 * Under &m2m_net.lock. %NULL when there is no such interface, or no memory.
 */
struct m2m_hop *m2m_hop_get(struct m2m_state *state, u32 ifindex, __be32 gateway)
{
	struct hlist_head *bucket = bucket_of(state, ifindex, gateway);
	struct rtable *rt;
	struct m2m_hop *hop;

	hlist_for_each_entry(hop, bucket, node) {
		if (hop->ifindex == ifindex && hop->gateway == gateway &&
		    rcu_access_pointer(hop->rt)) {
			hop->users++;
			return hop;
		}
	}
	rt = route_to(state->net, ifindex, gateway);
	if (!rt)
		return NULL;
	hop = kzalloc(sizeof(*hop), GFP_KERNEL_ACCOUNT);
	if (!hop) {
		dst_release(&rt->dst);
		return NULL;
	}
	hop->ifindex = ifindex;
	hop->gateway = gateway;
	hop->users = 1;
	RCU_INIT_POINTER(hop->rt, rt);
	hlist_add_head(&hop->node, bucket);
	return hop;
}

static void forget_route(struct m2m_hop *hop)
{
	struct rtable *rt = rcu_replace_pointer(hop->rt, NULL, true);

	if (rt) {
		dst_dev_put(&rt->dst);
		dst_release(&rt->dst); /* freed when no reader can have it any more */
	}
}

/* One row less; under &m2m_net.lock, when no packet can find it by that row. */
void m2m_hop_put(struct m2m_hop *hop)
{
	if (!hop || --hop->users)
		return;
	hlist_del(&hop->node);
	forget_route(hop);
	kfree_rcu(hop, rcu);
}

/* An interface goes: what would be sent there is dropped from now on. Under &m2m_net.lock. */
void m2m_hop_forget_device(struct m2m_state *state, int ifindex)
{
	struct m2m_hop *hop;
	size_t bucket;

	for (bucket = 0; bucket < ARRAY_SIZE(state->hops); bucket++) {
		hlist_for_each_entry(hop, &state->hops[bucket], node) {
			if (hop->ifindex == ifindex)
				forget_route(hop);
		}
	}
}

/* When no packet can be looking. */
void m2m_hops_free(struct m2m_state *state)
{
	struct hlist_node *next;
	struct m2m_hop *hop;
	size_t bucket;

	for (bucket = 0; bucket < ARRAY_SIZE(state->hops); bucket++) {
		hlist_for_each_entry_safe(hop, next, &state->hops[bucket], node) {
			forget_route(hop);
			kfree_rcu(hop, rcu);
		}
	}
}
