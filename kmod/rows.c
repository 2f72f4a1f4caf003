// SPDX-License-Identifier: GPL-2.0
/* The agent's commands about rows: installed, removed, read. */
#include <linux/slab.h>

#include "commands.h"

/* Whether a row that has been sent can be installed. */
int m2m_check_row(struct genl_info *info, const struct m2m_flat_row *row)
{
	const struct m2m_key4 *key = &row->key;
	const struct m2m_entry *entry = &row->entry;
	u8 action = M2M_ROLE_ACTION(entry->role);

	if (key->proto != M2M_PROTO_TCP && key->proto != M2M_PROTO_UDP)
		return m2m_refuse(info, row, -EINVAL, "a row of neither TCP nor UDP");
	if (key->hook > M2M_HOOK_OUT || key->zero[0] || key->zero[1])
		return m2m_refuse(info, row, -EINVAL, "a row of an unknown hook");
	if (entry->role & ~M2M_ROLE(3, 1, 7) || M2M_ROLE_POSITION(entry->role) > M2M_PROXY ||
	    action > M2M_SEND)
		return m2m_refuse(info, row, -EINVAL, "a row of an unknown role");
	if (!entry->session)
		return m2m_refuse(info, row, -EINVAL, "a row of no session");
	return 0;
}

/* The row of a session with this key, or an error that says where it should have been. */
struct m2m_row *m2m_session_row(struct m2m_state *state, struct genl_info *info,
				const struct m2m_key4 *key)
{
	struct m2m_row *row = m2m_table_find(&state->table, key);

	if (!row || !m2m_row_is_session(row))
		return ERR_PTR(m2m_refuse(info, key, -ENOENT, "there is no such row"));
	return row;
}

/* What an installation needs, found before anything is changed. */
struct fresh {
	struct m2m_row *row;
	struct m2m_hop *hop;
};

static void undo(struct fresh *fresh, int count)
{
	while (count--) {
		kfree(fresh[count].row);
		m2m_hop_put(fresh[count].hop);
	}
}

static int prepare(struct m2m_state *state, struct genl_info *info,
		   const struct m2m_flat_row *flat, struct fresh *fresh, u32 *places)
{
	struct m2m_row *there = m2m_table_find(&state->table, &flat->key);
	int error = m2m_check_row(info, flat);

	*fresh = (struct fresh){};
	if (error)
		return error;
	if (!there || !there->counted)
		(*places)++;
	fresh->row = m2m_row_new(&flat->key, GFP_KERNEL_ACCOUNT);
	if (!fresh->row)
		return -ENOMEM;
	if (M2M_ROLE_ACTION(flat->entry.role) != M2M_SEND || !flat->entry.ifindex)
		return 0;
	fresh->hop = m2m_hop_get(state, flat->entry.ifindex, flat->entry.next_hop);
	if (fresh->hop)
		return 0;
	kfree(fresh->row);
	return m2m_refuse(info, flat, -ENODEV,
			  "a row that sends by an interface that is not there");
}

/* Packets with ports outside of this range are not looked up. It never shrinks. */
static void let_in(struct m2m_config *config, const struct m2m_key4 *key)
{
	u16 low = min(ntohs(key->sport), ntohs(key->dport));
	u16 high = max(ntohs(key->sport), ntohs(key->dport));

	if (key->hook != M2M_HOOK_IN)
		return;
	if (low < config->in_port_lo)
		WRITE_ONCE(config->in_port_lo, low);
	if (high > config->in_port_hi)
		WRITE_ONCE(config->in_port_hi, high);
}

/* A row becomes another one with the same key. What waits for the agent's decision still does. */
static void replace(struct m2m_state *state, struct m2m_row *row, const struct m2m_flat_row *flat,
		    struct m2m_hop *hop, u32 *places)
{
	struct m2m_hop *old;

	m2m_hold_end(state, row);
	spin_lock_bh(&row->lock);
	if (row->wait) {
		row->wait->state &= ~(M2M_WAIT_ACK | M2M_WAIT_COUNT | M2M_UNTOLD_ACK |
				      M2M_UNTOLD_COUNT | M2M_UNTOLD_OVERFLOW);
		m2m_wait_done(row);
	}
	if (row->kind == M2M_ROW_UNDECIDED)
		atomic_dec(&state->undecided);
	if (!row->counted)
		(*places)--;
	row->counted = true;
	old = row->hop;
	m2m_row_fill(row, &flat->entry, &flat->splice, hop, m2m_now(state));
	spin_unlock_bh(&row->lock);
	m2m_hop_put(old);
}

static void install(struct m2m_state *state, const struct m2m_flat_row *flat, struct fresh *fresh,
		    u32 *places)
{
	struct m2m_row *row = fresh->row, *there;

	let_in(&state->config, &flat->key);
	there = m2m_table_find(&state->table, &flat->key);
	if (!there) {
		row->counted = true;
		m2m_row_fill(row, &flat->entry, &flat->splice, fresh->hop, m2m_now(state));
		there = m2m_table_add(&state->table, row);
		if (there == row) {
			(*places)--;
			return;
		}
	}
	kfree(row);
	replace(state, there, flat, fresh->hop, places);
}

