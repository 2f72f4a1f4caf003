/* SPDX-License-Identifier: GPL-2.0 */
/*
 * As much of the kernel as kmod/packet.c, rewrite.c and split.c need, in ordinary memory. Packets are
 * in one piece, and their memory ends where they do, so that a sanitizer sees each octet too far.
 */
#ifndef M2M_TEST_SHIM_H
#define M2M_TEST_SHIM_H

#include <arpa/inet.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <linux/icmp.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/types.h>
#include <linux/udp.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s32 s32;
#define M2M_TYPES_SHORT

#define __force
#define __rcu
#define __percpu
#define likely(x) (x)
#define unlikely(x) (x)
#define READ_ONCE(x) (x)
#define min(a, b) ((a) < (b) ? (a) : (b))
#define min_t(type, a, b) min((type)(a), (type)(b))
#define min_not_zero(a, b) (!(a) ? (b) : !(b) ? (a) : min(a, b))
#define DIV_ROUND_UP(n, d) (((n) + (d) - 1) / (d))
#define IP_DF 0x4000
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff
#define IPV4_MIN_MTU 68
#define TCPOPT_NOP 1
#define TCPOPT_EOL 0
#define TCPOPT_MSS 2
#define TCPOLEN_MSS 4
#define GFP_ATOMIC 0
#define __GFP_NOWARN 0
#define IS_ERR(p) ((unsigned long)(p) > -4096ul)
#define ERR_PTR(e) ((void *)(long)(e))
#define PTR_ERR(p) ((long)(p))

typedef int gfp_t;
typedef struct { int unused; } spinlock_t, atomic_t;
struct mutex { int unused; };
struct rcu_head { int unused; };
struct hlist_node { void *unused; };
struct hlist_head { void *unused; };
struct list_head { void *unused; };
struct work_struct { int unused; };
struct delayed_work { struct work_struct work; };
struct nf_hook_ops { int unused; };
struct nf_hook_state;
struct net;
struct rtable;
struct netlink_callback;

#define this_cpu_add(where, what) ((void)((where) + (what)))
static inline u64 ktime_get_ns(void) { return 0; }
static inline u64 get_jiffies_64(void) { return 0; }

/* -- packets --------------------------------------------------------------------------------- */

enum { CHECKSUM_NONE, CHECKSUM_UNNECESSARY, CHECKSUM_COMPLETE, CHECKSUM_PARTIAL };
#define SKB_GSO_UDP_TUNNEL_CSUM 0x800

struct skb_shared_info { u16 gso_size, gso_segs; u32 gso_type; };
struct inet_skb_parm { u16 frag_max_size; };

struct sk_buff {
	u8 *head, *data;
	u32 len, data_len, room, truesize;
	u8 ip_summed, pp_recycle, ignore_df;
	__wsum csum;
	u16 csum_start, csum_offset, mac_header, network, transport;
	struct skb_shared_info shared;
	struct inet_skb_parm cb;
};

#define IPCB(skb) (&(skb)->cb)
#define skb_shinfo(skb) (&((struct sk_buff *)(skb))->shared)
#define ip_hdr(skb) ((struct iphdr *)(skb)->data)

static inline bool pskb_may_pull(const struct sk_buff *skb, u32 n) { return n <= skb->len; }
static inline int skb_ensure_writable(struct sk_buff *skb, u32 n) { return n <= skb->len ? 0 : -ENOMEM; }
static inline bool skb_is_gso(const struct sk_buff *skb) { return skb->shared.gso_size; }
static inline u32 skb_headroom(const struct sk_buff *skb) { return skb->data - skb->head; }
static inline u32 skb_headlen(const struct sk_buff *skb) { return skb->len; }
static inline int skb_checksum_start_offset(const struct sk_buff *skb)
{
	return skb->csum_start - (int)skb_headroom(skb);
}
static inline bool skb_has_frag_list(const struct sk_buff *skb) { (void)skb; return false; }
static inline int skb_linearize(struct sk_buff *skb) { (void)skb; return 0; }
static inline int skb_unclone(struct sk_buff *skb, gfp_t gfp) { (void)skb; (void)gfp; return 0; }

