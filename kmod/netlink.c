// SPDX-License-Identifier: GPL-2.0
/* The generic netlink family: commands are checked here, and carried out one at a time. */
#include <linux/netdevice.h>
#include <linux/slab.h>
#include <net/genetlink.h>
#include <net/netfilter/ipv4/nf_defrag_ipv4.h>
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

/* -- answers -------------------------------------------------------------------------------- */

/* Refuse a command, saying why and about which octets of it. */
int m2m_refuse(struct genl_info *info, const void *where, int error, const char *why)
{
	if (info->extack) {
		info->extack->_msg = why;
		if (where)
			info->extack->bad_attr = where;
	}
	return error;
}

/* The elements of an array, and how many there are; an error when the last one is not whole. */
int m2m_array(struct genl_info *info, int attribute, size_t size, const void **items)
{
	const struct nlattr *array = info->attrs[attribute];

	if (nla_len(array) % size)
		return m2m_refuse(info, array, -EINVAL, "an array whose last element is not whole");
	*items = nla_data(array);
	return nla_len(array) / size;
}

struct sk_buff *m2m_reply(struct genl_info *info, size_t size, void **head)
{
	struct sk_buff *message = genlmsg_new(size, GFP_KERNEL);

	if (!message)
		return NULL;
	*head = genlmsg_put_reply(message, info, &m2m_family, 0, info->genlhdr->cmd);
	if (*head)
		return message;
	nlmsg_free(message);
	return NULL;
}

int m2m_answer(struct genl_info *info, struct sk_buff *message, void *head)
{
	genlmsg_end(message, head);
	return genlmsg_reply(message, info);
}

int m2m_answer_results(struct genl_info *info, const struct m2m_result *results, int count)
{
	size_t size = count * sizeof(*results);
	struct sk_buff *message;
	void *head;

	message = m2m_reply(info, nla_total_size(size), &head);
	if (!message)
		return -ENOMEM;
	if (nla_put(message, M2M_A_RESULTS, size, results)) {
		nlmsg_free(message);
		return -EMSGSIZE;
	}
	return m2m_answer(info, message, head);
}

/* -- events --------------------------------------------------------------------------------- */

struct sk_buff *m2m_event_new(enum m2m_event event)
{
	struct sk_buff *message = genlmsg_new(128, GFP_ATOMIC);

	if (!message)
		return NULL;
	if (!genlmsg_put(message, 0, 0, &m2m_family, 0, M2M_CMD_EVENT) ||
	    nla_put_u8(message, M2M_A_EVENT, event)) {
		nlmsg_free(message);
		return NULL;
	}
	return message;
}

/* Zero when all that listen have got it, or nobody does. */
int m2m_event_send(struct net *net, struct sk_buff *message)
{
	int error;

	genlmsg_end(message, genlmsg_data(nlmsg_data(nlmsg_hdr(message))));
	error = genlmsg_multicast_netns(&m2m_family, net, message, 0, 0, GFP_ATOMIC);
	return error == -ESRCH ? 0 : error;
}

/* -- opening and closing -------------------------------------------------------------------- */

/**
 * m2m_close - take out all that a namespace's agent has made
 * @here: its lock is held, and is not any more when this returns
 * @state: nothing waits there
 */
void m2m_close(struct m2m_net *here, struct m2m_state *state)
{
	here->state = NULL;
	m2m_state_unhook(state);
	mutex_unlock(&here->lock);
	synchronize_net(); /* packets that met the hooks */
	cancel_delayed_work_sync(&state->hold_work);
	cancel_delayed_work_sync(&state->sweep_work);
	m2m_state_free(state);
}

static void configure(struct m2m_state *state, struct genl_info *info, bool fresh)
{
	struct m2m_config *config = &state->config;
	u16 low = nla_get_u16(info->attrs[M2M_A_PORT_LO]);
	u16 high = nla_get_u16(info->attrs[M2M_A_PORT_HI]);

	config->heartbeat_limit = nla_get_u32(info->attrs[M2M_A_AWAY_AFTER]) * NSEC_PER_MSEC;
	config->linger = nla_get_u32(info->attrs[M2M_A_LINGER]);
	config->tcp_idle = nla_get_u32(info->attrs[M2M_A_TCP_IDLE]);
	config->udp_idle = nla_get_u32(info->attrs[M2M_A_UDP_IDLE]);
	config->port_lo = low;
	config->port_hi = high;
	config->in_port_lo = fresh ? low : min(low, config->in_port_lo);
	config->in_port_hi = fresh ? high : max(high, config->in_port_hi);
	state->hold_packets = nla_get_u32(info->attrs[M2M_A_HOLD_PACKETS]);
	state->hold_jiffies = max(1ul, msecs_to_jiffies(nla_get_u32(info->attrs[M2M_A_HOLD_TIME])));
	state->forwarded = info->attrs[M2M_A_FORWARDED];
	state->sweep_again = true;
}

