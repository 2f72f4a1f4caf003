/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Policy as a datapath sees it: boxes in 5-tuple space, of which the first that holds the flow
 * decides (m2m.policy.rules.FlatRule; m2m.datapath.layout packs them). All bounds are inclusive.
 */
#ifndef M2M_CORE_RULE_H
#define M2M_CORE_RULE_H

#include "tuple.h"

struct m2m_rule {
	struct m2m_addr src_lo, src_hi;
	struct m2m_addr dst_lo, dst_hi;
	u16 sport_lo, sport_hi; /* host order */
	u16 dport_lo, dport_hi;
	u8 proto_lo, proto_hi;
	u8 fail;   /* enum m2m_fail */
	u8 exempt; /* an empty chain: matching flows go straight, and nothing is held */
	u32 policy;
};

_Static_assert(sizeof(struct m2m_rule) == 80, "packed in Python");

enum m2m_fail {
	M2M_FAIL_OPEN = 0,
	M2M_FAIL_CLOSED = 1,
};

m2m_inline int m2m_rule_match(const struct m2m_rule *rule, const struct m2m_tuple *flow)
{
	u16 sport = m2m_swap16(flow->sport), dport = m2m_swap16(flow->dport);

	return flow->proto >= rule->proto_lo && flow->proto <= rule->proto_hi &&
	       dport >= rule->dport_lo && dport <= rule->dport_hi &&
	       sport >= rule->sport_lo && sport <= rule->sport_hi &&
	       m2m_addr_compare(&flow->dst, &rule->dst_lo) >= 0 &&
	       m2m_addr_compare(&flow->dst, &rule->dst_hi) <= 0 &&
	       m2m_addr_compare(&flow->src, &rule->src_lo) >= 0 &&
	       m2m_addr_compare(&flow->src, &rule->src_hi) <= 0;
}

#endif /* M2M_CORE_RULE_H */
