// SPDX-License-Identifier: GPL-2.0
/* The generic netlink family: commands are checked here, and carried out one at a time. */
#include <net/genetlink.h>
#include <net/netns/generic.h>

#include "commands.h"

/* Linux 6.1 does not take them as constants. */
static struct netlink_range_validation sessions = { .min = 1, .max = M2M_MAX_SESSIONS };
static struct netlink_range_validation ticks = { .max = 0x7fffffff };
static struct netlink_range_validation waiting = { .min = 1, .max = M2M_MAX_HOLD_PACKETS };
static struct netlink_range_validation milliseconds = { .max = 3600 * MSEC_PER_SEC };

static const struct nla_policy policy[M2M_A_MAX + 1] = {
	[M2M_A_VERSION] = { .type = NLA_U32 },
	[M2M_A_SESSIONS_MAX] = NLA_POLICY_FULL_RANGE(NLA_U32, &sessions),
	[M2M_A_LINGER] = NLA_POLICY_FULL_RANGE(NLA_U32, &ticks),
	[M2M_A_TCP_IDLE] = NLA_POLICY_FULL_RANGE(NLA_U32, &ticks),
	[M2M_A_UDP_IDLE] = NLA_POLICY_FULL_RANGE(NLA_U32, &ticks),
	[M2M_A_HOLD_PACKETS] = NLA_POLICY_FULL_RANGE(NLA_U32, &waiting),
	[M2M_A_HOLD_TIME] = NLA_POLICY_FULL_RANGE(NLA_U32, &milliseconds),
	[M2M_A_AWAY_AFTER] = NLA_POLICY_FULL_RANGE(NLA_U32, &milliseconds),
	[M2M_A_PORT_LO] = { .type = NLA_U16 },
	[M2M_A_PORT_HI] = { .type = NLA_U16 },
	[M2M_A_FORWARDED] = { .type = NLA_FLAG },
	[M2M_A_KEEP] = { .type = NLA_FLAG },
	[M2M_A_LINKS] = { .type = NLA_BINARY, .len = M2M_MAX_LINKS * sizeof(u32) },
	[M2M_A_ADDRESSES] = {
		.type = NLA_BINARY, .len = M2M_MAX_ADDRESSES * sizeof(struct m2m_addr),
	},
	[M2M_A_GENERATION] = { .type = NLA_U32 },
	[M2M_A_RULES] = {
		.type = NLA_BINARY, .len = M2M_MAX_RULES_EACH * sizeof(struct m2m_rule),
	},
	[M2M_A_KEYS] = { .type = NLA_BINARY, .len = M2M_MAX_KEYS * sizeof(struct m2m_key4) },
	[M2M_A_ROWS] = { .type = NLA_BINARY, .len = M2M_MAX_ROWS * sizeof(struct m2m_flat_row) },
	[M2M_A_SERIAL] = { .type = NLA_U32 },
	[M2M_A_NUMBER] = { .type = NLA_U64 },
	[M2M_A_SUBSTREAM] = { .type = NLA_FLAG },
	[M2M_A_VERDICT] = NLA_POLICY_MAX(NLA_U8, M2M_RELEASE_DROP),
	[M2M_A_NOTES] = { .type = NLA_BINARY, .len = M2M_MAX_NOTES * sizeof(struct m2m_note) },
	[M2M_A_SESSIONS] = { .type = NLA_BINARY, .len = M2M_MAX_KEYS * sizeof(u64) },
};

static const struct genl_multicast_group groups[] = {
	{ .name = M2M_GENL_EVENTS, .flags = GENL_MCAST_CAP_NET_ADMIN },
};

#define M2M_OPEN_NEEDS                                                                        \
	(M2M_HAS(M2M_A_VERSION) | M2M_HAS(M2M_A_SESSIONS_MAX) | M2M_HAS(M2M_A_LINGER) |       \
	 M2M_HAS(M2M_A_TCP_IDLE) | M2M_HAS(M2M_A_UDP_IDLE) | M2M_HAS(M2M_A_HOLD_PACKETS) |    \
	 M2M_HAS(M2M_A_HOLD_TIME) | M2M_HAS(M2M_A_AWAY_AFTER) | M2M_HAS(M2M_A_PORT_LO) |      \
	 M2M_HAS(M2M_A_PORT_HI))

#define M2M_WATCH_NEEDS (M2M_HAS(M2M_A_KEYS) | M2M_HAS(M2M_A_SERIAL) | M2M_HAS(M2M_A_NUMBER))