static inline struct sk_buff *alloc_skb(u32 size, gfp_t gfp)
{
	struct sk_buff *skb = calloc(1, sizeof(*skb));

	(void)gfp;
	skb->head = skb->data = malloc(size ? size : 1);
	skb->room = size;
	return skb;
}

static inline void kfree_skb(struct sk_buff *skb)
{
	free(skb->head);
	free(skb);
}

static inline void skb_copy_header(struct sk_buff *made, const struct sk_buff *old)
{
	made->ip_summed = old->ip_summed;
	made->csum = old->csum;
	made->csum_start = old->csum_start;
	made->csum_offset = old->csum_offset;
	made->shared = old->shared;
	made->cb = old->cb;
}

static inline void skb_reserve(struct sk_buff *skb, u32 n) { skb->data += n; }
static inline void *skb_push(struct sk_buff *skb, u32 n)
{
	skb->data -= n;
	skb->len += n;
	if (skb->data < skb->head)
		abort();
	return skb->data;
}
static inline void *skb_put(struct sk_buff *skb, u32 n)
{
	u8 *end = skb->data + skb->len;

	skb->len += n;
	if (end + n > skb->head + skb->room)
		abort();
	return end;
}
static inline void skb_reset_network_header(struct sk_buff *skb) { skb->network = skb->data - skb->head; }
static inline void skb_set_transport_header(struct sk_buff *skb, int at)
{
	skb->transport = skb->data - skb->head + at;
}
static inline void skb_split(struct sk_buff *skb, struct sk_buff *back, u32 at)
{
	memcpy(skb_put(back, skb->len - at), skb->data + at, skb->len - at);
	skb->len = at;
}

/* -- checksums ------------------------------------------------------------------------------- */

static inline u32 m2m_test_sum(const void *data, u32 length, u64 sum)
{
	const u8 *at = data;
	u16 word;

	for (; length > 1; length -= 2, at += 2) {
		memcpy(&word, at, 2);
		sum += word;
	}
	if (length) {
		word = 0;
		memcpy(&word, at, 1);
		sum += word;
	}
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}
static inline __wsum csum_add(__wsum a, __wsum b)
{
	u64 sum = (u64)a + b;

	return (u32)sum + (u32)(sum >> 32);
}
static inline __wsum csum_sub(__wsum a, __wsum b) { return csum_add(a, ~b); }
static inline u16 m2m_test_fold(__wsum sum) { return m2m_test_sum(&sum, 4, 0); }
static inline __wsum skb_checksum(const struct sk_buff *skb, u32 at, u32 length, __wsum sum)
{
	return csum_add(sum, m2m_test_sum(skb->data + at, length, 0));
}
static inline u16 csum_tcpudp_magic(__be32 src, __be32 dst, u32 length, u8 proto, __wsum sum)
{
	__be16 rest[2] = { htons(proto), htons((u16)length) };
	u64 all = m2m_test_fold(sum) + m2m_test_sum(&src, 4, 0) + m2m_test_sum(&dst, 4, 0) +
		  m2m_test_sum(rest, 4, 0);

	return ~m2m_test_sum(&all, 8, 0);
}
static inline void ip_send_check(struct iphdr *ip)
{
	ip->check = 0;
	ip->check = ~m2m_test_sum(ip, ip->ihl * 4, 0);
}
static inline void csum_replace4(__sum16 *check, __be32 from, __be32 to)
{
	__wsum sum = csum_add(csum_sub((u16)~*check, from), to);

	*check = ~m2m_test_fold(sum);
}
static inline int ip_decrease_ttl(struct iphdr *ip)
{
	u32 check = ip->check;

	check += htons(0x0100);
	ip->check = (__sum16)(check + (check >= 0xFFFF));
	return --ip->ttl;
}
static inline int pskb_trim_rcsum(struct sk_buff *skb, u32 length)
{
	if (length > skb->len)
		return 0;
	if (length < skb->len && skb->ip_summed == CHECKSUM_COMPLETE)
		skb->ip_summed = CHECKSUM_NONE;
	skb->len = length;
	return 0;
}

#define swab16(x) __builtin_bswap16(x)

#endif /* M2M_TEST_SHIM_H */
