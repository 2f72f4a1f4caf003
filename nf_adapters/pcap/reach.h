/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How much of each packet the kernel has to put into the ring. Filters run in user space while
 * restoring is on, on what is in the ring; in the kernel they would see whole packets.
 */
#ifndef M2M_PCAP_REACH_H
#define M2M_PCAP_REACH_H

#include <linux/filter.h>

#include "core/types.h"

#define M2M_WHOLE_PACKETS 0x40000u /* the most that libpcap captures */

/*
 * How far into a packet a classic BPF program can look, from above. An index that was
 * computed, other than from an IP header's length, can be anything.
 */
m2m_inline u32 m2m_reach(const struct sock_filter *program, u32 length)
{
	u32 reach = 0, at;

	for (at = 0; at < length; at++) {
		u16 code = program[at].code;
		u32 k = program[at].k, end;

		if (BPF_CLASS(code) == BPF_MISC && BPF_MISCOP(code) == BPF_TAX)
			return M2M_WHOLE_PACKETS;
		if (BPF_CLASS(code) == BPF_LDX && BPF_MODE(code) != BPF_MSH &&
		    (BPF_MODE(code) != BPF_IMM || k > 60))
			return M2M_WHOLE_PACKETS;
		if ((BPF_CLASS(code) != BPF_LD && BPF_CLASS(code) != BPF_LDX) ||
		    (BPF_MODE(code) != BPF_ABS && BPF_MODE(code) != BPF_IND &&
		     BPF_MODE(code) != BPF_MSH))
			continue;
		if (k >= (u32)SKF_AD_OFF)
			continue; /* no part of the packet */
		if (k >= M2M_WHOLE_PACKETS)
			return M2M_WHOLE_PACKETS;
		end = k + 4 + (BPF_MODE(code) == BPF_IND ? 60 : 0);
		if (end > reach)
			reach = end;
	}
	return reach;
}

#endif /* M2M_PCAP_REACH_H */