/* At a gateway fragments are put together: only the first one says whose it is. */
static int defragment(struct m2m_state *state)
{
	int error = 0;

	if (state->forwarded && !state->defragments)
		error = nf_defrag_ipv4_enable(state->net);
	else if (!state->forwarded && state->defragments)
		nf_defrag_ipv4_disable(state->net);
	if (!error)
		state->defragments = state->forwarded;
	return error;
}

static int make(struct m2m_net *here, struct genl_info *info)
{
	struct m2m_state *state;
	int error;

	state = m2m_state_new(genl_info_net(info), nla_get_u32(info->attrs[M2M_A_SESSIONS_MAX]));
	if (!state)
		return -ENOMEM;
	state->here = here;
	configure(state, info, true);
	error = defragment(state);
	if (!error)
		error = m2m_hooks_register(state);
	if (error) {
		if (state->defragments)
			nf_defrag_ipv4_disable(state->net);
		m2m_state_free(state);
		return error;
	}
	here->state = state;
	queue_delayed_work(system_unbound_wq, &state->sweep_work, HZ);
	return 0;
}

static bool fits(const struct m2m_state *state, struct genl_info *info)
{
	return state->table.count || state->notes_count ||
	       state->notes_room == nla_get_u32(info->attrs[M2M_A_SESSIONS_MAX]);
}

/* Takes &m2m_net.lock itself, as it may have to give it back on the way. */
static int open_here(struct m2m_net *here, struct genl_info *info)
{
	int error;

	if (nla_get_u32(info->attrs[M2M_A_VERSION]) != M2M_LAYOUT_VERSION)
		return m2m_refuse(info, info->attrs[M2M_A_VERSION], -EPROTO,
				  "another version of the layouts");
	if (nla_get_u16(info->attrs[M2M_A_PORT_LO]) > nla_get_u16(info->attrs[M2M_A_PORT_HI]))
		return m2m_refuse(info, info->attrs[M2M_A_PORT_LO], -EINVAL,
				  "a range of ports that ends before it begins");
	mutex_lock(&here->lock);
	if (here->owner && here->owner != info->snd_portid) {
		mutex_unlock(&here->lock);
		return m2m_refuse(info, NULL, -EBUSY, "another agent is there");
	}
	if (here->state && !fits(here->state, info)) {
		here->owner = info->snd_portid; /* nobody else shall be faster */
		m2m_state_leave(here->state);
		m2m_close(here, here->state);
		mutex_lock(&here->lock);
	}
	if (!here->state) {
		error = make(here, info);
	} else {
		configure(here->state, info, false);
		error = defragment(here->state);
	}
	here->owner = error ? 0 : info->snd_portid;
	mutex_unlock(&here->lock);
	return error;
}

static int close_here(struct m2m_net *here, struct genl_info *info)
{
	struct m2m_state *state = here->state;

	m2m_state_leave(state);
	here->owner = 0;
	if (info->attrs[M2M_A_KEEP])
		mutex_unlock(&here->lock);
	else
		m2m_close(here, state);
	return 0;
}

/* A socket is closed: was it the agent's? */
static int released(struct notifier_block *block, unsigned long event, void *about)
{
	const struct netlink_notify *notify = about;
	struct m2m_net *here;

	if (event != NETLINK_URELEASE || notify->protocol != NETLINK_GENERIC || !notify->portid)
		return NOTIFY_DONE;
	here = net_generic(notify->net, m2m_net_id);
	if (READ_ONCE(here->owner) != notify->portid)
		return NOTIFY_DONE;
	mutex_lock(&here->lock);
	if (here->owner == notify->portid) {
		if (here->state)
			m2m_state_leave(here->state);
		here->owner = 0;
	}
	mutex_unlock(&here->lock);
	return NOTIFY_DONE;
}

static struct notifier_block releases = { .notifier_call = released };

/* -- what is set as a whole ----------------------------------------------------------------- */

static int beat(struct m2m_state *state, struct genl_info *info)
{
	WRITE_ONCE(state->config.heartbeat, ktime_get_ns());
	return 0;
}

static int set_links(struct m2m_state *state, struct genl_info *info)
{
	struct m2m_links *links, *old;
	const u32 *indexes;
	int count = m2m_array(info, M2M_A_LINKS, sizeof(*indexes), (const void **)&indexes);
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
	old = rcu_replace_pointer(state->links, links, true);
	if (old)
		kvfree_rcu(old, rcu);
	return 0;
}

