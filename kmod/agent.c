// SPDX-License-Identifier: GPL-2.0
/* The agent of a namespace comes, one at a time, and goes. */
#include <linux/netdevice.h>
#include <net/netfilter/ipv4/nf_defrag_ipv4.h>
#include <net/netns/generic.h>

#include "commands.h"

/**
 * close - take out all that a namespace's agent has made
 * @here: its lock is held, and is not any more when this returns
 * @state: nothing waits there
 */
static void close(struct m2m_net *here, struct m2m_state *state)
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
int m2m_do_open(struct m2m_net *here, struct genl_info *info)
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
		close(here, here->state);
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

int m2m_do_close(struct m2m_net *here, struct genl_info *info)
{
	struct m2m_state *state = here->state;

	m2m_state_leave(state);
	here->owner = 0;
	if (info->attrs[M2M_A_KEEP])
		mutex_unlock(&here->lock);
	else
		close(here, state);
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

struct notifier_block m2m_releases = { .notifier_call = released };
