// SPDX-License-Identifier: GPL-2.0
/* The policy: which flows must not leave before the agent has decided over them. */
#include "module.h"

/**
 * m2m_policy_of - what the policy in force says of a flow
 * @state: the namespace's
 * @key: of the flow
 *
 * Under RCU.
 */
enum m2m_policy m2m_policy_of(const struct m2m_state *state, const struct m2m_key4 *key)
{
	const struct m2m_rules *rules = rcu_dereference(state->rules);
	struct m2m_key wide;
	u32 index;

	if (!rules || !rules->count)
		return M2M_POLICY_NONE;
	m2m_key_widen(&wide, key);
	for (index = 0; index < rules->count; index++) {
		const struct m2m_rule *rule = &rules->rule[index];

		if (!m2m_rule_match(rule, &wide.tuple))
			continue;
		if (rule->exempt)
			return M2M_POLICY_NONE;
		return rule->fail == M2M_FAIL_OPEN ? M2M_POLICY_OPEN : M2M_POLICY_CLOSED;
	}
	return M2M_POLICY_NONE;
}
