/* SPDX-License-Identifier: GPL-2.0 */
/* Lowering the MSS that the two ends of a TCP session tell each other. */
#ifndef M2M_BPF_MSS_H
#define M2M_BPF_MSS_H

#include <stddef.h>

#include "packet.h"

#define M2M_TCPOPT_EOL 0
#define M2M_TCPOPT_NOP 1
#define M2M_TCPOPT_MSS 2
#define M2M_TCPOLEN_MSS 4
#define M2M_TCP_OPTIONS_MAX 40

/* Looking for the MSS option among those of a SYN segment. */
struct m2m_option_search {
	u8 options[M2M_TCP_OPTIONS_MAX + 8]; /* what follows the last option reads as EOL */
	u32 at;
	u32 found; /* offset of the option, or M2M_TCP_OPTIONS_MAX */
};

static long m2m_next_option(u32 step, void *context)
{
	struct m2m_option_search *search = context;
	u32 at = search->at & 63;
	u8 kind, size;

	(void)step;
	if (at >= M2M_TCP_OPTIONS_MAX)
		return 1;
	kind = search->options[at];
	size = search->options[at + 1];
	if (kind == M2M_TCPOPT_EOL)
		return 1;
	if (kind == M2M_TCPOPT_MSS && size == 4) {
		search->found = at;
		return 1;
	}
	if (kind == M2M_TCPOPT_NOP)
		size = 1;
	search->at = at + size;
	return size == 0; /* no option is that short: what follows cannot be told */
}

/*
 * Lower the MSS option of a SYN segment to mss. The chain's MTU can be smaller than that of the
 * path the ends know, and nobody on the way can tell them: routers answer to the subsession's
 * addresses, and TSO hides the loss from short tests.
 */
static __noinline int m2m_clamp_mss(struct __sk_buff *skb, u32 l4, u32 l4_len, u16 mss)
{
	struct m2m_option_search search = {.found = M2M_TCP_OPTIONS_MAX};
	u32 first = l4 + sizeof(struct tcphdr), len = l4_len - sizeof(struct tcphdr), at;
	__be16 old, new = bpf_htons(mss), from, to;

	if (len < M2M_TCPOLEN_MSS)
		return 0;
	/* One comparison for both bounds would hide the lower one from the verifier of Linux 6.1. */
	asm volatile("" : "+r"(len));
	if (len > M2M_TCP_OPTIONS_MAX || bpf_skb_load_bytes(skb, first, search.options, len))
		return 0;
	bpf_loop(M2M_TCP_OPTIONS_MAX, m2m_next_option, &search, 0);
	at = search.found;
	if (at + M2M_TCPOLEN_MSS > len || bpf_skb_load_bytes(skb, first + at + 2, &old, sizeof(old)) ||
	    bpf_ntohs(old) <= mss)
		return 0;
	/* At an odd offset the value lies across two words of the sum. */
	from = at & 1 ? m2m_swap16(old) : old;
	to = at & 1 ? m2m_swap16(new) : new;
	if (bpf_skb_store_bytes(skb, first + at + 2, &new, sizeof(new), 0))
		return -1;
	return bpf_l4_csum_replace(skb, l4 + offsetof(struct tcphdr, check), from, to, sizeof(to));
}

#endif /* M2M_BPF_MSS_H */
