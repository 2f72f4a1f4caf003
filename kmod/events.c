// SPDX-License-Identifier: GPL-2.0
/*
 * What the agent is told. An event that finds no room in its socket is told again later: of ended
 * sessions by the sweeper's next pass, of rows as soon as m2m_hold_work() finds a moment.
 */
#include "commands.h"

#define M2M_AGAIN (HZ / 50)

static struct sk_buff *event_new(enum m2m_event event)
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
static int event_send(struct net *net, struct sk_buff *message)
{
	int error;

	genlmsg_end(message, genlmsg_data(nlmsg_data(nlmsg_hdr(message))));
	error = genlmsg_multicast_netns(&m2m_family, net, message, 0, 0, GFP_ATOMIC);
	return error == -ESRCH ? 0 : error;
}

static bool tell(struct m2m_state *state, struct sk_buff *message, bool complete)
{
	if (!message)
		return false;
	if (!complete) {
		nlmsg_free(message);
		return false;
	}
	return !event_send(state->net, message);
}

/* A session is over. */
bool m2m_tell_ended(struct m2m_state *state, u64 session, enum m2m_end end)
{
	struct sk_buff *message = event_new(M2M_EVENT_ENDED);

	return tell(state, message,
		    message && !nla_put_u64_64bit(message, M2M_A_SESSION, session, M2M_A_PAD) &&
			    !nla_put_u8(message, M2M_A_END, end));
}

/* The first packet of a flow waits. */
bool m2m_tell_held(struct m2m_state *state, const struct m2m_key4 *key, u32 serial)
{
	struct sk_buff *message = event_new(M2M_EVENT_HELD);

	return tell(state, message,
		    message && !nla_put(message, M2M_A_KEY, sizeof(*key), key) &&
			    !nla_put_u32(message, M2M_A_SERIAL, serial));
}

static bool tell_of(struct m2m_state *state, enum m2m_event event, const struct m2m_key4 *key,
		    const struct m2m_entry *entry, u32 serial)
{
	struct sk_buff *message = event_new(event);

	return tell(state, message,
		    message &&
			    !nla_put_u64_64bit(message, M2M_A_SESSION, entry->session, M2M_A_PAD) &&
			    !nla_put_u8(message, M2M_A_TOWARD, M2M_ROLE_TOWARD(entry->role)) &&
			    !nla_put(message, M2M_A_KEY, sizeof(*key), key) &&
			    !nla_put_u32(message, M2M_A_SERIAL, serial));
}

/**
 * m2m_tell_row - tell what is to be told of a row
 * @state: the namespace's
 * @row: under RCU or &m2m_net.lock; its lock is not held
 * @untold: M2M_UNTOLD_* that are looked after
 */
void m2m_tell_row(struct m2m_state *state, struct m2m_row *row, u32 untold)
{
	struct m2m_wait *wait, seen = {};
	struct m2m_entry entry;
	u32 failed = 0;

	spin_lock_bh(&row->lock);
	entry = row->entry;
	if (row->wait) {
		seen = *row->wait;
		row->wait->state &= ~untold; /* whoever comes meanwhile has no need to */
		m2m_wait_done(row);
	}
	spin_unlock_bh(&row->lock);
	untold &= seen.state;
	if (untold & M2M_UNTOLD_HELD && !m2m_tell_held(state, &row->key, seen.first_serial))
		failed |= M2M_UNTOLD_HELD;
	if (untold & M2M_UNTOLD_OVERFLOW &&
	    !tell_of(state, M2M_EVENT_OVERFLOW, &row->key, &entry, seen.hold_serial))
		failed |= M2M_UNTOLD_OVERFLOW;
	if (untold & M2M_UNTOLD_ACK &&
	    !tell_of(state, M2M_EVENT_ACKED, &row->key, &entry, seen.ack_serial))
		failed |= M2M_UNTOLD_ACK;
	if (untold & M2M_UNTOLD_COUNT &&
	    !tell_of(state, M2M_EVENT_REACHED, &row->key, &entry, seen.count_serial))
		failed |= M2M_UNTOLD_COUNT;
	if (!failed)
		return;
	spin_lock_bh(&row->lock);
	wait = row->dead ? NULL : m2m_wait_of(row, GFP_ATOMIC);
	if (wait) {
		/* Serials of a record that was forgotten meanwhile, not of a newer wish. */
		if (failed & M2M_UNTOLD_OVERFLOW && !(wait->state & M2M_WAIT_HOLD))
			wait->hold_serial = seen.hold_serial;
		if (failed & M2M_UNTOLD_ACK && !(wait->state & M2M_WAIT_ACK))
			wait->ack_serial = seen.ack_serial;
		if (failed & M2M_UNTOLD_COUNT && !(wait->state & M2M_WAIT_COUNT))
			wait->count_serial = seen.count_serial;
		if (!(failed & M2M_UNTOLD_HELD) || wait->state & M2M_WAIT_FIRST)
			wait->state |= failed;
		m2m_wait_done(row);
	}
	spin_unlock_bh(&row->lock);
	m2m_hold_kick(state, M2M_AGAIN);
}
