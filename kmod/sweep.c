// SPDX-License-Identifier: GPL-2.0
/*
 * The sweeper: one pass over the table about once a second. It tells the agent which sessions are
 * over (their rows stay until the agent has told its neighbours), and takes out by itself what no
 * agent needs to know about.
 */
#include <linux/sched.h>

#include "module.h"

#define M2M_INTERVAL HZ
#define M2M_ROWS_AT_ONCE 256 /* then commands of the agent have their turn */

static bool find(const struct m2m_state *state, const struct m2m_key *key, u64 session,
		 struct m2m_entry *entry)
{
	struct m2m_key4 narrow;
	struct m2m_row *row;
	bool found;

	m2m_key_narrow(&narrow, key);
	row = m2m_table_find(&state->table, &narrow);
	if (!row)
		return false;
	spin_lock_bh(&row->lock);
	found = m2m_row_is_session(row) && row->entry.session == session;
	if (found)
		*entry = row->entry;
	spin_unlock_bh(&row->lock);
	return found;
}

/*
 * Whether packets of a session pass an inline middlebox's other side. Idleness, unlike an end that
 * was seen, must be true of both: a firewall may swallow all that reaches it from one of them.
 */
static bool other_side_busy(const struct m2m_state *state, const struct m2m_key *key,
			    const struct m2m_entry *entry, u32 now, u32 limit)
{
	struct m2m_key other, partner;
	struct m2m_entry found;

	/* The caller looks from (IN, left): the other side is (OUT, supersession). */
	m2m_super_key(&other, key->tuple.proto, entry);
	if (!find(state, &other, entry->session, &found))
		return false;
	if (m2m_ticks_since(found.last_seen, now) <= limit)
		return true;
	m2m_partner_key(&partner, &other, &found);
	return find(state, &partner, entry->session, &found) &&
	       m2m_ticks_since(found.last_seen, now) <= limit;
}

/*
 * One row of each session speaks for it: the first that a packet towards the server meets. Others
 * are looked at only when they have been silent for long: should their speaker be missing, they
 * are left over from an installation that was cut short, and go.
 */
static bool speaks(const struct m2m_key *key, const struct m2m_entry *entry)
{
	u8 hook = M2M_ROLE_POSITION(entry->role) == M2M_CLIENT ? M2M_HOOK_OUT : M2M_HOOK_IN;

	return M2M_ROLE_TOWARD(entry->role) == M2M_RIGHT && key->tuple.hook == hook;
}

static bool has_speaker(const struct m2m_state *state, const struct m2m_key *key,
			const struct m2m_entry *entry)
{
	struct m2m_key partner, other;
	struct m2m_entry found;

	m2m_partner_key(&partner, key, entry);
	if (find(state, &partner, entry->session, &found) && speaks(&partner, &found))
		return true;
	if (M2M_ROLE_POSITION(entry->role) != M2M_INLINE)
		return false;
	/* From the right side: (OUT, ~supersession) is the partner of (IN, left). */
	m2m_key_v4(&partner, M2M_HOOK_OUT, key->tuple.proto, entry->super_dst, entry->super_dport,
		   entry->super_src, entry->super_sport);
	if (!find(state, &partner, entry->session, &found))
		return false;
	m2m_partner_key(&other, &partner, &found);
	return find(state, &other, entry->session, &found) && speaks(&other, &found);
}

/* Of a flow that is passed or refused. */
static bool unsteered_over(const struct m2m_config *config, u8 proto,
			   const struct m2m_entry *entry, u32 now)
{
	u32 quiet = m2m_ticks_since(entry->last_seen, now);

	if (M2M_ROLE_ACTION(entry->role) == M2M_DROP)
		return quiet > M2M_REFUSAL_TICKS;
	/* Its other direction is not in the table; one FIN says enough. */
	if (entry->flags & (M2M_SEEN_FIN | M2M_SEEN_RST))
		return quiet > config->linger;
	return quiet > m2m_idle_limit(config, proto);
}

/* Why a session is over, if it is: of the row that speaks for it. */
static enum m2m_end end_of(const struct m2m_state *state, const struct m2m_key *key,
			   const struct m2m_entry *entry, u32 now)
{
	const struct m2m_config *config = &state->config;
	u8 proto = key->tuple.proto;
	struct m2m_entry partner;
	struct m2m_key partner_key;
	enum m2m_end end;
	bool found;

	m2m_partner_key(&partner_key, key, entry);
	found = find(state, &partner_key, entry->session, &partner);
	end = m2m_pair_end(config, proto, entry, found ? &partner : NULL, now);
	if (end == M2M_END_IDLE && M2M_ROLE_POSITION(entry->role) == M2M_INLINE &&
	    other_side_busy(state, key, entry, now, m2m_idle_limit(config, proto)))
		return M2M_END_NOT;
	return end;
}

static void sweep_row(struct m2m_state *state, struct m2m_row *row, u32 now)
{
	struct m2m_entry entry;
	struct m2m_key key;
	bool waits, decided, reported;
	enum m2m_end end;

	spin_lock_bh(&row->lock);
	entry = row->entry;
	decided = row->kind == M2M_ROW_DECIDED;
	waits = row->wait;
	if (state->sweep_again)
		row->reported = false;
	reported = row->reported;
	spin_unlock_bh(&row->lock);
	m2m_key_widen(&key, &row->key);
	if (!decided) { /* it was made for a packet that then found no room */
		if (!waits)
			m2m_discard(state, row);
		return;
	}
	if (!entry.session) {
		if (!waits && unsteered_over(&state->config, key.tuple.proto, &entry, now))
			m2m_discard(state, row);
		return;
	}
	if (!speaks(&key, &entry)) {
		if (m2m_ticks_since(entry.last_seen, now) >
			    m2m_idle_limit(&state->config, key.tuple.proto) &&
		    !has_speaker(state, &key, &entry))
			m2m_discard(state, row);
		return;
	}
	if (reported)
		return;
	end = end_of(state, &key, &entry, now);
	if (end == M2M_END_NOT || !m2m_tell_ended(state, entry.session, end))
		return;
	spin_lock_bh(&row->lock);
	row->reported = row->entry.session == entry.session;
	spin_unlock_bh(&row->lock);
}

void m2m_sweep_work(struct work_struct *work)
{
	struct m2m_state *state = container_of(to_delayed_work(work), struct m2m_state, sweep_work);
	struct mutex *lock = &state->here->lock;
	struct m2m_row *row;
	u32 seen = 0;

	mutex_lock(lock);
	m2m_state_set_clock(state);
	if (m2m_is_away(state) &&
	    (atomic_read(&state->first_waiting) || atomic_read(&state->live_waiting)))
		m2m_release_all(state);
	for (row = m2m_table_after(&state->table, NULL); row; row = state->table.coming) {
		state->table.coming = m2m_table_after(&state->table, row);
		sweep_row(state, row, m2m_now(state));
		if (!(++seen % M2M_ROWS_AT_ONCE)) {
			mutex_unlock(lock);
			cond_resched();
			mutex_lock(lock);
		}
	}
	state->sweep_again = false;
	mutex_unlock(lock);
	queue_delayed_work(system_unbound_wq, &state->sweep_work, M2M_INTERVAL);
}
