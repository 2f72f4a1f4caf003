// SPDX-License-Identifier: GPL-2.0
/*
 * Carrying out an edit on a packet: the only place where octets of packets are changed.
 *
 * Checksums. The IP header's own sum balances what changes there, so a receive checksum over the
 * whole packet (CHECKSUM_COMPLETE) only feels the addresses, which the transport's sum covers in
 * its pseudo header and which are not where that sum is taken. Of a partial checksum
 * (CHECKSUM_PARTIAL) the field holds the sum of the pseudo header alone: only addresses count.
 */
#include <linux/icmp.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <net/checksum.h>
#include <net/tcp.h>

#include "module.h"

/* Whether the sum at the transport header is one that a device or the stack completes. */
static bool is_partial(const struct sk_buff *skb, u32 l4)
{
	if (skb->ip_summed != CHECKSUM_PARTIAL)
		return false;
	if (skb_checksum_start_offset(skb) == (int)l4)
		return true;
	/* An inner one is: then the outer one is complete, unless segmentation makes it. */
	return skb_is_gso(skb) && skb_shinfo(skb)->gso_type & SKB_GSO_UDP_TUNNEL_CSUM;
}

static void fix_sum(struct sk_buff *skb, const struct m2m_headers *headers,
		    const struct m2m_edit *edit, __sum16 *check)
{
	u16 old = (__force u16)*check;
	u16 now = m2m_edit_transport_check(edit, headers->proto, old,
					   is_partial(skb, headers->l4));

	*check = (__force __sum16)now;
	if (skb->ip_summed != CHECKSUM_COMPLETE)
		return;
	if (headers->proto == M2M_PROTO_UDP && !old) /* no sum balances the ports */
		skb->csum = csum_add(skb->csum, (__force __wsum)(u32)edit->port_diff);
	else
		skb->csum = csum_sub(skb->csum, (__force __wsum)(u32)edit->addr_diff);
}

/*
 * Lower the MSS option of a SYN segment: the chain's MTU can be smaller than that of the path the
 * ends know, and nobody on the way can tell them.
 */
static void clamp_mss(u8 *tcp, u32 header, u16 limit, bool partial)
{
	u32 at = sizeof(struct tcphdr);

	while (at < header && tcp[at] != TCPOPT_EOL) {
		__be16 from, to = htons(limit);
		u16 *check = (u16 *)(tcp + offsetof(struct tcphdr, check)), diff;

		if (tcp[at] == TCPOPT_NOP) {
			at++;
			continue;
		}
		if (at + 2 > header || tcp[at + 1] < 2 || at + tcp[at + 1] > header)
			return;
		if (tcp[at] != TCPOPT_MSS || tcp[at + 1] != TCPOLEN_MSS) {
			at += tcp[at + 1];
			continue;
		}
		memcpy(&from, tcp + at + 2, sizeof(from));
		if (ntohs(from) <= limit)
			return;
		memcpy(tcp + at + 2, &to, sizeof(to));
		/* At an odd offset its octets lie in the other halves of the words summed. */
		diff = at & 1 ? m2m_csum_diff16((__force __be16)swab16((__force u16)from),
						(__force __be16)swab16((__force u16)to)) :
				m2m_csum_diff16(from, to);
		if (!partial)
			*check = m2m_csum_apply(*check, diff);
		return;
	}
}

static void rewrite_ip(struct iphdr *ip, const struct m2m_edit *edit, bool hop)
{
	ip->saddr = edit->src;
	ip->daddr = edit->dst;
	ip->check = (__force __sum16)m2m_edit_ip_check(edit, (__force u16)ip->check, hop);
	if (hop)
		ip->ttl--;
}

/**
 * m2m_rewrite - give a packet its new header
 * @skb: its data begins at the IP header
 * @headers: as they are
 * @edit: what they become
 * @hop: it is sent on from one network to another
 *
 * Later fragments carry no ports: only their addresses change. Zero, or no memory.
 */
