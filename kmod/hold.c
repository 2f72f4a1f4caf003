// SPDX-License-Identifier: GPL-2.0
/* Holds of live sessions begin and end, by the agent's word, by their bounds, or with the agent. */
#include <linux/sched.h>
#include <linux/workqueue.h>

#include "module.h"

/**
 * m2m_hold_begin - from now on packets of a live session wait
 * @state: the namespace's
 * @row: under &m2m_net.lock
 * @fresh: a record for a row that has none; consumed
 * @serial: of the command, for M2M_EVENT_OVERFLOW
 * @substream: only what is beyond the largest number that has passed
 * @result: of the command
 */
void m2m_hold_begin(struct m2m_state *state, struct m2m_row *row, struct m2m_wait *fresh,
		    u32 serial, bool substream, struct m2m_result *result)
{
	struct m2m_wait *wait;

	spin_lock_bh(&row->lock);
	wait = m2m_wait_take(row, fresh);
	wait->hold_serial = serial;
	if (!(wait->state & M2M_WAIT_HOLD)) {
		wait->state |= M2M_WAIT_HOLD;
		if (substream && row->entry.flags & M2M_SEEN_SEQ) {
			wait->state |= M2M_WAIT_SUBSTREAM;
			wait->checkpoint = row->entry.max_seq;
		}
		wait->held = 0;
		wait->until = jiffies + state->hold_jiffies;
		list_add_tail(&wait->node, &state->held);
		m2m_hold_kick(state, state->hold_jiffies);
	} else if (!substream) {
		wait->state &= ~M2M_WAIT_SUBSTREAM;
	}
	*result = (struct m2m_result){
		.packets = row->entry.packets,
		.has_checkpoint = !!(wait->state & M2M_WAIT_SUBSTREAM),
	};
	if (result->has_checkpoint)
		result->checkpoint = wait->checkpoint;
	spin_unlock_bh(&row->lock);
}

/* What is held of a live session goes; how many packets that were. Under &m2m_net.lock. */
u32 m2m_hold_end(struct m2m_state *state, struct m2m_row *row)
{
	bool holds;

	spin_lock_bh(&row->lock);
	holds = row->wait && row->wait->state & M2M_WAIT_HOLD;
	if (holds)
		row->wait->state &= ~M2M_UNTOLD_OVERFLOW;
	spin_unlock_bh(&row->lock);
	return holds ? m2m_drain(state, row) : 0;
}

void m2m_hold_kick(struct m2m_state *state, unsigned long delay)
{
	if (!delay)
		mod_delayed_work(system_highpri_wq, &state->hold_work, 0);
	else
		queue_delayed_work(system_highpri_wq, &state->hold_work, delay);
}

/* What could not be told finds room in the agent's socket now, perhaps. */
static void tell_again(struct m2m_state *state)
{
	struct m2m_row *row = NULL;
	u32 untold;

	while ((row = m2m_table_after(&state->table, row))) {
		cond_resched();
		if (!READ_ONCE(row->wait))
			continue;
		spin_lock_bh(&row->lock);
		untold = row->wait ? row->wait->state & M2M_UNTOLD : 0;
		spin_unlock_bh(&row->lock);
		if (untold)
			m2m_tell_row(state, row, untold);
	}
}

/* Holds that have lasted too long, or have too many packets. */
void m2m_hold_work(struct work_struct *work)
{
	struct m2m_state *state = container_of(to_delayed_work(work), struct m2m_state, hold_work);
	unsigned long next = 0;
	struct m2m_wait *wait, *other;
	bool again = false;

	mutex_lock(&state->here->lock);
	list_for_each_entry_safe(wait, other, &state->held, node) {
		struct m2m_row *row = wait->row;

		spin_lock_bh(&row->lock);
		if (!(wait->state & M2M_WAIT_OVERFLOW) && time_before(jiffies, wait->until)) {
			if (!again || time_before(wait->until, next))
				next = wait->until;
			again = true;
			spin_unlock_bh(&row->lock);
			continue;
		}
		wait->state |= M2M_UNTOLD_OVERFLOW; /* and so the record stays until it is told */
		spin_unlock_bh(&row->lock);
		m2m_drain(state, row);
		m2m_tell_row(state, row, M2M_UNTOLD_OVERFLOW);
	}
	tell_again(state);
	if (again)
		m2m_hold_kick(state, max_t(long, 1, (long)(next - jiffies)));
	mutex_unlock(&state->here->lock);
}

/**
 * m2m_release_all - let everything go, since nobody will decide any more
 * @state: the namespace's; its agent counts as away. Under &m2m_net.lock
 *
 * Live sessions' packets go by the rows as they are, first packets by their policy.
 */
void m2m_release_all(struct m2m_state *state)
{
	struct m2m_row *row, *next;
	struct m2m_wait *wait;

	while ((wait = list_first_entry_or_null(&state->held, struct m2m_wait, node)))
		m2m_drain(state, wait->row);
	for (row = m2m_table_after(&state->table, NULL); row; row = next) {
		bool first;

		next = m2m_table_after(&state->table, row);
		spin_lock_bh(&row->lock);
		first = row->wait && row->wait->state & M2M_WAIT_FIRST;
		if (row->wait) { /* whoever wanted to be told has gone */
			row->wait->state &= ~(M2M_UNTOLD | M2M_WAIT_ACK | M2M_WAIT_COUNT);
			m2m_wait_done(row);
		}
		spin_unlock_bh(&row->lock);
		if (row->kind == M2M_ROW_UNDECIDED)
			m2m_discard(state, row);
		else if (first)
			m2m_drain(state, row);
		cond_resched();
	}
}
