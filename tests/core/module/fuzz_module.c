/* SPDX-License-Identifier: GPL-2.0 */
/*
 * libFuzzer target: the module's own files that touch octets of packets, under ASan and UBSan. Any
 * packet may be taken apart; one that was right must be right after each edit and in both pieces.
 */
#include "shim.h"

#include "packet.c"
#include "rewrite.c"
#include "split.c"

#include "apply.h"

#define CHECK(what)                                                                           \
	do {                                                                                  \
		if (!(what))                                                                  \
			__builtin_trap();                                                     \
	} while (0)

static struct sk_buff *packet_of(const u8 *data, size_t size, u32 headroom)
{
	struct sk_buff *skb = alloc_skb(headroom + size, 0);

	skb_reserve(skb, headroom);
	memcpy(skb_put(skb, size), data, size);
	return skb;
}

/* The sum of pseudo header and segment; 0xffff when the checksum is right. */
static u16 segment_sum(const struct sk_buff *skb, u32 l4, u32 l4_len)
{
	const struct iphdr *ip = ip_hdr(skb);

	return (u16)~csum_tcpudp_magic(ip->saddr, ip->daddr, l4_len, ip->protocol,
				       skb_checksum(skb, l4, l4_len, 0));
}

static u16 pseudo_sum(const struct sk_buff *skb, u32 l4_len)
{
	const struct iphdr *ip = ip_hdr(skb);

	return (u16)~csum_tcpudp_magic(ip->saddr, ip->daddr, l4_len, ip->protocol, 0);
}

static u16 *check_of(struct sk_buff *skb, const struct m2m_headers *headers)
{
	return (u16 *)(skb->data + headers->l4 + (headers->proto == M2M_PROTO_TCP ? 16 : 6));
}

/* Zero has two spellings. */
static bool same_sum(u16 a, u16 b)
{
	return a == b || ((a == 0 || a == 0xffff) && (b == 0 || b == 0xffff));
}

/* Make lengths and checksums right, of the kind that is asked for. */
static void make_right(struct sk_buff *skb, const struct m2m_headers *headers, u8 kind)
{
	u16 *check = check_of(skb, headers);

	skb->ip_summed = kind;
	if (kind == CHECKSUM_PARTIAL) {
		*check = pseudo_sum(skb, skb->len - headers->l4);
		skb->csum_start = skb_headroom(skb) + headers->l4;
		skb->csum_offset = (u8 *)check - skb->data - headers->l4;
	} else {
		*check = 0;
		*check = (u16)~segment_sum(skb, headers->l4, skb->len - headers->l4);
		if (headers->proto == M2M_PROTO_UDP && !*check)
			*check = 0xffff;
	}
	ip_send_check(ip_hdr(skb));
	skb->csum = m2m_test_sum(skb->data, skb->len, 0);
}

static void is_right(struct sk_buff *skb, u32 l4, u8 proto)
{
	u32 l4_len = skb->len - l4;
	struct m2m_headers headers = { .l4 = l4, .proto = proto };

	CHECK(m2m_test_sum(skb->data, l4, 0) == 0xffff);
	if (skb->ip_summed == CHECKSUM_PARTIAL)
		CHECK(same_sum(*check_of(skb, &headers), pseudo_sum(skb, l4_len)));
	else
		CHECK(segment_sum(skb, l4, l4_len) == 0xffff);
	if (skb->ip_summed == CHECKSUM_COMPLETE)
		CHECK(same_sum(m2m_test_fold(skb->csum), m2m_test_sum(skb->data, skb->len, 0)));
}

static void edit_from(struct m2m_edit *edit, const struct m2m_headers *headers, const u8 *draw)
{
	struct m2m_entry entry = {};
	struct m2m_key key;

	m2m_key_v4(&key, M2M_HOOK_IN, headers->proto, headers->saddr, headers->sport,
		   headers->daddr, headers->dport);
	memcpy(&entry.src, draw, 4);
	memcpy(&entry.dst, draw + 4, 4);
	memcpy(&entry.sport, draw + 8, 2);
	memcpy(&entry.dport, draw + 10, 2);
	memcpy(&entry.mss, draw + 12, 2);
	entry.role = M2M_SEND;
	m2m_entry_seal(&key, &entry);
	CHECK(m2m_edit_of(edit, &key, &entry));
}

static void rewritten(struct sk_buff *skb, const struct m2m_headers *headers, const u8 *draw,
		      bool hop)
{
	struct sk_buff *other = packet_of(skb->data, skb->len, 0);
	struct m2m_edit edit;

	edit_from(&edit, headers, draw);
	if (headers->proto == M2M_PROTO_TCP && !(headers->tcp_flags & M2M_TCP_SYN)) {
		edit.spliced = draw[18] & 1;
		memcpy(&edit.splice, draw, sizeof(edit.splice));
	}
	if (!headers->ttl)
		hop = false;
	CHECK(!m2m_rewrite(skb, headers, &edit, hop));
	CHECK(ip_hdr(skb)->saddr == edit.src && ip_hdr(skb)->daddr == edit.dst);
	is_right(skb, headers->l4, headers->proto);
	/* The applier of the tests, which knows complete checksums only, comes to the same. */
	if (skb->ip_summed != CHECKSUM_PARTIAL) {
		m2m_apply(&edit, hop ? M2M_HOOK_IN : M2M_HOOK_OUT, other->data, other->len);
		if (edit.spliced)
			m2m_apply_splice(&edit.splice, M2M_RIGHT, other->data, other->len);
		CHECK(!memcmp(skb->data, other->data, skb->len));
	}
	kfree_skb(other);
}

