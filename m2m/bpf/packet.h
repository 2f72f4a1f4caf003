/* SPDX-License-Identifier: GPL-2.0 */
/* A packet at a tc hook: which flow it is of, and what its translation must know. */
#ifndef M2M_BPF_PACKET_H
#define M2M_BPF_PACKET_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "core/core.h"

#define M2M_L3 ETH_HLEN /* the loader attaches to Ethernet devices only */

#define M2M_IP_MORE_FRAGMENTS 0x2000
#define M2M_IP_OFFSET 0x1fff

#define M2M_TCP_FIN 0x01
#define M2M_TCP_SYN 0x02
#define M2M_TCP_RST 0x04
#define M2M_TCP_ACK 0x10

struct m2m_headers {
	__be32 saddr;
	__be32 daddr;
	__be16 sport; /* zero in later fragments */
	__be16 dport;
	u32 l4;	     /* offset of the transport header in the frame */
	u32 len;     /* IP total length */
	u32 l4_len;  /* of the transport header with its options */
	u32 seq;     /* TCP, host order */
	u32 ack;
	u16 ip_check;
	u16 ip_id;
	u8 ttl;
	u8 proto;
	u8 tcp_flags;
	u8 first_fragment; /* of several */
	u8 later_fragment; /* carries no ports */
	u8 truncated;	   /* ports are there, the rest of the transport header is not */
};

/* Make the first bytes of the packet readable in place; false when it is not that long. */
static __always_inline int m2m_reach(struct __sk_buff *skb, u32 bytes)
{
	if ((void *)(long)skb->data + bytes <= (void *)(long)skb->data_end)
		return 1;
	return bytes <= skb->len && !bpf_skb_pull_data(skb, bytes);
}

/*
 * Take an IPv4 TCP or UDP packet apart. False for everything else, which is none of our business:
 * other protocols, tagged frames of VLANs whose own devices have their own programs, and what is
 * too short to name a flow (the stack throws that away, and counts it).
 */
static __always_inline int m2m_parse(struct __sk_buff *skb, struct m2m_headers *headers)
{
	void *data, *end;
	struct iphdr *ip;
	struct tcphdr *tcp;
	struct udphdr *udp;
	u32 ip_len, l4;
	u16 offset;
	u8 proto;

	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_present)
		return 0;
	if (!m2m_reach(skb, M2M_L3 + sizeof(*ip) + sizeof(*udp)))
		return 0;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	ip = data + M2M_L3;
	if ((void *)(ip + 1) > end)
		return 0;
	proto = ip->protocol;
	if (ip->version != 4 || (proto != M2M_PROTO_TCP && proto != M2M_PROTO_UDP))
		return 0;
	ip_len = ip->ihl * 4u;
	if (ip_len < sizeof(*ip))
		return 0;
	headers->saddr = ip->saddr;
	headers->daddr = ip->daddr;
	headers->sport = 0;
	headers->dport = 0;
	headers->proto = proto;
	offset = bpf_ntohs(ip->frag_off);
	l4 = M2M_L3 + ip_len;
	/* The total length of a burst beyond 64 KiB (BIG TCP) does not fit and is sent as 0. */
	headers->len = ip->tot_len ? bpf_ntohs(ip->tot_len) : skb->len - M2M_L3;
	headers->ip_check = ip->check;
	headers->ip_id = ip->id;
	headers->ttl = ip->ttl;
	headers->l4 = l4;
	headers->l4_len = sizeof(*udp);
	headers->seq = 0;
	headers->ack = 0;
	headers->tcp_flags = 0;
	headers->truncated = 0;
	headers->later_fragment = (offset & M2M_IP_OFFSET) != 0;
	headers->first_fragment = !headers->later_fragment && (offset & M2M_IP_MORE_FRAGMENTS);

	if (!headers->later_fragment) {
		u32 need = proto == M2M_PROTO_TCP ? sizeof(*tcp) : sizeof(*udp);

		headers->truncated = headers->len < ip_len + need;
		if (headers->truncated || !m2m_reach(skb, l4 + need)) {
			headers->truncated = 1;
			need = sizeof(*udp);
			if (!m2m_reach(skb, l4 + need))
				return 0;
		}
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		udp = data + (l4 & 0x7f);
		if ((void *)(udp + 1) > end)
			return 0;
		headers->sport = udp->source;
		headers->dport = udp->dest;
		tcp = (void *)udp;
		if (proto == M2M_PROTO_TCP && !headers->truncated && (void *)(tcp + 1) <= end) {
			headers->seq = bpf_ntohl(tcp->seq);
			headers->ack = bpf_ntohl(tcp->ack_seq);
			headers->tcp_flags = ((u8 *)tcp)[13];
			headers->l4_len = tcp->doff * 4u;
			if (headers->l4_len < sizeof(*tcp) ||
			    headers->len < ip_len + headers->l4_len)
				headers->truncated = 1;
		}
	}
	return 1;
}

static __always_inline void m2m_key_of(struct m2m_key *key, u8 hook,
				       const struct m2m_headers *headers)
{
	m2m_key_v4(key, hook, headers->proto, headers->saddr, headers->sport, headers->daddr,
		   headers->dport);
}

/* TCP: octets behind the headers, as the IP header counts them. */
static __always_inline u32 m2m_payload(const struct m2m_headers *headers)
{
	return headers->len - (headers->l4 - M2M_L3) - headers->l4_len;
}

/* TCP: one past the last sequence number the packet takes. */
static __always_inline u32 m2m_end_of(const struct m2m_headers *headers)
{
	return m2m_seq_end(headers->seq, m2m_payload(headers),
			   headers->tcp_flags & M2M_TCP_SYN, headers->tcp_flags & M2M_TCP_FIN);
}

/* How many packets of what length this one is on the wire, once cut up by the device. */
struct m2m_wire {
	u32 packets;
	u32 bytes;
	u32 longest;
};

static __always_inline void m2m_measure(struct __sk_buff *skb, const struct m2m_headers *headers,
					struct m2m_wire *wire)
{
	u32 size = skb->gso_size, head = headers->l4 - M2M_L3 + headers->l4_len;

	wire->packets = 1;
	wire->bytes = headers->len;
	wire->longest = headers->len;
	if (size && headers->len > head + size) {
		u32 packets = skb->gso_segs;

		if (!packets) /* a burst from outside the kernel's trust (tun, virtio) */
			packets = (headers->len - head + size - 1) / size;
		wire->packets = packets;
		wire->bytes += (packets - 1) * head;
		wire->longest = head + size;
	}
}

#endif /* M2M_BPF_PACKET_H */
