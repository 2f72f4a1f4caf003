/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Internet checksums changed in place: RFC 1624, equation 3, HC' = ~(~HC + ~m + m').
 *
 * A *difference* is the one's complement sum of ~m + m' over what changes, folded to 16 bits; it
 * does not depend on the byte order of the machine and is constant for all packets of an entry.
 * A wrong checksum stays wrong, which is what an end host must see.
 */
#ifndef M2M_CORE_CHECKSUM_H
#define M2M_CORE_CHECKSUM_H

#include "tuple.h"

m2m_inline u16 m2m_csum_fold(u64 sum)
{
	sum = (sum & 0xffffffffu) + (sum >> 32);
	sum = (sum & 0xffffffffu) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (u16)sum;
}

m2m_inline u16 m2m_csum_diff16(__be16 from, __be16 to)
{
	return m2m_csum_fold((u64)(u16)~(u16)from + (u16)to);
}

m2m_inline u16 m2m_csum_diff32(__be32 from, __be32 to)
{
	return m2m_csum_fold((u64)(u32)~(u32)from + (u32)to);
}

m2m_inline u16 m2m_csum_diff_ports(__be16 old_sport, __be16 new_sport, __be16 old_dport,
				   __be16 new_dport)
{
	return m2m_csum_fold((u64)(u16)~(u16)old_sport + (u16)new_sport +
			     (u64)(u16)~(u16)old_dport + (u16)new_dport);
}

m2m_inline u16 m2m_csum_diff_addrs(__be32 old_src, __be32 new_src, __be32 old_dst, __be32 new_dst)
{
	return m2m_csum_fold((u64)(u32)~(u32)old_src + (u32)new_src + (u64)(u32)~(u32)old_dst +
			     (u32)new_dst);
}

/* The new value of a checksum field after a change with this difference. */
m2m_inline u16 m2m_csum_apply(u16 check, u16 diff)
{
	return (u16)~m2m_csum_fold((u64)(u16)~check + diff);
}

#endif /* M2M_CORE_CHECKSUM_H */
