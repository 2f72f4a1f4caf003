/* SPDX-License-Identifier: GPL-2.0 */
/* What an entry learns from the packets that pass. */
#ifndef M2M_BPF_ACCOUNT_H
#define M2M_BPF_ACCOUNT_H

#include "maps.h"
#include "packet.h"

/*
 * Note what has passed. Counters are atomic: the two hooks of a busy host run on several CPUs for
 * one flow (retransmissions by timer, steering by the device), and uncontended atomics cost a few
 * nanoseconds. The rest is marks of which the last or the largest counts. An element recycled for
 * another flow just now may get one packet too many counted; its translation is safe
 * (m2m_edit_of).
 */
static __always_inline void m2m_account(struct m2m_entry *entry, const struct m2m_key *key,
					const struct m2m_headers *headers,
					const struct m2m_wire *wire, u32 now)
{
	__sync_fetch_and_add(&entry->packets, wire->packets);
	__sync_fetch_and_add(&entry->bytes, wire->bytes);
	if (entry->last_seen != now)
		entry->last_seen = now;
	if (key->tuple.proto == M2M_PROTO_TCP && !headers->later_fragment) {
		u8 tcp = headers->tcp_flags, marks = M2M_SEEN_SEQ, flags = entry->flags, gone;
		u32 end = m2m_end_of(headers);
		u32 seen = entry->max_seq;
		u8 reused;
		int tries;

		/*
		 * A SYN where one direction has ended: the same ports, reused before the old session
		 * was taken down. What ended then says nothing of what begins now. (Bits instead of
		 * branches, of which every one doubles the verifier's work.)
		 */
		reused = (tcp / M2M_TCP_SYN) & (flags / M2M_SEEN_FIN | flags / M2M_SEEN_RST) & 1;
		gone = (u8)(0 - reused) & M2M_SEEN;
		flags &= (u8)~gone;
		if (tcp & M2M_TCP_FIN)
			marks |= M2M_SEEN_FIN;
		if (tcp & M2M_TCP_RST)
			marks |= M2M_SEEN_RST;
		for (tries = 0; tries < 4; tries++) {
			u32 found;

			if (flags & M2M_SEEN_SEQ && !m2m_seq_after(end, seen))
				break;
			found = __sync_val_compare_and_swap(&entry->max_seq, seen, end);
			if (found == seen)
				break;
			seen = found;
		}
		if (tcp & M2M_TCP_ACK) {
			marks |= M2M_SEEN_ACK;
			if (!(flags & M2M_SEEN_ACK) ||
			    m2m_seq_after(headers->ack, entry->max_ack))
				entry->max_ack = headers->ack;
		}
		/* Atomic: what the agent marks at the same moment must stay. */
		if (entry->flags != (flags | marks)) {
			__sync_fetch_and_and(M2M_ROLE_WORD(entry), ~M2M_FLAG_BITS(gone));
			__sync_fetch_and_or(M2M_ROLE_WORD(entry), M2M_FLAG_BITS(marks));
		}
	}
}

#endif /* M2M_BPF_ACCOUNT_H */