static void split_in_two(struct sk_buff *skb, const struct m2m_headers *headers, u32 where,
			 u16 segment)
{
	u32 head = headers->l4 + headers->l4_len, payload = skb->len - head, cut;
	struct sk_buff *whole, *back, *made;
	struct m2m_headers parts;

	if (payload < 2)
		return;
	cut = 1 + where % (payload - 1);
	if (skb->ip_summed == CHECKSUM_PARTIAL && segment && segment < payload) {
		skb->shared.gso_size = segment;
		skb->shared.gso_segs = DIV_ROUND_UP(payload, segment);
	}
	whole = packet_of(skb->data, skb->len, 0);
	made = m2m_acknowledgement(skb, headers);
	CHECK(made && made->len == head && !made->shared.gso_size);
	is_right(made, headers->l4, M2M_PROTO_TCP);
	kfree_skb(made);
	back = m2m_split(skb, headers, headers->seq + cut);
	CHECK(!IS_ERR(back));
	is_right(skb, headers->l4, M2M_PROTO_TCP);
	is_right(back, headers->l4, M2M_PROTO_TCP);
	CHECK(skb->len == head + cut && back->len == head + payload - cut);
	CHECK(!memcmp(skb->data + head, whole->data + head, cut));
	CHECK(!memcmp(back->data + head, whole->data + head + cut, payload - cut));
	CHECK(m2m_parse(back, &parts) && parts.seq == headers->seq + cut);
	CHECK((parts.tcp_flags ^ headers->tcp_flags) == (headers->tcp_flags & M2M_TCP_CWR));
	CHECK(m2m_parse(skb, &parts) && parts.seq == headers->seq);
	CHECK((parts.tcp_flags ^ headers->tcp_flags) == (headers->tcp_flags & M2M_TCP_FIN));
	CHECK(!skb->shared.gso_size || skb->shared.gso_size < skb->len - head);
	CHECK(!back->shared.gso_size || back->shared.gso_size < back->len - head);
	kfree_skb(whole);
	kfree_skb(back);
}

/* An ICMP error that quotes the packet's beginning. */
static void quoted(const struct sk_buff *about, const struct m2m_headers *headers, u32 more,
		   const u8 *draw)
{
	u32 least = headers->l4 + 8, all = about->len, some = least + more % (all - least + 1);
	struct m2m_headers of = { .l4 = headers->l4, .proto = headers->proto };
	struct sk_buff *skb = alloc_skb(28 + some, 0);
	struct icmphdr *icmp;
	struct m2m_edit edit;
	struct m2m_headers back = {
		.saddr = headers->daddr, .daddr = headers->saddr,
		.sport = headers->dport, .dport = headers->sport, .proto = headers->proto,
	};
	struct iphdr *ip = skb_put(skb, 28 + some);

	memset(ip, 0, 28);
	ip->version = 4;
	ip->ihl = 5;
	ip->ttl = 9;
	ip->protocol = 1;
	memcpy(&ip->saddr, draw + 3, 4);
	memcpy(&ip->daddr, draw + 5, 4);
	memcpy(skb->data + 28, about->data, some);
	ip_send_check(ip);
	icmp = (void *)(skb->data + 20);
	icmp->type = 3;
	icmp->checksum = (u16)~m2m_test_sum(icmp, 8 + some, 0);
	edit_from(&edit, &back, draw);
	CHECK(!m2m_rewrite_quoted(skb, 20, &of, &edit, true));
	CHECK(m2m_test_sum(skb->data, 20, 0) == 0xffff && ip_hdr(skb)->ttl == 8);
	CHECK(m2m_test_sum(skb->data + 20, skb->len - 20, 0) == 0xffff);
	CHECK(m2m_test_sum(skb->data + 28, headers->l4, 0) == 0xffff);
	ip = (void *)(skb->data + 28);
	CHECK(ip->saddr == edit.dst && ip->daddr == edit.src);
	kfree_skb(skb);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	struct m2m_headers headers;
	const __be16 *ports;
	struct m2m_wire wire;
	struct sk_buff *skb;
	const u8 *draw = data;
	struct iphdr *ip;
	u8 kind;

	if (size < 20 + sizeof(*ip) || size > 2000)
		return 0;
	kind = draw[14] % 4;
	skb = packet_of(data + 20, size - 20, draw[15]);
	ports = m2m_ports_of(skb);
	if (m2m_parse(skb, &headers)) {
		/* What a glance tells is what reading it all does. */
		CHECK(!ports || (!headers.later_fragment && ports[0] == headers.sport &&
				 ports[1] == headers.dport));
		CHECK(!ports || headers.proto != M2M_PROTO_TCP || headers.truncated ||
		      m2m_opens(&headers) == m2m_is_syn(((const u8 *)ports)[13]));
		CHECK(headers.truncated || headers.later_fragment ||
		      headers.l4 + headers.l4_len <= skb->len);
		if (!headers.truncated)
			m2m_measure(skb, &headers, draw[16] & 1, draw[17] * 8, &wire);
	}
	/* A packet of that kind that is right. */
	ip = ip_hdr(skb);
	ip->version = 4;
	ip->tot_len = htons(skb->len);
	ip->frag_off = 0;
	if (m2m_parse(skb, &headers) && !headers.truncated) {
		make_right(skb, &headers, kind);
		if (kind != CHECKSUM_PARTIAL)
			quoted(skb, &headers, draw[16], draw);
		if (headers.proto == M2M_PROTO_TCP && draw[17] & 1)
			split_in_two(skb, &headers, draw[18], draw[19]);
		else
			rewritten(skb, &headers, draw, draw[17] & 2);
	}
	kfree_skb(skb);
	return 0;
}
