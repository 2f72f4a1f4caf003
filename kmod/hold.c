// SPDX-License-Identifier: GPL-2.0
/*
 * Packets that wait: first packets until the agent has decided over their flow, and those of live
 * sessions while their chain changes. Each row has a queue of its own.
 *
 * Order. A row's lock decides who was first. While a queue empties (M2M_WAIT_DRAINING), whoever
 * comes is put behind it, and it counts as empty only after the last of them has been sent, not
 * taken out: nobody overtakes. So that there is an end to it, once those are gone that were there
 * at the beginning, others wait in their hook for the moment it takes (row->closing): what leaves
 * makes the sender send more.
 *
 * All draining happens in process context under &m2m_net.lock: packets only ask for it.
 */
#include <linux/netdevice.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <net/inet_hashtables.h>
#include <net/sock.h>

#include "module.h"

/* How often a packet looks whether another processor is through: for a millisecond or so. */
#define M2M_PATIENCE 20000

/* So many are sent before other work of this processor has its turn. */
#define M2M_AT_ONCE 64

/* A packet that waits, and what the kernel must know to go on with it. */
struct m2m_parcel {
	struct list_head node;
	struct sk_buff *skb;
	struct sock *sk;
	int (*okfn)(struct net *net, struct sock *sk, struct sk_buff *skb);
	int in; /* interfaces by their indexes: they may go meanwhile */
	int out;
	u8 hook;
	bool first;
};

/* A row's record of what waits: the one it has, or else this one; its lock is held. */
struct m2m_wait *m2m_wait_take(struct m2m_row *row, struct m2m_wait *fresh)
{
	if (row->wait) {
		kfree(fresh);
		return row->wait;
	}
	fresh->row = row;
	INIT_LIST_HEAD(&fresh->node);
	INIT_LIST_HEAD(&fresh->queue);
	row->wait = fresh;
	return fresh;
}

/* The same, made if need be. */
struct m2m_wait *m2m_wait_of(struct m2m_row *row, gfp_t gfp)
{
	struct m2m_wait *wait = row->wait;

	if (wait)
		return wait;
	wait = kzalloc(sizeof(*wait), gfp | __GFP_NOWARN);
	return wait ? m2m_wait_take(row, wait) : NULL;
}

/* Forget the record when it says nothing any more; the row's lock is held. */
void m2m_wait_done(struct m2m_row *row)
{
	struct m2m_wait *wait = row->wait;

	if (wait && !wait->state && list_empty(&wait->queue) && list_empty(&wait->node)) {
		row->wait = NULL;
		kfree(wait);
	}
}

static void parcel_free(struct m2m_state *state, struct m2m_parcel *parcel)
{
	atomic_dec(parcel->first ? &state->first_waiting : &state->live_waiting);
	if (parcel->sk)
		sock_gen_put(parcel->sk);
	kfree(parcel);
}

/* Put a packet behind those that wait; the row's lock is held. Takes nothing when it fails. */
static int enqueue(struct m2m_state *state, struct m2m_wait *wait, struct sk_buff *skb,
		   const struct nf_hook_state *at, bool first)
{
	struct m2m_parcel *parcel = kmalloc(sizeof(*parcel), GFP_ATOMIC | __GFP_NOWARN);

	if (!parcel)
		goto full;
	*parcel = (struct m2m_parcel){
		.skb = skb,
		.sk = at->sk,
		.okfn = at->okfn,
		.in = at->in ? at->in->ifindex : 0,
		.out = at->out ? at->out->ifindex : 0,
		.hook = at->hook,
		.first = first,
	};
	if ((skb_dst(skb) && !skb_dst_force(skb)) ||
	    (at->sk && !refcount_inc_not_zero(&at->sk->sk_refcnt))) {
		kfree(parcel);
		goto full;
	}
	atomic_inc(first ? &state->first_waiting : &state->live_waiting);
	list_add_tail(&parcel->node, &wait->queue);
	wait->queued++;
	wait->held++;
	m2m_count(state, M2M_HELD, 1);
	return 0;
full:
	m2m_count(state, M2M_HOLD_OVERFLOW, 1);
	return -ENOBUFS;
}

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
	error = enqueue(state, wait, skb, at, true);
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
		m2m_fragments_note(state->fragments, key, headers->id, m2m_now());
	if (enqueue(state, wait, skb, at, false))
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

/* The last of a queue are leaving, on another processor: they must be gone first. */
void m2m_see_them_off(const struct m2m_row *row)
{
	int look;

	for (look = 0; look < M2M_PATIENCE && READ_ONCE(row->closing); look++)
		cpu_relax();
}

