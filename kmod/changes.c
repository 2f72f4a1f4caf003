// SPDX-License-Identifier: GPL-2.0
/* The agent's commands about live sessions that change, and about first packets. */
#include <linux/slab.h>

#include "commands.h"

/* What of a redirected row must be what it was. */
static bool same_session(const struct m2m_row *row, const struct m2m_flat_row *flat)
{
	const struct m2m_entry *entry = &flat->entry;
	u8 spliced = entry->flags & M2M_SPLICED;

	if (row->entry.session != entry->session || row->entry.role != entry->role)
		return false;
	if (M2M_ROLE_TOWARD(entry->role) == M2M_RIGHT)
		return true;
	/* It has counted in the numbers that its splice makes. */
	return (row->entry.flags & M2M_SPLICED) == spliced &&
	       (!spliced || !memcmp(&row->splice, &flat->splice, sizeof(row->splice)));
}

int m2m_do_redirect(struct m2m_state *state, struct genl_info *info)
{
	const struct m2m_flat_row *flat;
	int count = m2m_array(info, M2M_A_ROWS, &flat);
	struct m2m_result *results;
	struct m2m_hop **hops;
	int done, error;

	if (count < 0)
		return count;
	hops = kvcalloc(count, sizeof(*hops), GFP_KERNEL);
	results = kvcalloc(count, sizeof(*results), GFP_KERNEL);
	error = -ENOMEM;
	done = 0;
	if (!hops || !results)
		goto out;
	for (; done < count; done++) {
		const struct m2m_entry *entry = &flat[done].entry;
		struct m2m_row *row = m2m_session_row(state, info, &flat[done].key);

		error = PTR_ERR_OR_ZERO(row) ?: m2m_check_row(info, &flat[done]);
		if (error)
			goto out;
		if (!same_session(row, &flat[done])) {
			error = m2m_refuse(info, &flat[done], -EINVAL,
					   "a row that is not to be redirected like this");
			goto out;
		}
		if (M2M_ROLE_ACTION(entry->role) != M2M_SEND || !entry->ifindex)
			continue;
		hops[done] = m2m_hop_get(state, entry->ifindex, entry->next_hop);
		if (!hops[done]) {
			error = m2m_refuse(info, &flat[done], -ENODEV,
					   "a row that sends by an interface that is not there");
			goto out;
		}
	}
	for (done = 0; done < count; done++) {
		struct m2m_row *row = m2m_table_find(&state->table, &flat[done].key);
		struct m2m_hop *old = row->hop;

		spin_lock_bh(&row->lock);
		m2m_row_redirect(row, &flat[done].entry, &flat[done].splice, hops[done]);
		results[done].packets = row->entry.packets;
		spin_unlock_bh(&row->lock);
		m2m_hop_put(old);
	}
	done = 0;
	error = m2m_answer_with(info, M2M_A_RESULTS, results, count * sizeof(*results));
out:
	while (done--)
		m2m_hop_put(hops[done]);
	kvfree(hops);
	kvfree(results);
	return error;
}

static void free_waits(struct m2m_wait **waits, int count)
{
	while (waits && count--)
		kfree(waits[count]);
	kvfree(waits);
}

static struct m2m_wait **new_waits(int count)
{
	struct m2m_wait **waits = kvcalloc(count, sizeof(*waits), GFP_KERNEL);
	int done;

	for (done = 0; waits && done < count; done++) {
		waits[done] = kzalloc(sizeof(**waits), GFP_KERNEL_ACCOUNT);
		if (!waits[done]) {
			free_waits(waits, done);
			return NULL;
		}
	}
	return waits;
}

static int check_hold(struct m2m_state *state, struct genl_info *info, const struct m2m_key4 *key,
		      bool substream)
{
	struct m2m_row *row = m2m_session_row(state, info, key);

	if (IS_ERR(row))
		return PTR_ERR(row);
	if (M2M_ROLE_ACTION(row->entry.role) != M2M_SEND)
		return m2m_refuse(info, key, -EOPNOTSUPP, "packets are not sent on here");
	if (substream && key->proto != M2M_PROTO_TCP)
		return m2m_refuse(info, key, -EPROTONOSUPPORT, "only TCP has substreams");
	return 0;
}