static int set_addresses(struct m2m_state *state, struct genl_info *info)
{
	struct m2m_addresses *addresses, *old;
	const struct m2m_addr *given;
	int count = m2m_array(info, M2M_A_ADDRESSES, sizeof(*given), (const void **)&given);
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
	old = rcu_replace_pointer(state->addresses, addresses, true);
	if (old)
		kvfree_rcu(old, rcu);
	return 0;
}

static int set_rules(struct m2m_state *state, struct genl_info *info)
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
	old = rcu_replace_pointer(state->rules, rules, true);
	if (old)
		kvfree_rcu(old, rcu);
	return 0;
}

/* -- notes and reasons ---------------------------------------------------------------------- */

static int set_notes(struct m2m_state *state, struct genl_info *info)
{
	const struct m2m_note *notes;
	int count = m2m_array(info, M2M_A_NOTES, sizeof(*notes), (const void **)&notes);
	int index, error;

	for (index = 0; index < count; index++) {
		error = m2m_notes_keep(state, &notes[index]);
		if (error)
			return m2m_refuse(info, &notes[index], error, "no room for a note");
	}
	return min(count, 0);
}

static int del_notes(struct m2m_state *state, struct genl_info *info)
{
	const void *given;
	int count = m2m_array(info, M2M_A_SESSIONS, sizeof(u64), &given);
	u64 session;
	int index;

	for (index = 0; index < count; index++) {
		memcpy(&session, given + index * sizeof(session), sizeof(session));
		m2m_notes_forget(state, session);
	}
	return min(count, 0);
}

static int get_reasons(struct m2m_state *state, struct genl_info *info)
{
	struct m2m_reasons sum = {};
	struct sk_buff *message;
	void *head;
	int cpu, reason;

	for_each_possible_cpu(cpu) {
		for (reason = 0; reason < M2M_REASONS; reason++)
			sum.count[reason] += per_cpu_ptr(state->reasons, cpu)->count[reason];
	}
	message = m2m_reply(info, nla_total_size(sizeof(sum)), &head);
	if (!message)
		return -ENOMEM;
	if (nla_put(message, M2M_A_REASONS, sizeof(sum), &sum)) {
		nlmsg_free(message);
		return -EMSGSIZE;
	}
	return m2m_answer(info, message, head);
}

/* -- the family ----------------------------------------------------------------------------- */

#define M2M_OPEN_NEEDS                                                                        \
	(M2M_HAS(M2M_A_VERSION) | M2M_HAS(M2M_A_SESSIONS_MAX) | M2M_HAS(M2M_A_LINGER) |       \
	 M2M_HAS(M2M_A_TCP_IDLE) | M2M_HAS(M2M_A_UDP_IDLE) | M2M_HAS(M2M_A_HOLD_PACKETS) |    \
	 M2M_HAS(M2M_A_HOLD_TIME) | M2M_HAS(M2M_A_AWAY_AFTER) | M2M_HAS(M2M_A_PORT_LO) |      \
	 M2M_HAS(M2M_A_PORT_HI))

#define M2M_WATCH_NEEDS (M2M_HAS(M2M_A_KEYS) | M2M_HAS(M2M_A_SERIAL) | M2M_HAS(M2M_A_NUMBER))

static const struct m2m_command commands[] = {
	[M2M_CMD_OPEN] = { NULL, M2M_OPEN_NEEDS, M2M_HAS(M2M_A_FORWARDED) },
	[M2M_CMD_CLOSE] = { NULL, 0, M2M_HAS(M2M_A_KEEP) },
	[M2M_CMD_BEAT] = { beat },
	[M2M_CMD_SET_LINKS] = { set_links, M2M_HAS(M2M_A_LINKS) },
	[M2M_CMD_SET_ADDRESSES] = { set_addresses, M2M_HAS(M2M_A_ADDRESSES) },
	[M2M_CMD_SET_RULES] = { set_rules, M2M_HAS(M2M_A_GENERATION), M2M_HAS(M2M_A_RULES) },
	[M2M_CMD_SET_ROWS] = { m2m_set_rows, M2M_HAS(M2M_A_ROWS) },
	[M2M_CMD_DEL_ROWS] = { m2m_del_rows, M2M_HAS(M2M_A_KEYS) },
	[M2M_CMD_GET_ROWS] = { m2m_get_rows, M2M_HAS(M2M_A_KEYS), 0, true },
	[M2M_CMD_REDIRECT] = { m2m_do_redirect, M2M_HAS(M2M_A_ROWS) },
	[M2M_CMD_HOLD] = { m2m_do_hold, M2M_HAS(M2M_A_KEYS) | M2M_HAS(M2M_A_SERIAL),
			   M2M_HAS(M2M_A_SUBSTREAM) },
	[M2M_CMD_RESUME] = { m2m_do_resume, M2M_HAS(M2M_A_KEYS) },
	[M2M_CMD_WATCH_ACK] = { m2m_do_watch_ack, M2M_WATCH_NEEDS },
	[M2M_CMD_WATCH_COUNT] = { m2m_do_watch_count, M2M_WATCH_NEEDS },
	[M2M_CMD_INHERIT] = { m2m_do_inherit, M2M_HAS(M2M_A_KEYS) },
	[M2M_CMD_RELEASE] = { m2m_do_release, M2M_HAS(M2M_A_KEYS) | M2M_HAS(M2M_A_VERDICT) },
	[M2M_CMD_SET_NOTES] = { set_notes, M2M_HAS(M2M_A_NOTES) },
	[M2M_CMD_DEL_NOTES] = { del_notes, M2M_HAS(M2M_A_SESSIONS) },
	[M2M_CMD_GET_REASONS] = { get_reasons, 0, 0, true },
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
		return open_here(here, info);
	mutex_lock(&here->lock);
	if (!here->state)
		error = m2m_refuse(info, NULL, -ENODATA, "no agent has opened M2M here");
	else if (!command->anybody && here->owner != info->snd_portid)
		error = m2m_refuse(info, NULL, -EPERM, "only the agent that has opened M2M may");
	if (!error && cmd == M2M_CMD_CLOSE)
		return close_here(here, info); /* gives the lock back */
	if (!error)
		error = command->run(here->state, info);
	mutex_unlock(&here->lock);
	return error;
}