/* One packet goes on as if it came just now, and does not wait again. */
static void send(struct m2m_state *state, struct m2m_row *row, struct m2m_parcel *parcel)
{
	struct nf_hook_state at = {
		.hook = parcel->hook,
		.pf = NFPROTO_IPV4,
		.sk = parcel->sk,
		.net = state->net,
		.okfn = parcel->okfn,
		.in = parcel->in ? dev_get_by_index_rcu(state->net, parcel->in) : NULL,
		.out = parcel->out ? dev_get_by_index_rcu(state->net, parcel->out) : NULL,
	};
	u8 hook = parcel->hook == NF_INET_PRE_ROUTING ? M2M_HOOK_IN : M2M_HOOK_OUT;
	struct sk_buff *skb = parcel->skb;
	struct m2m_headers headers;

	skb->dev = hook == M2M_HOOK_IN ? at.in : at.out;
	if (!skb->dev || (parcel->in && !at.in)) { /* it has gone, and all that waited for it */
		m2m_count(state, M2M_NO_NEIGHBOUR, 1);
		kfree_skb(skb);
	} else if (!m2m_parse(skb, &headers)) {
		m2m_count(state, M2M_TRUNCATED, 1);
		kfree_skb(skb);
	} else {
		m2m_go_on(state, skb, &at, m2m_meet(state, row, skb, &at, &headers, hook, true));
	}
	parcel_free(state, parcel);
}

/**
 * m2m_drain - let go what waits for a row, in order; nothing waits for it any more
 * @state: the namespace's
 * @row: under &m2m_net.lock
 *
 * All have left when it returns. Returns how many had been held.
 */
u32 m2m_drain(struct m2m_state *state, struct m2m_row *row)
{
	struct m2m_parcel *parcel;
	struct m2m_wait *wait;
	u32 held = 0, left, sent = 0;

	local_bh_disable();
	rcu_read_lock();
	spin_lock(&row->lock);
	wait = row->wait;
	if (!wait)
		goto out;
	held = wait->held;
	wait->held = 0;
	left = wait->queued;
	list_del_init(&wait->node);
	wait->state &= ~(M2M_WAIT_FIRST | M2M_WAIT_HOLD | M2M_WAIT_SUBSTREAM | M2M_WAIT_OVERFLOW |
			 M2M_UNTOLD_HELD);
	wait->state |= M2M_WAIT_DRAINING;
	while ((parcel = list_first_entry_or_null(&wait->queue, struct m2m_parcel, node))) {
		list_del(&parcel->node);
		wait->queued--;
		if (left)
			left--;
		else
			WRITE_ONCE(row->closing, true);
		spin_unlock(&row->lock);
		send(state, row, parcel);
		if (!(++sent % M2M_AT_ONCE)) {
			WRITE_ONCE(row->closing, false); /* nobody waits for what may take long */
			rcu_read_unlock();
			local_bh_enable();
			cond_resched();
			local_bh_disable();
			rcu_read_lock();
		}
		spin_lock(&row->lock);
	}
	WRITE_ONCE(row->closing, false);
	wait->held = 0;
	wait->state &= ~M2M_WAIT_DRAINING;
	m2m_wait_done(row);
out:
	spin_unlock(&row->lock);
	rcu_read_unlock();
	local_bh_enable();
	return held;
}

/**
 * m2m_discard - take a row out; what waits for it goes first
 * @state: the namespace's
 * @row: under &m2m_net.lock
 */
void m2m_discard(struct m2m_state *state, struct m2m_row *row)
{
	for (;;) {
		m2m_drain(state, row);
		spin_lock_bh(&row->lock);
		if (!row->wait || list_empty(&row->wait->queue))
			break;
		spin_unlock_bh(&row->lock); /* another first packet has come meanwhile */
	}
	row->dead = true;
	kfree(row->wait);
	row->wait = NULL;
	if (row->kind == M2M_ROW_UNDECIDED)
		atomic_dec(&state->undecided);
	m2m_hop_put(row->hop);
	m2m_table_remove(&state->table, row);
	spin_unlock_bh(&row->lock);
	kfree_rcu(row, rcu);
}

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
	struct m2m_row *row;
	u32 bucket, untold;

	for (bucket = 0; bucket <= state->table.mask; bucket++) {
		hlist_for_each_entry_rcu(row, &state->table.buckets[bucket], node, true) {
			if (!READ_ONCE(row->wait))
				continue;
			spin_lock_bh(&row->lock);
			untold = row->wait ? row->wait->state & M2M_UNTOLD : 0;
			spin_unlock_bh(&row->lock);
			if (untold)
				m2m_tell_row(state, row, untold);
		}
		cond_resched();
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
	struct m2m_wait *wait;
	struct hlist_node *next;
	struct m2m_row *row;
	u32 bucket;

	while ((wait = list_first_entry_or_null(&state->held, struct m2m_wait, node)))
		m2m_drain(state, wait->row);
	for (bucket = 0; bucket <= state->table.mask; bucket++) {
		hlist_for_each_entry_safe(row, next, &state->table.buckets[bucket], node) {
			bool first;

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
		}
		cond_resched();
	}
}

/* Throw away what still waits: its namespace goes, or the module. Nobody else may be looking. */
void m2m_wait_purge(struct m2m_state *state)
{
	struct m2m_parcel *parcel, *next;
	struct m2m_row *row;
	u32 bucket;

	for (bucket = 0; state->table.buckets && bucket <= state->table.mask; bucket++) {
		hlist_for_each_entry(row, &state->table.buckets[bucket], node) {
			if (!row->wait)
				continue;
			list_for_each_entry_safe(parcel, next, &row->wait->queue, node) {
				kfree_skb(parcel->skb);
				parcel_free(state, parcel);
			}
		}
	}
}