int m2m_rewrite(struct sk_buff *skb, const struct m2m_headers *headers,
		const struct m2m_edit *edit, bool hop)
{
	bool clamp = edit->mss && headers->tcp_flags & M2M_TCP_SYN;
	bool carry = edit->spliced && headers->proto == M2M_PROTO_TCP && !headers->later_fragment;
	u32 need = headers->l4;
	struct m2m_edit own;
	void *l4;

	if (!headers->later_fragment && headers->proto == M2M_PROTO_TCP)
		need += clamp || carry ? headers->l4_len : sizeof(struct tcphdr);
	else if (!headers->later_fragment)
		need += sizeof(struct udphdr);
	if (skb_ensure_writable(skb, need))
		return -ENOMEM;
	l4 = skb->data + headers->l4;
	if (carry) {
		u16 diff = m2m_carry_header(&edit->splice, M2M_ROLE_TOWARD(edit->role), l4,
					    headers->l4_len);

		/* As of ports: no part of the pseudo header, and balanced by the field. */
		own = *edit;
		own.port_diff = m2m_csum_fold((u32)own.port_diff + diff);
		edit = &own;
	}
	if (headers->later_fragment) {
		/* Of the pseudo header nothing is here; a receive sum does not feel the rest. */
	} else if (headers->proto == M2M_PROTO_TCP) {
		struct tcphdr *tcp = l4;

		fix_sum(skb, headers, edit, &tcp->check);
		tcp->source = edit->sport;
		tcp->dest = edit->dport;
		if (clamp)
			clamp_mss(l4, headers->l4_len, edit->mss, is_partial(skb, headers->l4));
	} else {
		struct udphdr *udp = l4;

		fix_sum(skb, headers, edit, &udp->check);
		udp->source = edit->sport;
		udp->dest = edit->dport;
	}
	rewrite_ip(ip_hdr(skb), edit, hop);
	return 0;
}

/**
 * m2m_rewrite_quoted - the same for an ICMP error about a packet of the other direction
 * @skb: its data begins at the IP header
 * @icmp: offset of the ICMP header
 * @quoted: the packet it quotes, offsets as from the quoted IP header
 * @edit: of the row that packets of the error's own direction meet
 * @hop: as for m2m_rewrite()
 *
 * The error takes that row's addresses; what it quotes becomes what went the other way, so its
 * differences are the row's own, ends exchanged.
 */
int m2m_rewrite_quoted(struct sk_buff *skb, u32 icmp, const struct m2m_headers *quoted,
		       const struct m2m_edit *edit, bool hop)
{
	u32 inner = icmp + sizeof(struct icmphdr), l4 = inner + quoted->l4, room, changed;
	struct icmphdr *error;
	struct m2m_edit own;
	struct iphdr *ip;
	__be32 old_src, old_dst;
	__be16 *ports;
	u16 *check = NULL;

	/* A checksum of UDP is always quoted, TCP's only where more than the least is. */
	room = quoted->proto == M2M_PROTO_UDP ? 8 : min_t(u32, skb->len - l4, 18);
	if (skb_ensure_writable(skb, l4 + room))
		return -ENOMEM;
	error = (void *)skb->data + icmp;
	ip = (void *)skb->data + inner;
	ports = (void *)skb->data + l4;
	if (edit->spliced && quoted->proto == M2M_PROTO_TCP) {
		/* What went the other way is taken back; its sender looks at the sequence number. */
		u8 back = M2M_ROLE_TOWARD(edit->role) ^ 1;
		__be32 *seq = (void *)(ports + 2), old = *seq;

		*seq = htonl(ntohl(old) - edit->splice.seq[back]);
		own = *edit;
		own.port_diff = m2m_csum_fold((u32)own.port_diff + m2m_csum_diff32(old, *seq));
		edit = &own;
	}
	changed = edit->port_diff;
	if (quoted->proto == M2M_PROTO_UDP)
		check = (u16 *)ports + 3;
	else if (room >= 18)
		check = (u16 *)ports + 8;
	if (check) {
		u16 old = *check;

		*check = m2m_edit_transport_check(edit, quoted->proto, old, 0);
		changed += m2m_csum_diff16((__force __be16)old, (__force __be16)*check);
	}
	ports[0] = edit->dport;
	ports[1] = edit->sport;
	ip->saddr = edit->dst;
	ip->daddr = edit->src;
	ip->check = (__force __sum16)m2m_edit_ip_check(edit, (__force u16)ip->check, 0);
	error->checksum = (__force __sum16)m2m_csum_apply((__force u16)error->checksum,
							  m2m_csum_fold(changed));
	/* The error's own addresses may be a router's, so the row's difference is not theirs. */
	ip = ip_hdr(skb);
	old_src = ip->saddr;
	old_dst = ip->daddr;
	csum_replace4(&ip->check, old_src, edit->src);
	csum_replace4(&ip->check, old_dst, edit->dst);
	ip->saddr = edit->src;
	ip->daddr = edit->dst;
	if (hop)
		ip_decrease_ttl(ip);
	return 0;
}
