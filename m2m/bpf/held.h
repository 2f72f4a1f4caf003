/* SPDX-License-Identifier: GPL-2.0 */
/* The other end of waiting (change.h): packets, and the kernel's questions, on the device's way out. */
#ifndef M2M_BPF_HELD_H
#define M2M_BPF_HELD_H

#include "change.h"

/* RFC 826, for Ethernet and IPv4. <linux/if_arp.h> wants headers that BPF has not. */
struct m2m_arp {
	__be16 hardware;
	__be16 protocol;
	u8 sizes[2];
	__be16 operation;
	u8 sender_mac[ETH_ALEN];
	__be32 sender;
	u8 target_mac[ETH_ALEN];
	__be32 target;
} __attribute__((packed));

#define M2M_ARP_REPLY 2

/* Whether a packet that comes out is the next one; if not, *late is where it must wait again. */
static __noinline int m2m_in_turn(struct __sk_buff *skb, u8 hook, u32 number, __be32 *late)
{
	const struct m2m_config *config = m2m_get_config();
	const struct m2m_fragment *fragment;
	struct m2m_waiting *all = m2m_get_waiting();
	struct m2m_headers headers;
	struct m2m_change *change;
	struct m2m_key key;
	u32 ahead;

	if (!late || !config || !all || !m2m_parse(skb, &headers))
		return 1;
	m2m_key_of(&key, hook, &headers);
	if (headers.later_fragment) {
		fragment = m2m_find_fragment(&key, headers.ip_id, m2m_now(config));
		if (fragment)
			key = fragment->key;
	}
	change = bpf_map_lookup_elem(&changes, &key);
	if (!change)
		return 1;
	ahead = (number - (u32)change->released) & M2M_NUMBER_MASK;
	if (ahead && !(change->state & M2M_CHANGE_LET_GO)) {
		*late = change->late;
		return 0;
	}
	if (ahead <= M2M_NUMBER_MASK / 2) {
		/* Nobody else is the next one, so nobody else writes. */
		change->released += ahead + 1;
		__sync_fetch_and_add(&all->released, ahead + 1);
	}
	return 1;
}

/*
 * Write down (skb->cb: of the stack there is not much) by which interface it came to the host, though
 * it may have been to the agent since; 0: by none.
 */
static __noinline int m2m_came_by(struct __sk_buff *skb, u8 hook)
{
	const struct m2m_change *change;
	struct m2m_headers headers;
	struct m2m_key key;

	skb->cb[0] = skb->ingress_ifindex;
	if (skb->ingress_ifindex || !m2m_parse(skb, &headers))
		return 0;
	m2m_key_of(&key, hook, &headers);
	change = bpf_map_lookup_elem(&changes, &key);
	if (change)
		skb->cb[0] = change->came_by;
	return 0;
}

/*
 * The kernel asks for the Ethernet address of a place where packets wait, at the first of them and
 * then again and again. It is told none while they are to wait; but when the agent is away, or
 * nothing is to wait there (any more), they go.
 */
static __noinline int m2m_asked(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *ethernet = data;
	struct m2m_arp *arp = (void *)(ethernet + 1);
	const struct m2m_config *config = m2m_get_config();
	const struct m2m_key *key;
	const struct m2m_entry *entry;
	struct m2m_change *change = NULL;
	__be32 target;

	if (!config || (void *)(arp + 1) > end)
		return TC_ACT_SHOT;
	target = arp->target;
	key = bpf_map_lookup_elem(&waiting_at, &target);
	if (key)
		change = bpf_map_lookup_elem(&changes, key);
	if (change && (change->state & M2M_CHANGE_HOLD || target == change->late) &&
	    !m2m_agent_away(config, bpf_ktime_get_ns())) {
		entry = m2m_find_entry(key);
		if (!entry)
			return TC_ACT_SHOT;
		if (target == change->late)
			m2m_tell(entry, M2M_EVENT_STRAY, 0);
		else if ((s32)(m2m_now(config) - change->until) >= 0 &&
			 !(change->state & M2M_CHANGE_OVERFLOW) &&
			 m2m_tell(entry, M2M_EVENT_OVERFLOW, change->hold_serial))
			__sync_fetch_and_or(&change->state, M2M_CHANGE_OVERFLOW);
		return TC_ACT_SHOT;
	}
	if (change && target == change->late)
		__sync_fetch_and_or(&change->state, M2M_CHANGE_LET_GO);
	arp->operation = bpf_htons(M2M_ARP_REPLY);
	__builtin_memcpy(ethernet->h_dest, arp->sender_mac, ETH_ALEN);
	__builtin_memcpy(arp->target_mac, arp->sender_mac, ETH_ALEN);
	m2m_put_mac(arp->sender_mac, M2M_MAC_OTHER, 0);
	m2m_put_mac(ethernet->h_source, M2M_MAC_OTHER, 0);
	arp->target = arp->sender;
	arp->sender = target;
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

/* What comes in by the device: the answer at which packets go. Nothing waits for that entry then. */
static __always_inline int m2m_answered(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct m2m_arp *arp = data + M2M_L3;
	const struct m2m_key *key;
	struct m2m_change *change;
	__be32 place;

	if (skb->protocol != bpf_htons(ETH_P_ARP) || (void *)(arp + 1) > end)
		return TC_ACT_SHOT;
	place = arp->sender;
	key = bpf_map_lookup_elem(&waiting_at, &place);
	change = key ? bpf_map_lookup_elem(&changes, key) : NULL;
	if (change) {
		change->drainer = bpf_get_smp_processor_id() + 1;
		__sync_fetch_and_and(&change->state, ~(M2M_CHANGE_HOLD | M2M_CHANGE_SUBSTREAM |
						       M2M_CHANGE_OVERFLOW));
	}
	return TC_ACT_UNSPEC;
}

#endif /* M2M_BPF_HELD_H */
