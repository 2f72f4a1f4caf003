/* SPDX-License-Identifier: GPL-2.0 */
/*
 * One row of the translation table: what happens to the packets that match its key.
 *
 * 88 bytes on purpose: with the 16 bytes of the key and the 48 a kernel hash element costs, the
 * look-up of one among many touches few cache lines, and the two entries of a session stay below
 * 400 bytes of kernel memory. Addresses are IPv4's, as those of the table's keys (struct m2m_key4).
 * m2m.datapath.layout packs the same layout in Python.
 */
#ifndef M2M_CORE_ENTRY_H
#define M2M_CORE_ENTRY_H

#include "checksum.h"
#include "sequence.h"
#include "splice.h"
#include "tuple.h"

enum m2m_action {
	M2M_DELIVER = 0, /* on to the host's own stack */
	M2M_SEND = 1,	 /* to the next hop */
	M2M_PASS = 2,	 /* nothing is rewritten: the policy failed open */
	M2M_DROP = 3,	 /* the policy failed closed */
};

enum m2m_toward {
	M2M_RIGHT = 0, /* the server */
	M2M_LEFT = 1,  /* the client */
};

enum m2m_position {
	M2M_CLIENT = 0,
	M2M_TAP = 1,
	M2M_INLINE = 2,
	M2M_SERVER = 3,
	M2M_PROXY = 4, /* in place of the server, with connections of its own */
};

/*
 * What the first packet of a session bears in skb->mark when it is delivered at M2M_PROXY: by it, and by
 * nothing else, a rule of netfilter leads it to the port where the proxy listens.
 */
#define M2M_PROXY_MARK 0x4d325058u

/* entry->flags: what has passed. Written by whoever carries packets. */
#define M2M_SEEN_FIN 0x01
#define M2M_SEEN_RST 0x02
#define M2M_SEEN_SEQ 0x04 /* max_seq holds a number */
#define M2M_SEEN_ACK 0x08 /* max_ack holds one */
#define M2M_SEEN 0x0f
/* ... and, written by the agent: there is a splice beside the entry (docs/splicing.md) */
#define M2M_SPLICED 0x10

/*
 * entry->role: action, toward, position; and marks that the sweeper and the agent set while packets
 * pass (m2m_mark).
 */
#define M2M_ROLE(action, toward, position) ((u8)((action) | (toward) << 2 | (position) << 3))
#define M2M_ROLE_ACTION(role) ((role) & 3)
#define M2M_ROLE_TOWARD(role) ((role) >> 2 & 1)
#define M2M_ROLE_POSITION(role) ((role) >> 3 & 7)
#define M2M_ROLE_CHANGING 0x40 /* there is more to it: a record in `changes` (m2m/bpf/change.h) */
#define M2M_ROLE_REPORTED 0x80 /* the agent has been told that this session is over */

/* Time in entries: CLOCK_MONOTONIC_COARSE in units of 2^20 ns, wrapping after 52 days. */
#define M2M_TICK_SHIFT 20
#define M2M_TICKS(seconds) ((u32)((seconds) * 1000000000ull >> M2M_TICK_SHIFT))

/*
 * Ticks since an entry was last seen. A time that is ahead of now is not long ago but just now: a
 * packet passed while the sweeper ran, or clocks of different fineness were read.
 */
m2m_inline u32 m2m_ticks_since(u32 last_seen, u32 now)
{
	u32 ticks = now - last_seen;

	return ticks & 0x80000000u ? 0 : ticks;
}

/* How long a refused flow (action M2M_DROP) stays refused, from its installation. */
#define M2M_REFUSAL_TICKS M2M_TICKS(1)

struct m2m_entry {
	/*
	 * m2m_key_tag() of the entry's own key. First, because elements are filled front to
	 * back: who sees any part of a new entry then sees its tag too.
	 *
	 * What every packet needs stands together, next to the key: with many entries the
	 * cache lines fetched are what a look-up costs.
	 */
	u16 tag;
	u16 chain;
	u32 ifindex; /* where M2M_SEND leaves; 0: no next hop is known */
	u8 role;
	u8 flags;
	u16 mss; /* clamp of the option in SYN segments, 0: leave it */
	u16 mtu; /* of the next link, 0: no limit */
	u16 addr_diff; /* checksum difference of the addresses, see m2m_entry_seal() */
	__be32 src; /* the new header */
	__be32 dst;
	__be16 sport;
	__be16 dport;
	__be32 next_hop;
	u32 last_seen; /* ticks; of the last packet, or of the installation */
	u32 max_seq; /* m2m_seq_end(), the largest, left of a splice; its first value is the ISN + 1 */
	u32 max_ack; /* the largest acknowledgement number, likewise */
	u32 generation;
	u64 packets; /* a GSO packet counts as its segments */
	u64 bytes;   /* IP total length of those */

	u64 session; /* 0: M2M_PASS and M2M_DROP */
	__be32 super_src; /* the supersession, in direction client to server */
	__be32 super_dst;
	__be16 super_sport;
	__be16 super_dport;
	u32 zero;
};

_Static_assert(sizeof(struct m2m_entry) == 88, "memory budget; packed in Python");

/* Fill in what follows from the key and the rest; to be called before an entry is inserted. */
m2m_inline void m2m_entry_seal(const struct m2m_key *key, struct m2m_entry *entry)
{
	entry->tag = m2m_key_tag(key);
	entry->addr_diff = m2m_csum_diff_addrs(key->tuple.src.word[3], entry->src,
					       key->tuple.dst.word[3], entry->dst);
}

/*
 * What counts of a packet's numbers, which is what they are to the left of the splice: of what
 * travels to the left, those by which it leaves.
 */
m2m_inline void m2m_left_numbers(const struct m2m_splice *splice, u8 role, u32 *seq, u32 *ack)
{
	if (M2M_ROLE_TOWARD(role) == M2M_LEFT) {
		*seq += splice->seq[M2M_LEFT];
		*ack -= splice->seq[M2M_RIGHT];
	}
}

m2m_inline u16 m2m_entry_port_diff(const struct m2m_key *key, const struct m2m_entry *entry)
{
	return m2m_csum_diff_ports(key->tuple.sport, entry->sport, key->tuple.dport, entry->dport);
}

#endif /* M2M_CORE_ENTRY_H */