static int dump(struct sk_buff *skb, struct netlink_callback *cb, u8 cmd,
		int (*append)(struct m2m_state *state, struct sk_buff *skb, unsigned long *at))
{
	struct m2m_net *here = net_generic(sock_net(skb->sk), m2m_net_id);
	void *head = genlmsg_put(skb, NETLINK_CB(cb->skb).portid, cb->nlh->nlmsg_seq, &m2m_family,
				 NLM_F_MULTI, cmd);
	unsigned long *at = (unsigned long *)cb->args;
	int count = 0;

	if (!head)
		return -EMSGSIZE;
	mutex_lock(&here->lock);
	if (here->state)
		count = append(here->state, skb, at);
	mutex_unlock(&here->lock);
	if (!count) {
		genlmsg_cancel(skb, head);
		return 0;
	}
	genlmsg_end(skb, head);
	return skb->len;
}

static int dump_rows(struct sk_buff *skb, struct netlink_callback *cb)
{
	return dump(skb, cb, M2M_CMD_GET_ROWS, m2m_dump_rows);
}

static int dump_notes(struct sk_buff *skb, struct netlink_callback *cb)
{
	return dump(skb, cb, M2M_CMD_GET_NOTES, m2m_notes_dump);
}

#define M2M_DO(name) { .cmd = (name), .flags = GENL_UNS_ADMIN_PERM, .doit = run_command }

static const struct genl_small_ops operations[] = {
	M2M_DO(M2M_CMD_OPEN),
	M2M_DO(M2M_CMD_CLOSE),
	M2M_DO(M2M_CMD_BEAT),
	M2M_DO(M2M_CMD_SET_LINKS),
	M2M_DO(M2M_CMD_SET_ADDRESSES),
	M2M_DO(M2M_CMD_SET_RULES),
	M2M_DO(M2M_CMD_SET_ROWS),
	M2M_DO(M2M_CMD_DEL_ROWS),
	{
		.cmd = M2M_CMD_GET_ROWS,
		.flags = GENL_UNS_ADMIN_PERM,
		.doit = run_command,
		.dumpit = dump_rows,
	},
	M2M_DO(M2M_CMD_REDIRECT),
	M2M_DO(M2M_CMD_HOLD),
	M2M_DO(M2M_CMD_RESUME),
	M2M_DO(M2M_CMD_WATCH_ACK),
	M2M_DO(M2M_CMD_WATCH_COUNT),
	M2M_DO(M2M_CMD_INHERIT),
	M2M_DO(M2M_CMD_RELEASE),
	M2M_DO(M2M_CMD_SET_NOTES),
	M2M_DO(M2M_CMD_DEL_NOTES),
	{
		.cmd = M2M_CMD_GET_NOTES,
		.flags = GENL_UNS_ADMIN_PERM,
		.dumpit = dump_notes,
	},
	M2M_DO(M2M_CMD_GET_REASONS),
};

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
	int error = netlink_register_notifier(&releases);

	if (error)
		return error;
	error = genl_register_family(&m2m_family);
	if (error)
		netlink_unregister_notifier(&releases);
	return error;
}

void m2m_netlink_exit(void)
{
	genl_unregister_family(&m2m_family);
	netlink_unregister_notifier(&releases);
}
