// SPDX-License-Identifier: GPL-2.0
/*
 * What the agent keeps with its sessions for the agent after it. No packet looks at it: it is here
 * because the kernel outlives agents, however they end. All of it is under &m2m_net.lock.
 */
#include <linux/hash.h>
#include <linux/slab.h>

#include "commands.h"

struct kept {
	struct hlist_node node;
	struct m2m_note note;
};

int m2m_notes_init(struct m2m_state *state, u32 room)
{
	u32 size = roundup_pow_of_two(max_t(u32, room, 16));

	state->notes = kvcalloc(size, sizeof(*state->notes), GFP_KERNEL_ACCOUNT);
	if (!state->notes)
		return -ENOMEM;
	state->notes_mask = size - 1;
	state->notes_room = room;
	state->notes_count = 0;
	return 0;
}

void m2m_notes_free(struct m2m_state *state)
{
	struct hlist_node *next;
	struct kept *kept;
	u32 bucket;

	for (bucket = 0; state->notes && bucket <= state->notes_mask; bucket++) {
		hlist_for_each_entry_safe(kept, next, &state->notes[bucket], node)
			kfree(kept);
	}
	kvfree(state->notes);
}

static struct hlist_head *bucket_of(const struct m2m_state *state, u64 session)
{
	return &state->notes[hash_64(session, 32) & state->notes_mask];
}

static struct kept *find(const struct m2m_state *state, u64 session)
{
	struct kept *kept;

	hlist_for_each_entry(kept, bucket_of(state, session), node) {
		if (kept->note.session == session)
			return kept;
	}
	return NULL;
}

static int keep(struct m2m_state *state, const struct m2m_note *note)
{
	struct kept *kept = find(state, note->session);

	if (!kept) {
		if (state->notes_count >= state->notes_room)
			return -ENOSPC;
		kept = kmalloc(sizeof(*kept), GFP_KERNEL_ACCOUNT);
		if (!kept)
			return -ENOMEM;
		hlist_add_head(&kept->node, bucket_of(state, note->session));
		state->notes_count++;
	}
	kept->note = *note;
	return 0;
}

static void forget(struct m2m_state *state, u64 session)
{
	struct kept *kept = find(state, session);

	if (kept) {
		hlist_del(&kept->node);
		kfree(kept);
		state->notes_count--;
	}
}

int m2m_set_notes(struct m2m_state *state, struct genl_info *info)
{
	const struct m2m_note *notes;
	int count = m2m_array(info, M2M_A_NOTES, &notes);
	int index, error;

	for (index = 0; index < count; index++) {
		error = keep(state, &notes[index]);
		if (error)
			return m2m_refuse(info, &notes[index], error, "no room for a note");
	}
	return min(count, 0);
}

int m2m_del_notes(struct m2m_state *state, struct genl_info *info)
{
	const void *given;
	int count = m2m_array_of(info, M2M_A_SESSIONS, sizeof(u64), &given);
	u64 session;
	int index;

	for (index = 0; index < count; index++) {
		memcpy(&session, given + index * sizeof(session), sizeof(session));
		forget(state, session);
	}
	return min(count, 0);
}

/**
 * m2m_dump_notes - append notes to a message, as many as there is room for
 * @state: the namespace's
 * @skb: the message
 * @at: where to go on: bucket, and place in it
 *
 * How many there were.
 */
int m2m_dump_notes(struct m2m_state *state, struct sk_buff *skb, unsigned long *at)
{
	struct nlattr *array = nla_reserve(skb, M2M_A_NOTES, 0);
	unsigned long place;
	struct kept *kept;
	int count = 0;

	if (!array)
		return 0;
	for (; at[0] <= state->notes_mask; at[0]++, at[1] = 0) {
		place = 0;
		hlist_for_each_entry(kept, &state->notes[at[0]], node) {
			if (place++ < at[1])
				continue;
			if (skb_tailroom(skb) < (int)sizeof(kept->note) ||
			    count >= M2M_MAX_NOTES)
				goto out;
			skb_put_data(skb, &kept->note, sizeof(kept->note));
			count++;
			at[1] = place;
		}
	}
out:
	array->nla_len = skb_tail_pointer(skb) - (unsigned char *)array;
	return count;
}
