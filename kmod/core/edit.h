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
	struct m2m_addr src;
	struct m2m_addr dst;
	struct m2m_addr next_hop;
	__be16 sport;
	__be16 dport;
	u16 addr_diff;
	u16 port_diff;
	u16 mss;
	u16 mtu;
	u32 ifindex;
	u32 last_seen;
	u8 role;
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
	return *(const volatile u32 *)&entry->tag == m2m_key_tag(key);
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
		if (now - edit->last_seen > M2M_REFUSAL_TICKS)
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
