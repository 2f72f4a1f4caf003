// SPDX-License-Identifier: GPL-2.0
/*
 * Cutting TCP packets where one substream ends and the next begins (section 5.3 of the paper). Few
 * packets need it: those whose retransmission lies across the checkpoint, and those that wait but
 * acknowledge something. A burst stays a burst, a checksum that a device was to complete still is,
 * and a wrong one is not made right: such a packet is dropped.
 */
#include <linux/ip.h>
#include <linux/tcp.h>
#include <net/checksum.h>
#include <net/ip.h>

#include "module.h"

/* Whether what a packet carries can be trusted once it is in pieces. */
static bool is_whole(struct sk_buff *skb, const struct m2m_headers *headers)
{
	u32 length = headers->len - headers->l4;

	if (skb->ip_summed == CHECKSUM_PARTIAL || skb->ip_summed == CHECKSUM_UNNECESSARY)
		return true;
	return !csum_tcpudp_magic(headers->saddr, headers->daddr, length, IPPROTO_TCP,
				  skb_checksum(skb, headers->l4, length, 0));
}

/* Make headers agree with what a packet carries now. */
static void mend(struct sk_buff *skb, u32 l4, u32 l4_len, u32 id_step)
{
	u32 payload = skb->len - l4 - l4_len, size = skb_shinfo(skb)->gso_size;
	struct tcphdr *tcp = (void *)skb->data + l4;
	struct iphdr *ip = ip_hdr(skb);

	ip->tot_len = skb->len > 0xffff ? 0 : htons(skb->len); /* as BIG TCP has it */
	ip->id = htons(ntohs(ip->id) + id_step);
	ip_send_check(ip);
	if (size && payload <= size) {
		skb_shinfo(skb)->gso_size = 0;
		skb_shinfo(skb)->gso_segs = 0;
		skb_shinfo(skb)->gso_type = 0;
	} else if (size) {
		skb_shinfo(skb)->gso_segs = DIV_ROUND_UP(payload, size);
	}
	if (skb->ip_summed == CHECKSUM_PARTIAL) {
		tcp->check = ~csum_tcpudp_magic(ip->saddr, ip->daddr, skb->len - l4, IPPROTO_TCP,
						0);
		skb->csum_start = skb->data + l4 - skb->head;
		skb->csum_offset = offsetof(struct tcphdr, check);
		return;
	}
	tcp->check = 0;
	tcp->check = csum_tcpudp_magic(ip->saddr, ip->daddr, skb->len - l4, IPPROTO_TCP,
				       skb_checksum(skb, l4, skb->len - l4, 0));
	skb->ip_summed = CHECKSUM_NONE;
}

/* A packet with the headers of another, nothing behind them, and room for so much more. */
static struct sk_buff *headers_of(const struct sk_buff *skb, u32 head, u32 more)
{
	u32 room = skb_headroom(skb);
	struct sk_buff *made = alloc_skb(room + head + more, GFP_ATOMIC | __GFP_NOWARN);

	if (!made)
		return NULL;
	skb_copy_header(made, skb);
	skb_reserve(made, room + head);
	made->mac_header = (typeof(made->mac_header))~0U; /* none has been made yet, or counts */
	return made;
}

static void put_headers(struct sk_buff *made, const struct sk_buff *skb, u32 l4, u32 l4_len)
{
	memcpy(skb_push(made, l4 + l4_len), skb->data, l4 + l4_len);
	skb_reset_network_header(made);
	skb_set_transport_header(made, l4);
}

/**
 * m2m_split - cut a packet in two
 * @skb: keeps the part before
 * @headers: its headers, as they were
 * @number: the sequence number, within its payload
 *
 * Returns the part from @number on: %-EBADMSG when the packet was damaged, %-ENOMEM.
 */
struct sk_buff *m2m_split(struct sk_buff *skb, const struct m2m_headers *headers, u32 number)
{
	u32 head = headers->l4 + headers->l4_len, cut = head + number - headers->seq;
	u32 size = skb_shinfo(skb)->gso_size;
	struct sk_buff *back;
	struct tcphdr *tcp;

	if (pskb_trim_rcsum(skb, headers->len))
		return ERR_PTR(-ENOMEM);
	if (!is_whole(skb, headers))
		return ERR_PTR(-EBADMSG);
	/* Pages of a device's pool must go back to it, and only one packet knows that they are. */
	if (((skb_has_frag_list(skb) || skb->pp_recycle) && skb_linearize(skb)) ||
	    skb_unclone(skb, GFP_ATOMIC))
		return ERR_PTR(-ENOMEM);
	back = headers_of(skb, head, skb_headlen(skb) > cut ? skb_headlen(skb) - cut : 0);
	if (!back)
		return ERR_PTR(-ENOMEM);
	skb_split(skb, back, cut);
	back->truesize += back->data_len;
	put_headers(back, skb, headers->l4, headers->l4_len);
	tcp = (void *)back->data + headers->l4;
	tcp->seq = htonl(ntohl(tcp->seq) + number - headers->seq); /* left of a splice or not */
	tcp->cwr = 0;
	mend(back, headers->l4, headers->l4_len,
	     size ? DIV_ROUND_UP(cut - head, size) : 1);
	tcp = (void *)skb->data + headers->l4;
	tcp->fin = 0;
	mend(skb, headers->l4, headers->l4_len, 0);
	return back;
}

/**
 * m2m_acknowledgement - what a packet acknowledges, without its payload
 * @skb: the packet, left as it is
 * @headers: its headers
 *
 * At its own sequence number, beyond what the receiver has got: were it the next one, the receiver
 * would take over its timestamp, and discard what waits and is older (RFC 7323, 5.3). %NULL when
 * the packet was damaged, or there is no memory: a later one acknowledges as much.
 */
struct sk_buff *m2m_acknowledgement(struct sk_buff *skb, const struct m2m_headers *headers)
{
	struct sk_buff *made;
	u8 *tcp;

	if (skb->len < headers->len || !is_whole(skb, headers))
		return NULL;
	made = headers_of(skb, headers->l4 + headers->l4_len, 0);
	if (!made)
		return NULL;
	put_headers(made, skb, headers->l4, headers->l4_len);
	tcp = made->data + headers->l4;
	tcp[13] = M2M_TCP_ACK | (tcp[13] & M2M_TCP_ECE);
	skb_shinfo(made)->gso_size = 0;
	skb_shinfo(made)->gso_segs = 0;
	skb_shinfo(made)->gso_type = 0;
	mend(made, headers->l4, headers->l4_len, 0);
	return made;
}
