// SPDX-License-Identifier: GPL-2.0
/* Which flow a packet is of, and what its translation must know. */
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <net/ip.h>

#include "module.h"

/**
 * m2m_parse - take an IPv4 TCP or UDP packet apart
 * @skb: its data begins at the IP header
 * @headers: what was found
 *
 * The transport header is made readable in place. False for other protocols, and for what is too
 * short to name a flow: the stack throws that away, and counts it.
 */
bool m2m_parse(struct sk_buff *skb, struct m2m_headers *headers)
{
	const struct iphdr *ip = ip_hdr(skb);
	const struct udphdr *ports;
	u32 need;
	u16 offset;

	if (ip->protocol != M2M_PROTO_TCP && ip->protocol != M2M_PROTO_UDP)
		return false;
	offset = ntohs(ip->frag_off);
	*headers = (struct m2m_headers){
		.saddr = ip->saddr,
		.daddr = ip->daddr,
		.l4 = ip->ihl * 4,
		.l4_len = sizeof(*ports),
		/* The total length of a burst beyond 64 KiB does not fit and is 0. */
		.len = ip->tot_len ? ntohs(ip->tot_len) : skb->len,
		.id = ip->id,
		.ttl = ip->ttl,
		.proto = ip->protocol,
		.fragmentable = !(offset & IP_DF) || skb->ignore_df,
		.later_fragment = offset & IP_OFFSET,
		.first_fragment = !(offset & IP_OFFSET) && offset & IP_MF,
	};
	if (headers->l4 < sizeof(*ip))
		return false;
	if (headers->later_fragment)
		return true;
	need = headers->proto == M2M_PROTO_TCP ? sizeof(struct tcphdr) : sizeof(*ports);
	if (headers->len < headers->l4 + need || !pskb_may_pull(skb, headers->l4 + need)) {
		headers->truncated = true;
		if (!pskb_may_pull(skb, headers->l4 + sizeof(*ports)))
			return false;
	}
	ports = (const void *)skb->data + headers->l4;
	headers->sport = ports->source;
	headers->dport = ports->dest;
	if (headers->proto == M2M_PROTO_TCP && !headers->truncated) {
		const struct tcphdr *tcp = (const void *)ports;

		headers->seq = ntohl(tcp->seq);
		headers->ack = ntohl(tcp->ack_seq);
		headers->tcp_flags = ((const u8 *)tcp)[13];
		headers->l4_len = tcp->doff * 4;
		headers->truncated = headers->l4_len < sizeof(*tcp) ||
				     headers->len < headers->l4 + headers->l4_len ||
				     !pskb_may_pull(skb, headers->l4 + headers->l4_len);
	}
	return true;
}

/**
 * m2m_measure - how many packets of what length this one is on the wire
 * @skb: the packet
 * @headers: its headers
 * @hook: where it is met
 * @mtu: of the next link, 0: not known
 * @wire: the answer
 *
 * What leaves the host's own stack is met before it is fragmented. Its parts are counted, as the
 * next host does.
 */
void m2m_measure(const struct sk_buff *skb, const struct m2m_headers *headers, u8 hook, u32 mtu,
		 struct m2m_wire *wire)
{
	u32 head = headers->l4 + headers->l4_len, size = skb_shinfo(skb)->gso_size;

	wire->packets = 1;
	wire->bytes = headers->len;
	wire->longest = headers->len;
	if (size) {
		u32 packets = skb_shinfo(skb)->gso_segs;

		if (headers->len <= head + size)
			return;
		if (!packets) /* a burst from outside the kernel's trust (tun, virtio) */
			packets = DIV_ROUND_UP(headers->len - head, size);
		wire->packets = packets;
		wire->bytes += (packets - 1) * head;
		wire->longest = head + size;
		return;
	}
	if (hook != M2M_HOOK_OUT || !headers->fragmentable)
		return;
	/* What has been put together here is taken apart as it came. */
	mtu = min_not_zero(mtu, (u32)IPCB(skb)->frag_max_size);
	if (mtu >= IPV4_MIN_MTU && headers->len > mtu) {
		u32 part = (mtu - headers->l4) & ~7u;

		wire->packets = DIV_ROUND_UP(headers->len - headers->l4, part);
		wire->bytes += (wire->packets - 1) * headers->l4;
		wire->longest = headers->l4 + part;
	}
}
