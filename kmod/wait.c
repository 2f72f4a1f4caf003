// SPDX-License-Identifier: GPL-2.0
/*
 * Which packets wait: first packets until the agent has decided over their flow, and those of live
 * sessions while their chain changes.
 */
#include <linux/skbuff.h>

#include "queue.h"

/**
 * m2m_wait_first - hold a first packet
 * @state: the namespace's
 * @row: of its flow; its lock is held
 * @skb: the packet
 * @at: where it was met
 * @tell: what the agent has to be told
 *
 * Takes nothing, and counts the packet, when it fails.
 */
int m2m_wait_first(struct m2m_state *state, struct m2m_row *row, struct sk_buff *skb,
		   const struct nf_hook_state *at, u32 *tell)
{
	struct m2m_wait *wait = m2m_wait_of(row, GFP_ATOMIC);
	int error;

	if (!wait || atomic_read(&state->first_waiting) >= (int)state->hold_packets) {
		m2m_wait_done(row);
		m2m_count(state, M2M_HOLD_OVERFLOW, 1);
		return -ENOBUFS;
	}
	error = m2m_enqueue(state, wait, skb, at, true);
	if (!error && !(wait->state & M2M_WAIT_FIRST)) {
		wait->state |= M2M_WAIT_FIRST | M2M_UNTOLD_HELD;
		wait->first_serial = atomic_inc_return(&state->first_serial);
		*tell |= M2M_UNTOLD_HELD;
	}
	m2m_wait_done(row);
	return error;
}

/* What a packet of a held substream does. */
enum part {
	PART_OLD,  /* goes on */
	PART_NEW,  /* waits */
	PART_NEWS, /* waits, and acknowledges what nothing before it has */
	PART_BOTH, /* lies across the checkpoint */
};

static enum part part_of(const struct m2m_wait *wait, const struct m2m_entry *entry,
			 const struct m2m_headers *headers)
{
	u8 tcp = headers->tcp_flags;

	/* Whoever fragments TCP, the old path shall have it: numbers of a part say nothing. */
	if (headers->later_fragment || headers->first_fragment)
		return PART_OLD;
	if (!m2m_payload(headers) && !(tcp & (M2M_TCP_SYN | M2M_TCP_FIN | M2M_TCP_RST)))
		return PART_OLD;
	if (!m2m_seq_after(m2m_end_of(headers), wait->checkpoint))
		return PART_OLD;
	if (m2m_seq_after(wait->checkpoint, headers->seq))
		return PART_BOTH;
	if (tcp & M2M_TCP_ACK &&
	    (!(entry->flags & M2M_SEEN_ACK) || m2m_seq_after(headers->ack, entry->max_ack)))
		return PART_NEWS;
	return PART_NEW;
}

/* Too many of live sessions, or too long: to be let go, by somebody who may. */
static void check_bounds(struct m2m_state *state, struct m2m_wait *wait)
{
	if (!(wait->state & M2M_WAIT_HOLD) || wait->state & M2M_WAIT_OVERFLOW)
		return;
	if (atomic_read(&state->live_waiting) > (int)state->hold_packets) {
		wait->state |= M2M_WAIT_OVERFLOW;
		m2m_hold_kick(state, 0);
	}
}

static enum m2m_met wait_live(struct m2m_state *state, struct m2m_wait *wait, struct sk_buff *skb,
			      const struct nf_hook_state *at, struct m2m_headers *headers)
{
	const struct m2m_key4 *key = &wait->row->key;

	if (atomic_read(&state->live_waiting) >= 2 * (int)state->hold_packets) {
		m2m_count(state, M2M_HOLD_OVERFLOW, 1);
		return M2M_MET_DROP;
	}
	if (headers->first_fragment)
		m2m_fragments_note(state->fragments, key, headers->id, m2m_now(state));
	if (m2m_enqueue(state, wait, skb, at, false))
		return M2M_MET_DROP;
	check_bounds(state, wait);
	return M2M_MET_TAKEN;
}

/* The part beyond the checkpoint waits, the one before it goes on as *skb. */
static enum m2m_met cut(struct m2m_state *state, struct m2m_wait *wait, struct sk_buff *skb,
			const struct nf_hook_state *at, struct m2m_headers *headers)
{
	struct sk_buff *back = m2m_split(skb, headers, wait->checkpoint);

	if (IS_ERR(back)) {
		m2m_count(state, PTR_ERR(back) == -EBADMSG ? M2M_TRUNCATED : M2M_HOLD_OVERFLOW, 1);
		return M2M_MET_DROP;
	}
	if (wait_live(state, wait, back, at, headers) == M2M_MET_DROP)
		kfree_skb(back); /* TCP repeats it */
	if (!m2m_parse(skb, headers) || headers->truncated)
		return M2M_MET_DROP;
	m2m_row_numbers(wait->row, headers);
	return M2M_MET_GO_ON;
}

/**
 * m2m_wait_meet - a packet meets a row for which packets may wait
 * @state: the namespace's
 * @row: its lock is held, and it has a record
 * @skb: the packet
 * @at: where it was met
 * @headers: its headers; those of the part that goes on, if that is less
 * @hook: M2M_HOOK_IN or _OUT
 * @extra: an acknowledgement that goes on although the packet waits
 * @tell: what the agent has to be told
 */
enum m2m_met m2m_wait_meet(struct m2m_state *state, struct m2m_row *row, struct sk_buff *skb,
			   const struct nf_hook_state *at, struct m2m_headers *headers, u8 hook,
			   struct sk_buff **extra, u32 *tell)
{
	struct m2m_wait *wait = row->wait;

	if (wait->state & M2M_WAIT_FIRST && hook == M2M_HOOK_OUT && m2m_opens(headers))
		return m2m_wait_first(state, row, skb, at, tell) ? M2M_MET_DROP : M2M_MET_TAKEN;
	if (wait->state & M2M_WAIT_DRAINING)
		return wait_live(state, wait, skb, at, headers);
	if (!(wait->state & M2M_WAIT_HOLD))
		return M2M_MET_GO_ON;
	if (!(wait->state & M2M_WAIT_SUBSTREAM))
		return wait_live(state, wait, skb, at, headers);
	switch (part_of(wait, &row->entry, headers)) {
	case PART_OLD:
		break;
	case PART_NEWS:
		*extra = m2m_acknowledgement(skb, headers);
		fallthrough;
	case PART_NEW:
		return wait_live(state, wait, skb, at, headers);
	case PART_BOTH:
		return cut(state, wait, skb, at, headers);
	}
	/* A pure acknowledgement numbered behind what waits: that has not passed with it. */
	if (!headers->later_fragment && !m2m_payload(headers) &&
	    m2m_seq_after(headers->seq, wait->checkpoint))
		headers->seq = wait->checkpoint;
	return M2M_MET_GO_ON;
}