int m2m_do_hold(struct m2m_state *state, struct genl_info *info)
{
	u32 serial = nla_get_u32(info->attrs[M2M_A_SERIAL]);
	bool substream = info->attrs[M2M_A_SUBSTREAM];
	const struct m2m_key4 *keys;
	int count = m2m_array(info, M2M_A_KEYS, &keys);
	struct m2m_result *results;
	struct m2m_wait **waits;
	int index, error = 0;

	if (count < 0)
		return count;
	for (index = 0; !error && index < count; index++)
		error = check_hold(state, info, &keys[index], substream);
	if (error)
		return error;
	waits = new_waits(count);
	results = kvcalloc(count, sizeof(*results), GFP_KERNEL);
	if (!waits || !results) {
		free_waits(waits, count);
		kvfree(results);
		return -ENOMEM;
	}
	for (index = 0; index < count; index++)
		m2m_hold_begin(state, m2m_table_find(&state->table, &keys[index]), waits[index],
			       serial, substream, &results[index]);
	kvfree(waits);
	error = m2m_answer_with(info, M2M_A_RESULTS, results, count * sizeof(*results));
	kvfree(results);
	return error;
}

int m2m_do_resume(struct m2m_state *state, struct genl_info *info)
{
	const struct m2m_key4 *keys;
	int count = m2m_array(info, M2M_A_KEYS, &keys);
	struct m2m_result *results;
	int index, error;

	if (count < 0)
		return count;
	results = kvcalloc(count, sizeof(*results), GFP_KERNEL);
	if (!results)
		return -ENOMEM;
	for (index = 0; index < count; index++) {
		struct m2m_row *row = m2m_table_find(&state->table, &keys[index]);

		if (row)
			results[index].packets = m2m_hold_end(state, row);
	}
	error = m2m_answer_with(info, M2M_A_RESULTS, results, count * sizeof(*results));
	kvfree(results);
	return error;
}

/* Watch for an acknowledgement, or for a number of packets. */
static int watch(struct m2m_state *state, struct genl_info *info, u32 kind)
{
	u32 serial = nla_get_u32(info->attrs[M2M_A_SERIAL]);
	u64 number = nla_get_u64(info->attrs[M2M_A_NUMBER]);
	const struct m2m_key4 *keys;
	int count = m2m_array(info, M2M_A_KEYS, &keys);
	struct m2m_wait **waits;
	int index;

	if (count < 0)
		return count;
	for (index = 0; index < count; index++) {
		struct m2m_row *row = m2m_session_row(state, info, &keys[index]);

		if (IS_ERR(row))
			return PTR_ERR(row);
	}
	waits = new_waits(count);
	if (!waits)
		return -ENOMEM;
	for (index = 0; index < count; index++) {
		struct m2m_row *row = m2m_table_find(&state->table, &keys[index]);
		struct m2m_wait *wait;
		u32 untold = 0;

		spin_lock_bh(&row->lock);
		wait = m2m_wait_take(row, waits[index]);
		wait->state |= kind;
		if (kind == M2M_WAIT_ACK) {
			wait->ack = (u32)number;
			wait->ack_serial = serial;
			wait->state &= ~M2M_UNTOLD_ACK; /* of an earlier wish */
			if (row->entry.flags & M2M_SEEN_ACK &&
			    !m2m_seq_after(wait->ack, row->entry.max_ack))
				untold = M2M_UNTOLD_ACK;
		} else {
			wait->count = number;
			wait->count_serial = serial;
			wait->state &= ~M2M_UNTOLD_COUNT;
			if (row->entry.packets >= number)
				untold = M2M_UNTOLD_COUNT;
		}
		if (untold)
			wait->state = (wait->state & ~kind) | untold;
		spin_unlock_bh(&row->lock);
		if (untold)
			m2m_tell_row(state, row, untold);
	}
	kvfree(waits);
	return 0;
}

int m2m_do_watch_ack(struct m2m_state *state, struct genl_info *info)
{
	return watch(state, info, M2M_WAIT_ACK);
}

int m2m_do_watch_count(struct m2m_state *state, struct genl_info *info)
{
	return watch(state, info, M2M_WAIT_COUNT);
}

