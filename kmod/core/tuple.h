/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Flows and the keys of the translation table.
 *
 * Addresses are 16 bytes in network order, IPv4 mapped into ::ffff:0:0/96 (RFC 4291 2.5.5.2), so
 * that one layout serves both families. m2m.protocol.flow.Flow.pack() makes struct m2m_tuple.
 *
 * Only the table of IPv4 flows leaves the prefixes out (struct m2m_key4): its size is what looking
 * up one among many costs. IPv6 can have a table of its own beside it, with keys as wide as these.
 */
#ifndef M2M_CORE_TUPLE_H
#define M2M_CORE_TUPLE_H

#include "types.h"

struct m2m_addr {
	union {
		u8 byte[16];
		__be32 word[4];
		u64 quad[2]; /* network order, for comparing and hashing only */
	};
};

enum m2m_hook {
	M2M_HOOK_IN = 0,  /* entering the host from a network */
	M2M_HOOK_OUT = 1, /* leaving the host, after its own stack */
};

struct m2m_tuple {
	struct m2m_addr src;
	struct m2m_addr dst;
	__be16 sport;
	__be16 dport;
	u8 proto;
	u8 hook; /* enum m2m_hook in a key, zero in a bare flow */
	u8 zero[2];
};

struct m2m_key {
	struct m2m_tuple tuple;
};

_Static_assert(sizeof(struct m2m_key) == 40, "Flow.pack()");

/* The same for IPv4 alone, as it lies in the table. */
struct m2m_key4 {
	__be32 src;
	__be32 dst;
	__be16 sport;
	__be16 dport;
	u8 proto;
	u8 hook;
	u8 zero[2];
};

_Static_assert(sizeof(struct m2m_key4) == 16, "m2m.datapath.layout.narrow()");

#define M2M_PROTO_TCP 6
#define M2M_PROTO_UDP 17

#define M2M_V4_PREFIX_WORD ((__be32)m2m_swap32(0x0000ffffu))

m2m_inline void m2m_addr_from_v4(struct m2m_addr *addr, __be32 v4)
{
	addr->quad[0] = 0;
	addr->word[2] = M2M_V4_PREFIX_WORD;
	addr->word[3] = v4;
}

m2m_inline int m2m_addr_equal(const struct m2m_addr *a, const struct m2m_addr *b)
{
	return a->quad[0] == b->quad[0] && a->quad[1] == b->quad[1];
}

/* Order of two addresses as 128-bit numbers: negative, zero or positive. */
m2m_inline int m2m_addr_compare(const struct m2m_addr *a, const struct m2m_addr *b)
{
	u64 high_a = m2m_swap64(a->quad[0]), high_b = m2m_swap64(b->quad[0]);
	u64 low_a = m2m_swap64(a->quad[1]), low_b = m2m_swap64(b->quad[1]);

	if (high_a != high_b)
		return high_a < high_b ? -1 : 1;
	if (low_a != low_b)
		return low_a < low_b ? -1 : 1;
	return 0;
}

m2m_inline void m2m_key_v4(struct m2m_key *key, u8 hook, u8 proto, __be32 src, __be16 sport,
			   __be32 dst, __be16 dport)
{
	m2m_addr_from_v4(&key->tuple.src, src);
	m2m_addr_from_v4(&key->tuple.dst, dst);
	key->tuple.sport = sport;
	key->tuple.dport = dport;
	key->tuple.proto = proto;
	key->tuple.hook = hook;
	key->tuple.zero[0] = 0;
	key->tuple.zero[1] = 0;
}

/* The table's form of a key whose addresses are IPv4's, and back. */
m2m_inline void m2m_key_narrow(struct m2m_key4 *narrow, const struct m2m_key *key)
{
	narrow->src = key->tuple.src.word[3];
	narrow->dst = key->tuple.dst.word[3];
	narrow->sport = key->tuple.sport;
	narrow->dport = key->tuple.dport;
	narrow->proto = key->tuple.proto;
	narrow->hook = key->tuple.hook;
	narrow->zero[0] = 0;
	narrow->zero[1] = 0;
}

m2m_inline void m2m_key_widen(struct m2m_key *key, const struct m2m_key4 *narrow)
{
	m2m_key_v4(key, narrow->hook, narrow->proto, narrow->src, narrow->sport, narrow->dst,
		   narrow->dport);
}

/*
 * A short hash of a key, kept inside its entry. Preallocated tables recycle an element at once
 * after its deletion, even under a reader that still holds a pointer to it: the reader copies
 * what it needs and then compares this tag with that of the key it asked for.
 * Odd constants, one per 8 bytes in which keys of one table differ; never 0, the tag of an unused
 * element.
 */
m2m_inline u16 m2m_key_tag(const struct m2m_key *key)
{
	const struct m2m_tuple *t = &key->tuple;
	u64 last = (u64)t->sport | (u64)t->dport << 16 | (u64)t->proto << 32 | (u64)t->hook << 40;
	u64 mix = t->src.quad[1] * 0xc2b2ae3d27d4eb4full ^
		  t->dst.quad[1] * 0xd6e8feb86659fd93ull ^ last * 0xa0761d6478bd642full;

	return (u16)(mix >> 48) | 1u;
}

#endif /* M2M_CORE_TUPLE_H */
