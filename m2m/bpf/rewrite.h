/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Carrying out an edit on a packet.
 *
 * Bytes are stored by helper, not in place: a program that writes in place makes the kernel
 * un-clone every cloned packet before the program's first instruction, and all TCP packets that a
 * host sends are clones, those of unsteered flows included.
 *
 * Checksums: the IP header's own sum balances what changes there, so a receive checksum over the
 * whole packet (CHECKSUM_COMPLETE) stays right without help. Of the transport's sum, only the
 * addresses are part of the pseudo header: with a partial checksum (CHECKSUM_PARTIAL) only they
 * may be changed in the field. Hence two calls.
 */
#ifndef M2M_BPF_REWRITE_H
#define M2M_BPF_REWRITE_H

#include <stddef.h>

#include "packet.h"

/* The IP header from its ttl on, and the ports that follow where there are no options. */
struct m2m_stored {
	u8 ttl;
	u8 proto;
	u16 check;
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
};

#define M2M_STORED_IP offsetof(struct m2m_stored, sport)
#define M2M_STORED_PORTS (sizeof(struct m2m_stored) - M2M_STORED_IP)

/* Zero when done; nothing else than a packet shorter than its headers say can fail here. */
static __always_inline int m2m_rewrite(struct __sk_buff *skb, u8 proto,
				       const struct m2m_headers *headers,
				       const struct m2m_edit *edit, int take_hop)
{
	u32 at = M2M_L3 + offsetof(struct iphdr, ttl);
	u32 check_at = headers->l4 + (proto == M2M_PROTO_TCP ? offsetof(struct tcphdr, check) :
							       offsetof(struct udphdr, check));
	/* A UDP checksum of 0 means that there is none, and a sum that comes out as 0 is sent as ~0. */
	u64 udp = proto == M2M_PROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	struct m2m_stored stored = {
		.ttl = headers->ttl - (take_hop ? 1 : 0),
		.proto = proto,
		.saddr = edit->src.word[3],
		.daddr = edit->dst.word[3],
		.sport = edit->sport,
		.dport = edit->dport,
	};
	u16 hop_diff = take_hop ? (u16)~bpf_htons(0x0100) : 0; /* ttl: its word's high byte */

	stored.check = m2m_csum_apply(headers->ip_check,
				      m2m_csum_fold((u64)edit->addr_diff + hop_diff));
	if (headers->later_fragment)
		return bpf_skb_store_bytes(skb, at, &stored, M2M_STORED_IP, 0);
	if (headers->l4 == M2M_L3 + sizeof(struct iphdr)) {
		if (bpf_skb_store_bytes(skb, at, &stored, sizeof(stored), 0))
			return -1;
	} else if (bpf_skb_store_bytes(skb, at, &stored, M2M_STORED_IP, 0) ||
		   bpf_skb_store_bytes(skb, headers->l4, &stored.sport, M2M_STORED_PORTS, 0)) {
		return -1;
	}
	if (bpf_l4_csum_replace(skb, check_at, 0, edit->addr_diff, BPF_F_PSEUDO_HDR | udp))
		return -1;
	return bpf_l4_csum_replace(skb, check_at, 0, edit->port_diff, udp);
}

#endif /* M2M_BPF_REWRITE_H */
