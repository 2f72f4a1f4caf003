/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Carrying out an edit on a packet, in place.
 *
 * A program that writes in place makes the kernel see to it that a cloned packet may be written
 * to before the program's first instruction. For the clones that TCP sends, whose headers are
 * their own, that is one call and no copy; it costs them less than storing by helper costs all.
 *
 * Checksums: the IP header's own sum balances what changes there, so a receive checksum over the
 * whole packet (CHECKSUM_COMPLETE) stays right without help. Of the transport's sum, only the
 * addresses are part of the pseudo header: with a partial checksum (CHECKSUM_PARTIAL) only they
 * may be changed in the field. Which kind a packet has is in the kernel's own sk_buff, which
 * programs may read since Linux 6.2; where that cannot be read, or the packet carries a receive
 * checksum, the helpers do it, at three times the price.
 */
#ifndef M2M_BPF_REWRITE_H
#define M2M_BPF_REWRITE_H

#include <stddef.h>

#include <bpf/bpf_core_read.h>

#include "packet.h"

struct sk_buff___kernel {
	u8 ip_summed : 2;
} __attribute__((preserve_access_index));

extern void *bpf_cast_to_kern_ctx(void *skb) __weak __ksym;

/* skb->ip_summed: include/linux/skbuff.h */
#define M2M_CHECKSUM_COMPLETE 2
#define M2M_CHECKSUM_PARTIAL 3

static __always_inline int m2m_checksum_kind(struct __sk_buff *skb)
{
	struct sk_buff___kernel *kernel;

	if (!bpf_cast_to_kern_ctx)
		return M2M_CHECKSUM_COMPLETE; /* the helpers know what to do with all of them */
	kernel = bpf_cast_to_kern_ctx(skb);
	return BPF_CORE_READ_BITFIELD(kernel, ip_summed);
}

static __always_inline int m2m_rewrite_check(struct __sk_buff *skb, u8 proto, u32 l4,
					     const struct m2m_edit *edit)
{
	u32 field = proto == M2M_PROTO_TCP ? offsetof(struct tcphdr, check) :
					     offsetof(struct udphdr, check);
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	int kind = m2m_checksum_kind(skb);
	/* As m2m_edit_transport_check() has it. */
	u64 udp = proto == M2M_PROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	u16 *check = data + (l4 & 0x7f) + field;

	if (kind == M2M_CHECKSUM_COMPLETE) {
		if (bpf_l4_csum_replace(skb, l4 + field, 0, edit->addr_diff,
					BPF_F_PSEUDO_HDR | udp))
			return -1;
		return bpf_l4_csum_replace(skb, l4 + field, 0, edit->port_diff, udp);
	}
	if ((void *)(check + 1) > end)
		return -1;
	*check = m2m_edit_transport_check(edit, proto, *check, kind == M2M_CHECKSUM_PARTIAL);
	return 0;
}

/*
 * Zero when done; nothing else than a packet shorter than its headers say can fail here.
 * hop: the packet is sent on from one network to another.
 */
static __always_inline int m2m_rewrite(struct __sk_buff *skb, u8 proto,
				       const struct m2m_headers *headers,
				       const struct m2m_edit *edit, int hop)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + M2M_L3;
	struct udphdr *ports = data + (headers->l4 & 0x7f);

	if ((void *)(ip + 1) > end)
		return -1;
	ip->ttl = headers->ttl - (hop ? 1 : 0);
	ip->check = m2m_edit_ip_check(edit, headers->ip_check, hop);
	ip->saddr = edit->src;
	ip->daddr = edit->dst;
	if (headers->later_fragment)
		return 0;
	if ((void *)(ports + 1) > end)
		return -1;
	ports->source = edit->sport;
	ports->dest = edit->dport;
	return m2m_rewrite_check(skb, proto, headers->l4, edit);
}

#endif /* M2M_BPF_REWRITE_H */
