/* SPDX-License-Identifier: GPL-2.0 */
/* The time of entries, without asking a clock (m2m_ticks_at). */
#ifndef M2M_BPF_CLOCK_H
#define M2M_BPF_CLOCK_H

#include "maps.h"

static __always_inline u32 m2m_now(const struct m2m_config *config)
{
	return m2m_ticks_at(config, bpf_jiffies64());
}

/*
 * Run by the agent once a second. Jiffies count the beginnings of periods, this clock what has
 * passed since: one period less, and packets are never stamped ahead of the time.
 */
SEC("syscall")
int m2m_set_clock(void *request)
{
	u32 zero = 0;
	struct m2m_config *settings = bpf_map_lookup_elem(&config, &zero);

	(void)request;
	if (settings)
		settings->clock = bpf_ktime_get_ns() - (bpf_jiffies64() + 1) * settings->jiffy;
	return 0;
}

#endif /* M2M_BPF_CLOCK_H */