static const struct m2m_command commands[] = {
	[M2M_CMD_OPEN] = { NULL, M2M_OPEN_NEEDS, M2M_HAS(M2M_A_FORWARDED) },
	[M2M_CMD_CLOSE] = { NULL, 0, M2M_HAS(M2M_A_KEEP) },
	[M2M_CMD_BEAT] = { m2m_do_beat },
	[M2M_CMD_SET_LINKS] = { m2m_set_links, M2M_HAS(M2M_A_LINKS) },
	[M2M_CMD_SET_ADDRESSES] = { m2m_set_addresses, M2M_HAS(M2M_A_ADDRESSES) },
	[M2M_CMD_SET_RULES] = { m2m_set_rules, M2M_HAS(M2M_A_GENERATION), M2M_HAS(M2M_A_RULES) },
	[M2M_CMD_SET_ROWS] = { m2m_set_rows, M2M_HAS(M2M_A_ROWS) },
	[M2M_CMD_DEL_ROWS] = { m2m_del_rows, M2M_HAS(M2M_A_KEYS) },
	[M2M_CMD_GET_ROWS] = { m2m_get_rows, M2M_HAS(M2M_A_KEYS), .dump = m2m_dump_rows,
			       .anybody = true },
	[M2M_CMD_REDIRECT] = { m2m_do_redirect, M2M_HAS(M2M_A_ROWS) },
	[M2M_CMD_HOLD] = { m2m_do_hold, M2M_HAS(M2M_A_KEYS) | M2M_HAS(M2M_A_SERIAL),
			   M2M_HAS(M2M_A_SUBSTREAM) },
	[M2M_CMD_RESUME] = { m2m_do_resume, M2M_HAS(M2M_A_KEYS) },
	[M2M_CMD_WATCH_ACK] = { m2m_do_watch_ack, M2M_WATCH_NEEDS },
	[M2M_CMD_WATCH_COUNT] = { m2m_do_watch_count, M2M_WATCH_NEEDS },
	[M2M_CMD_INHERIT] = { m2m_do_inherit, M2M_HAS(M2M_A_KEYS) },
	[M2M_CMD_RELEASE] = { m2m_do_release, M2M_HAS(M2M_A_KEYS) | M2M_HAS(M2M_A_VERDICT) },
	[M2M_CMD_SET_NOTES] = { m2m_set_notes, M2M_HAS(M2M_A_NOTES) },
	[M2M_CMD_DEL_NOTES] = { m2m_del_notes, M2M_HAS(M2M_A_SESSIONS) },
	[M2M_CMD_GET_NOTES] = { .dump = m2m_dump_notes, .anybody = true },
	[M2M_CMD_GET_REASONS] = { m2m_get_reasons, .anybody = true },
};

static int check_attributes(const struct m2m_command *command, struct genl_info *info)
{
	u64 there = 0;
	int attribute;

	BUILD_BUG_ON(M2M_A_MAX >= 64);
	for (attribute = 1; attribute <= M2M_A_MAX; attribute++) {
		if (!info->attrs[attribute])
			continue;
		there |= M2M_HAS(attribute);
		if (!(M2M_HAS(attribute) & (command->needs | command->takes)))
			return m2m_refuse(info, info->attrs[attribute], -EINVAL,
					  "an attribute that this command does not know");
	}
	if (command->needs & ~there)
		return m2m_refuse(info, NULL, -EINVAL, "an attribute is missing");
	return 0;
}

static int run_command(struct sk_buff *skb, struct genl_info *info)
{
	struct m2m_net *here = net_generic(genl_info_net(info), m2m_net_id);
	u8 cmd = info->genlhdr->cmd;
	const struct m2m_command *command = &commands[cmd];
	int error = check_attributes(command, info);

	if (error)
		return error;
	if (cmd == M2M_CMD_OPEN)
		return m2m_do_open(here, info);
	mutex_lock(&here->lock);
	if (!here->state)
		error = m2m_refuse(info, NULL, -ENODATA, "no agent has opened M2M here");
	else if (!command->anybody && here->owner != info->snd_portid)
		error = m2m_refuse(info, NULL, -EPERM, "only the agent that has opened M2M may");
	if (!error && cmd == M2M_CMD_CLOSE)
		return m2m_do_close(here, info); /* gives the lock back */
	if (!error)
		error = command->run(here->state, info);
	mutex_unlock(&here->lock);
	return error;
}

static int run_dump(struct sk_buff *skb, struct netlink_callback *cb)
{
	struct m2m_net *here = net_generic(sock_net(skb->sk), m2m_net_id);
	u8 cmd = ((const struct genlmsghdr *)nlmsg_data(cb->nlh))->cmd;
	void *head = genlmsg_put(skb, NETLINK_CB(cb->skb).portid, cb->nlh->nlmsg_seq, &m2m_family,
				 NLM_F_MULTI, cmd);
	int count = 0;

	if (!head)
		return -EMSGSIZE;
	mutex_lock(&here->lock);
	if (here->state)
		count = commands[cmd].dump(here->state, skb, (unsigned long *)cb->args);
	mutex_unlock(&here->lock);
	if (!count) {
		genlmsg_cancel(skb, head);
		return 0;
	}
	genlmsg_end(skb, head);
	return skb->len;
}

static struct genl_small_ops operations[ARRAY_SIZE(commands) - 1] __ro_after_init;

/* As commands[] says. */
static void __init list_operations(void)
{
	u8 cmd;

	for (cmd = M2M_CMD_UNSPEC + 1; cmd < ARRAY_SIZE(commands); cmd++) {
		const struct m2m_command *command = &commands[cmd];

		operations[cmd - 1] = (struct genl_small_ops){
			.cmd = cmd,
			.flags = GENL_UNS_ADMIN_PERM,
			.doit = command->dump && !command->run ? NULL : run_command,
			.dumpit = command->dump ? run_dump : NULL,
		};
	}
}

struct genl_family m2m_family __ro_after_init = {
	.name = M2M_GENL_NAME,
	.version = M2M_GENL_VERSION,
	.maxattr = M2M_A_MAX,
	.policy = policy,
	.netnsok = true,
	.parallel_ops = true, /* namespaces do not wait for each other */
	.module = THIS_MODULE,
	.small_ops = operations,
	.n_small_ops = ARRAY_SIZE(operations),
	.mcgrps = groups,
	.n_mcgrps = ARRAY_SIZE(groups),
	.resv_start_op = M2M_CMD_UNSPEC + 1,
};

int __init m2m_netlink_init(void)
{
	int error;

	list_operations();
	error = netlink_register_notifier(&m2m_releases);
	if (error)
		return error;
	error = genl_register_family(&m2m_family);
	if (error)
		netlink_unregister_notifier(&m2m_releases);
	return error;
}

void m2m_netlink_exit(void)
{
	genl_unregister_family(&m2m_family);
	netlink_unregister_notifier(&m2m_releases);
}
