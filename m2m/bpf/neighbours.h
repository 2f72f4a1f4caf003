/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Which Ethernet address the next host has, learnt from what the kernel writes into redirected
 * packets.
 *
 * What leaves the host's own stack has an Ethernet header already, made for the supersession's
 * destination. Most often that is the right one: both ways begin at the same router. Then the
 * packet need not be redirected, which would send it through the whole transmit path again. A
 * note counts for a second only; the first packet after that is redirected and renews it.
 */
#ifndef M2M_BPF_NEIGHBOURS_H
#define M2M_BPF_NEIGHBOURS_H

#include "packet.h"

#define M2M_NOTE_TICKS M2M_TICKS(1)

struct m2m_next_host {
	__be32 address;
	u32 ifindex;
};

struct m2m_ethernet {
	u8 address[ETH_ALEN];
	u16 zero;
	u32 seen; /* ticks */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct m2m_next_host);
	__type(value, struct m2m_ethernet);
} neighbours SEC(".maps");

static __always_inline int m2m_same_ethernet(const u8 *a, const u8 *b)
{
	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]) |
		 (a[5] ^ b[5]));
}

/* A redirected packet is about to leave: note where to. */
static __always_inline void m2m_learn_neighbour(struct __sk_buff *skb, u32 now)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *ethernet = data;
	struct iphdr *ip = data + M2M_L3;
	struct m2m_next_host host = {.ifindex = skb->ifindex};
	struct m2m_ethernet note = {.seen = now};
	const struct m2m_ethernet *known;

	if ((void *)(ip + 1) > end)
		return;
	host.address = ip->daddr;
	known = bpf_map_lookup_elem(&neighbours, &host);
	if (known && known->seen == now &&
	    m2m_same_ethernet(known->address, ethernet->h_dest))
		return;
	__builtin_memcpy(note.address, ethernet->h_dest, ETH_ALEN);
	bpf_map_update_elem(&neighbours, &host, &note, BPF_ANY);
}

/* Whether the Ethernet header that a packet has leads to the host it is to be sent to. */
static __always_inline int m2m_leads_to(struct __sk_buff *skb, const struct m2m_edit *edit,
					u32 now)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *ethernet = data;
	struct m2m_next_host host = {.address = edit->dst, .ifindex = edit->ifindex};
	const struct m2m_ethernet *known;

	if (skb->ifindex != edit->ifindex || (void *)(ethernet + 1) > end)
		return 0;
	known = bpf_map_lookup_elem(&neighbours, &host);
	return known && m2m_ticks_since(known->seen, now) <= M2M_NOTE_TICKS &&
	       m2m_same_ethernet(known->address, ethernet->h_dest);
}

#endif /* M2M_BPF_NEIGHBOURS_H */