int m2m_do_inherit(struct m2m_state *state, struct genl_info *info)
{
	const struct m2m_key4 *keys;
	int count = m2m_array(info, M2M_A_KEYS, &keys);
	struct m2m_row *from, *to;
	struct m2m_entry seen;

	if (count != 2)
		return m2m_refuse(info, NULL, -EINVAL, "two keys are needed");
	from = m2m_table_find(&state->table, &keys[0]);
	to = m2m_table_find(&state->table, &keys[1]);
	if (!from || !to || from == to || !m2m_row_is_session(from) || !m2m_row_is_session(to) ||
	    from->entry.session != to->entry.session)
		return 0;
	m2m_row_read(from, &seen);
	spin_lock_bh(&to->lock);
	if (seen.flags & M2M_SEEN_SEQ && (!(to->entry.flags & M2M_SEEN_SEQ) ||
					  m2m_seq_after(seen.max_seq, to->entry.max_seq)))
		to->entry.max_seq = seen.max_seq;
	if (seen.flags & M2M_SEEN_ACK && (!(to->entry.flags & M2M_SEEN_ACK) ||
					  m2m_seq_after(seen.max_ack, to->entry.max_ack)))
		to->entry.max_ack = seen.max_ack;
	to->entry.flags |= seen.flags & (M2M_SEEN_SEQ | M2M_SEEN_ACK);
	spin_unlock_bh(&to->lock);
	return 0;
}

/* The flow is not steered: its row says so until it is idle, or for a second. */
static int unsteer(struct m2m_state *state, const struct m2m_key4 *key, u8 action)
{
	struct m2m_entry entry = {
		.role = M2M_ROLE(action, M2M_RIGHT, M2M_CLIENT),
		.src = key->src,
		.dst = key->dst,
		.sport = key->sport,
		.dport = key->dport,
	};
	struct m2m_row *fresh = m2m_row_new(key, GFP_KERNEL_ACCOUNT), *row;
	bool room = m2m_table_reserve(&state->table, 1), stays;
	struct m2m_hop *old;

	if (!fresh) {
		m2m_table_return(&state->table, room);
		return -ENOMEM;
	}
	row = m2m_table_add(&state->table, fresh);
	if (row != fresh)
		kfree(fresh);
	else
		atomic_inc(&state->undecided);
	m2m_hold_end(state, row);
	spin_lock_bh(&row->lock);
	if (row->kind == M2M_ROW_UNDECIDED)
		atomic_dec(&state->undecided);
	old = row->hop;
	m2m_row_fill(row, &entry, NULL, NULL, m2m_now(state));
	stays = row->counted || room;
	if (row->counted)
		m2m_table_return(&state->table, room);
	row->counted = stays;
	spin_unlock_bh(&row->lock);
	m2m_hop_put(old);
	m2m_drain(state, row);
	if (!stays) /* it is decided anew for the flow's next first packet */
		m2m_discard(state, row);
	return 0;
}

int m2m_do_release(struct m2m_state *state, struct genl_info *info)
{
	u8 verdict = nla_get_u8(info->attrs[M2M_A_VERDICT]);
	const struct m2m_key4 *key;
	int count = m2m_array(info, M2M_A_KEYS, &key);
	struct m2m_row *row;
	bool waits;

	if (count != 1 || key->hook != M2M_HOOK_OUT || key->zero[0] || key->zero[1] ||
	    (key->proto != M2M_PROTO_TCP && key->proto != M2M_PROTO_UDP))
		return m2m_refuse(info, NULL, -EINVAL, "one key of packets that leave is needed");
	if (verdict != M2M_RELEASE_STEER)
		return unsteer(state, key, verdict == M2M_RELEASE_PASS ? M2M_PASS : M2M_DROP);
	row = m2m_table_find(&state->table, key);
	if (!row)
		return 0;
	if (row->kind == M2M_ROW_UNDECIDED) {
		m2m_discard(state, row);
		return 0;
	}
	spin_lock_bh(&row->lock);
	waits = row->wait && row->wait->state & M2M_WAIT_FIRST;
	spin_unlock_bh(&row->lock);
	if (waits)
		m2m_drain(state, row);
	return 0;
}
