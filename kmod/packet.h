/* SPDX-License-Identifier: GPL-2.0 */
/* What is read out of packets (packet.c). */
#ifndef M2M_PACKET_H
#define M2M_PACKET_H

#include <linux/ip.h>
#include <linux/skbuff.h>
#include <linux/tcp.h>
#include <net/ip.h>

#include "core/core.h"

/**
 * struct m2m_headers - a TCP or UDP packet taken apart
 * @saddr: source address
 * @daddr: destination address
 * @sport: zero in later fragments
 * @dport: zero in later fragments
 * @l4: offset of the transport header behind the beginning of the IP header
 * @l4_len: length of the transport header with its options
 * @len: IP total length
 * @seq: TCP, host order
 * @ack: TCP, host order
 * @id: of the IP header
 * @ttl: of the IP header
 * @proto: TCP or UDP
 * @tcp_flags: the header's octet of that name
 * @fragmentable: routers and the stack may cut it up
 * @first_fragment: of several
 * @later_fragment: carries no ports
 * @truncated: ports are there, the rest of the transport header is not
 */
struct m2m_headers {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	u32 l4;
	u32 l4_len;
	u32 len;
	u32 seq;
	u32 ack;
	__be16 id;
	u8 ttl;
	u8 proto;
	u8 tcp_flags;
	bool fragmentable;
	bool first_fragment;
	bool later_fragment;
	bool truncated;
};

#define M2M_TCP_FIN 0x01
#define M2M_TCP_SYN 0x02
#define M2M_TCP_RST 0x04
#define M2M_TCP_ACK 0x10
#define M2M_TCP_ECE 0x40
#define M2M_TCP_CWR 0x80

/**
 * struct m2m_wire - what a packet is on the wire, once a device or the stack has cut it up
 * @packets: how many
 * @bytes: the sum of their IP total lengths
 * @longest: IP total length of the largest
 */
struct m2m_wire {
	u32 packets;
	u32 bytes;
	u32 longest;
};

bool m2m_parse(struct sk_buff *skb, struct m2m_headers *headers);
void m2m_measure(const struct sk_buff *skb, const struct m2m_headers *headers, u8 hook, u32 mtu,
		 struct m2m_wire *wire);

/* TCP: octets behind the headers. */
static inline u32 m2m_payload(const struct m2m_headers *headers)
{
	return headers->len - headers->l4 - headers->l4_len;
}

/* TCP: one past the last sequence number the packet takes. */
static inline u32 m2m_end_of(const struct m2m_headers *headers)
{
	return m2m_seq_end(headers->seq, m2m_payload(headers), headers->tcp_flags & M2M_TCP_SYN,
			   headers->tcp_flags & M2M_TCP_FIN);
}

/* Whether a TCP segment with these flags asks for a connection. */
static inline bool m2m_is_syn(u8 tcp_flags)
{
	return (tcp_flags & (M2M_TCP_SYN | M2M_TCP_ACK)) == M2M_TCP_SYN;
}

/* Whether a session can begin with it. */
static inline bool m2m_opens(const struct m2m_headers *headers)
{
	if (headers->later_fragment || headers->truncated)
		return false;
	return headers->proto == M2M_PROTO_UDP || m2m_is_syn(headers->tcp_flags);
}

/*
 * The ports of a packet, and all else that says which row it meets, where they are at hand: which they
 * almost always are. %NULL: m2m_parse() is to be asked.
 */
static inline const __be16 *m2m_ports_of(const struct sk_buff *skb)
{
	const struct iphdr *ip = ip_hdr(skb);
	u32 l4 = ip->ihl * 4;

	if ((ip->protocol != M2M_PROTO_TCP && ip->protocol != M2M_PROTO_UDP) ||
	    ip->frag_off & htons(IP_OFFSET) || skb_headlen(skb) < l4 + sizeof(struct tcphdr))
		return NULL;
	return (const void *)ip + l4;
}

static inline void m2m_key4_of(struct m2m_key4 *key, u8 hook, const struct m2m_headers *headers)
{
	*key = (struct m2m_key4){
		.src = headers->saddr,
		.dst = headers->daddr,
		.sport = headers->sport,
		.dport = headers->dport,
		.proto = headers->proto,
		.hook = hook,
	};
}

#endif /* M2M_PACKET_H */