int m2m_set_rows(struct m2m_state *state, struct genl_info *info)
{
	const struct m2m_flat_row *flat;
	int count = m2m_array(info, M2M_A_ROWS, &flat);
	struct fresh *fresh;
	u32 places = 0;
	int done, error;

	if (count <= 0)
		return count;
	fresh = kvcalloc(count, sizeof(*fresh), GFP_KERNEL);
	if (!fresh)
		return -ENOMEM;
	for (done = 0; done < count; done++) {
		error = prepare(state, info, &flat[done], &fresh[done], &places);
		if (error)
			goto out;
	}
	error = -ENOSPC;
	if (!m2m_table_reserve(&state->table, places)) {
		m2m_refuse(info, NULL, error, "the translation table is full");
		goto out;
	}
	for (done = 0; done < count; done++)
		install(state, &flat[done], &fresh[done], &places);
	m2m_table_return(&state->table, places);
	done = 0;
	error = 0;
out:
	undo(fresh, done);
	kvfree(fresh);
	return error;
}

/* First packets of the flow go on waiting for the agent's decision. */
static bool is_awaited(struct m2m_state *state, struct m2m_row *row)
{
	struct m2m_hop *hop = NULL;
	bool awaited;

	spin_lock_bh(&row->lock);
	awaited = row->wait && row->wait->state & M2M_WAIT_FIRST;
	if (awaited && row->kind == M2M_ROW_DECIDED) {
		hop = row->hop;
		row->hop = NULL;
		row->kind = M2M_ROW_UNDECIDED;
		atomic_inc(&state->undecided);
	}
	spin_unlock_bh(&row->lock);
	m2m_hop_put(hop);
	return awaited;
}

int m2m_del_rows(struct m2m_state *state, struct genl_info *info)
{
	const struct m2m_key4 *keys;
	int count = m2m_array(info, M2M_A_KEYS, &keys);
	int index;

	for (index = 0; index < count; index++) {
		struct m2m_row *row = m2m_table_find(&state->table, &keys[index]);

		if (row && row->kind == M2M_ROW_DECIDED && !is_awaited(state, row))
			m2m_discard(state, row);
	}
	return min(count, 0);
}

static bool read_row(struct m2m_row *row, struct m2m_flat_row *flat)
{
	bool is_there;

	spin_lock_bh(&row->lock);
	is_there = m2m_row_is_session(row);
	flat->key = row->key;
	flat->entry = row->entry;
	flat->splice = row->splice;
	flat->zero = 0;
	spin_unlock_bh(&row->lock);
	return is_there;
}

int m2m_get_rows(struct m2m_state *state, struct genl_info *info)
{
	const struct m2m_key4 *keys;
	int count = m2m_array(info, M2M_A_KEYS, &keys);
	struct m2m_flat_row flat;
	struct sk_buff *message;
	struct nlattr *array;
	int index;
	void *head;

	if (count < 0)
		return count;
	if (count > M2M_MAX_ROWS)
		return m2m_refuse(info, keys, -E2BIG, "too many rows for one answer");
	message = m2m_reply(info, nla_total_size(count * sizeof(flat)), &head);
	if (!message)
		return -ENOMEM;
	array = nla_reserve(message, M2M_A_ROWS, 0);
	for (index = 0; array && index < count; index++) {
		struct m2m_row *row = m2m_table_find(&state->table, &keys[index]);

		if (row && read_row(row, &flat))
			skb_put_data(message, &flat, sizeof(flat));
	}
	if (array)
		array->nla_len = skb_tail_pointer(message) - (unsigned char *)array;
	return m2m_answer(info, message, head);
}

/* Append rows of sessions, as many as there is room for; how many there were. */
int m2m_dump_rows(struct m2m_state *state, struct sk_buff *skb, unsigned long *at)
{
	struct nlattr *array = nla_reserve(skb, M2M_A_ROWS, 0);
	struct m2m_flat_row flat;
	struct m2m_row *row;
	int count = 0;

	if (!array)
		return 0;
	for (; at[0] <= state->table.mask; at[0]++, at[1] = 0) {
		unsigned long place = 0;

		hlist_for_each_entry(row, &state->table.buckets[at[0]], node) {
			if (place++ < at[1])
				continue;
			if (skb_tailroom(skb) < (int)sizeof(flat) || count >= M2M_MAX_ROWS)
				goto out;
			at[1] = place;
			if (!read_row(row, &flat))
				continue;
			skb_put_data(skb, &flat, sizeof(flat));
			count++;
		}
	}
out:
	array->nla_len = skb_tail_pointer(skb) - (unsigned char *)array;
	return count;
}
