/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The translation itself, as arithmetic: what a packet's fate is under an entry, and which bytes
 * and checksum differences carry it out. Each datapath applies the edit with its kernel's helpers.
 */
#ifndef M2M_CORE_EDIT_H
#define M2M_CORE_EDIT_H

#include "entry.h"
#include "verdict.h"

/* What m2m_judge() must know of a packet. */
struct m2m_packet {
	u32 wire_len; /* IP total length of the largest packet it becomes on the wire */
	u8 hook;      /* enum m2m_hook */
	u8 ttl;
};

/* The part of an entry that one packet's translation needs, copied out of the table. */
struct m2m_edit {
	__be32 src;
	__be32 dst;
	__be32 next_hop;
	__be16 sport;
	__be16 dport;
	u16 addr_diff;
	u16 port_diff;
	u16 mss;
	u16 mtu;
	u32 ifindex;
	u32 last_seen;
	u8 role;
	u8 spliced; /* whether there is a splice, which is not in the entry */
	struct m2m_splice splice;
};

/*
 * Copy the edit out of an entry found under key; false when the element was recycled for another
 * key meanwhile, which counts as not found.
 */
m2m_inline int m2m_edit_of(struct m2m_edit *edit, const struct m2m_key *key,
			   const struct m2m_entry *entry)
{
	edit->src = entry->src;
	edit->dst = entry->dst;
	edit->next_hop = entry->next_hop;
	edit->sport = entry->sport;
	edit->dport = entry->dport;
	edit->addr_diff = entry->addr_diff;
	edit->port_diff = m2m_entry_port_diff(key, entry);
	edit->mss = entry->mss;
	edit->mtu = entry->mtu;
	edit->ifindex = entry->ifindex;
	edit->last_seen = entry->last_seen;
	edit->role = entry->role;
	edit->spliced = entry->flags & M2M_SPLICED;
	return *(const volatile u16 *)&entry->tag == m2m_key_tag(key);
}

/*
 * The checksum of the IP header after an edit, from that before; hop: its ttl, which is not 0,
 * loses one.
 */
m2m_inline u16 m2m_edit_ip_check(const struct m2m_edit *edit, u16 check, int hop)
{
	/* the ttl is the high byte of its word */
	u16 hop_diff = hop ? (u16)~m2m_swap16(0x0100) : 0;

	return m2m_csum_apply(check, m2m_csum_fold((u64)edit->addr_diff + hop_diff));
}

/*
 * The checksum of the transport header after an edit, from that before. A partial one (Linux:
 * CHECKSUM_PARTIAL, a device or the stack finishes it) holds the sum of the pseudo header alone,
 * not inverted: addresses are part of that, ports are not. UDP has two spellings of zero: 0 says
 * "no checksum", 0xffff is a sum that came out zero (RFC 768).
 */
m2m_inline u16 m2m_edit_transport_check(const struct m2m_edit *edit, u8 proto, u16 check,
					int partial)
{
	u16 changed;

	if (proto == M2M_PROTO_UDP && !check)
		return 0;
	if (partial)
		changed = m2m_csum_fold((u64)check + edit->addr_diff);
	else
		changed = m2m_csum_apply(check,
					 m2m_csum_fold((u64)edit->addr_diff + edit->port_diff));
	return proto == M2M_PROTO_UDP && !changed ? 0xffff : changed;
}

/*
 * The fate of a packet under an edit. *reason is set for M2M_VERDICT_DROP, and to M2M_PASSED
 * for a flow that is left alone; it is M2M_REASONS otherwise.
 *
 * Only what is sent on from one network to another loses a hop: a packet that leaves the host's
 * own stack has either begun here or was already counted by forwarding.
 */
m2m_inline enum m2m_verdict m2m_judge(const struct m2m_edit *edit, const struct m2m_packet *packet,
				      u32 now, enum m2m_reason *reason)
{
	*reason = M2M_REASONS;
	switch (M2M_ROLE_ACTION(edit->role)) {
	case M2M_DELIVER:
		return M2M_VERDICT_DELIVER;
	case M2M_PASS:
		*reason = M2M_PASSED;
		return M2M_VERDICT_PASS;
	case M2M_DROP:
		if (m2m_ticks_since(edit->last_seen, now) > M2M_REFUSAL_TICKS)
			return M2M_VERDICT_PASS;
		*reason = M2M_REFUSED;
		return M2M_VERDICT_DROP;
	}
	if (packet->hook == M2M_HOOK_IN && packet->ttl <= 1)
		*reason = M2M_TTL_EXPIRED;
	else if (!edit->ifindex)
		*reason = M2M_NO_NEIGHBOUR;
	else if (edit->mtu && packet->wire_len > edit->mtu)
		*reason = M2M_TOO_BIG;
	else
		return M2M_VERDICT_SEND;
	return M2M_VERDICT_DROP;
}

#endif /* M2M_CORE_EDIT_H */
