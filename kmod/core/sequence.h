/* SPDX-License-Identifier: GPL-2.0 */
/* TCP sequence numbers: an order that wraps (RFC 1982, as RFC 9293 3.4 uses it). */
#ifndef M2M_CORE_SEQUENCE_H
#define M2M_CORE_SEQUENCE_H

#include "types.h"

/* Whether a comes after b. At a distance of exactly 2^31 the order is undefined: false. */
m2m_inline int m2m_seq_after(u32 a, u32 b)
{
	return (s32)(a - b) > 0;
}

/*
 * One past the last sequence number a segment occupies; SYN and FIN take one each. Unlike the
 * header's own number this is the same however a burst is cut into segments (GSO, GRO).
 */
m2m_inline u32 m2m_seq_end(u32 seq, u32 payload, int syn, int fin)
{
	return seq + payload + (syn ? 1 : 0) + (fin ? 1 : 0);
}

#endif /* M2M_CORE_SEQUENCE_H */
