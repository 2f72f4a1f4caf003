// SPDX-License-Identifier: GPL-2.0
/* What the agent sets as a whole, and reads. */
#include <linux/netdevice.h>
#include <linux/slab.h>

#include "commands.h"

int m2m_do_beat(struct m2m_state *state, struct genl_info *info)
{
	WRITE_ONCE(state->config.heartbeat, ktime_get_ns());
	return 0;
}

int m2m_set_links(struct m2m_state *state, struct genl_info *info)
{
	struct m2m_links *links, *old;
	const u32 *indexes;
	int count = m2m_array(info, M2M_A_LINKS, &indexes);
	int index;

	if (count < 0)
		return count;
	for (index = 0; index < count; index++) {
		struct net_device *device = dev_get_by_index(state->net, indexes[index]);

		if (!device)
			return m2m_refuse(info, &indexes[index], -ENODEV, "no such interface");
		dev_put(device);
	}
	links = kvmalloc(struct_size(links, ifindex, count), GFP_KERNEL_ACCOUNT);
	if (!links)
		return -ENOMEM;
	links->count = count;
	memcpy(links->ifindex, indexes, count * sizeof(*indexes));
	old = rcu_replace_pointer(state->links, links, lockdep_is_held(&state->here->lock));
	kvfree_rcu(old, rcu);
	return 0;
}

int m2m_set_addresses(struct m2m_state *state, struct genl_info *info)
{
	struct m2m_addresses *addresses, *old;
	const struct m2m_addr *given;
	int count = m2m_array(info, M2M_A_ADDRESSES, &given);
	int index;

	if (count < 0)
		return count;
	addresses = kvmalloc(struct_size(addresses, v4, count), GFP_KERNEL_ACCOUNT);
	if (!addresses)
		return -ENOMEM;
	addresses->count = 0;
	addresses->any = false;
	for (index = 0; index < count; index++) {
		const struct m2m_addr *address = &given[index];

		if (!memchr_inv(address, 0, sizeof(*address)))
			addresses->any = true;
		else if (ipv6_addr_v4mapped((const struct in6_addr *)address))
			addresses->v4[addresses->count++] = address->word[3];
	}
	old = rcu_replace_pointer(state->addresses, addresses, lockdep_is_held(&state->here->lock));
	kvfree_rcu(old, rcu);
	return 0;
}

int m2m_set_rules(struct m2m_state *state, struct genl_info *info)
{
	struct m2m_rules *rules, *old;
	const struct nlattr *attribute;
	u32 count = 0;
	int left;

	nlmsg_for_each_attr(attribute, info->nlhdr, GENL_HDRLEN, left) {
		if (nla_type(attribute) != M2M_A_RULES)
			continue;
		if (nla_len(attribute) % sizeof(struct m2m_rule))
			return m2m_refuse(info, attribute, -EINVAL, "a rule that is not whole");
		count += nla_len(attribute) / sizeof(struct m2m_rule);
	}
	if (count > M2M_MAX_RULES)
		return m2m_refuse(info, NULL, -E2BIG, "too many rules");
	rules = kvmalloc(struct_size(rules, rule, count), GFP_KERNEL_ACCOUNT);
	if (!rules)
		return -ENOMEM;
	rules->count = 0;
	rules->generation = nla_get_u32(info->attrs[M2M_A_GENERATION]);
	nlmsg_for_each_attr(attribute, info->nlhdr, GENL_HDRLEN, left) {
		if (nla_type(attribute) != M2M_A_RULES)
			continue;
		memcpy(&rules->rule[rules->count], nla_data(attribute), nla_len(attribute));
		rules->count += nla_len(attribute) / sizeof(struct m2m_rule);
	}
	old = rcu_replace_pointer(state->rules, rules, lockdep_is_held(&state->here->lock));
	kvfree_rcu(old, rcu);
	return 0;
}

int m2m_get_reasons(struct m2m_state *state, struct genl_info *info)
{
	struct m2m_reasons sum = {};
	int cpu, reason;

	for_each_possible_cpu(cpu) {
		for (reason = 0; reason < M2M_REASONS; reason++)
			sum.count[reason] += per_cpu_ptr(state->reasons, cpu)->count[reason];
	}
	return m2m_answer_with(info, M2M_A_REASONS, &sum, sizeof(sum));
}
