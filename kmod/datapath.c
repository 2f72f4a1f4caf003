// SPDX-License-Identifier: GPL-2.0
/* What becomes of a packet. The core says it; here it is looked up, counted and carried out. */
#include <linux/icmp.h>
#include <linux/ip.h>
#include <linux/slab.h>

#include "module.h"

static unsigned int drop(const struct m2m_state *state, enum m2m_reason reason, u32 packets)
{
	m2m_count(state, reason, packets);
	return NF_DROP;
}

/* Whether a packet is for the host itself. */
static bool is_own(const struct m2m_state *state, const struct sk_buff *skb, __be32 to)
{
	const struct m2m_addresses *addresses = rcu_dereference(state->addresses);
	u32 index;

	if (!addresses)
		return false;
	if (addresses->any && skb->pkt_type == PACKET_HOST)
		return true;
	for (index = 0; index < addresses->count; index++) {
		if (addresses->v4[index] == to)
			return true;
	}
	return false;
}

/* Whether it says no more than that the flow was refused once. */
static bool is_past(const struct m2m_row *row, u32 now)
{
	return row->kind == M2M_ROW_DECIDED && M2M_ROLE_ACTION(row->entry.role) == M2M_DROP &&
	       m2m_ticks_since(row->entry.last_seen, now) > M2M_REFUSAL_TICKS;
}

/* A packet that may begin a session, and that no row decides over. */
static unsigned int open_flow(struct m2m_state *state, struct sk_buff *skb,
			      const struct nf_hook_state *at, struct m2m_headers *headers,
			      const struct m2m_key4 *key, struct m2m_row *row)
{
	enum m2m_policy policy;
	struct m2m_row *fresh;
	u32 tell = 0;
	int error;

	if (!!at->in != state->forwarded)
		return NF_ACCEPT;
	policy = m2m_policy_of(state, key);
	if (policy == M2M_POLICY_NONE)
		return NF_ACCEPT;
	if (m2m_is_away(state)) {
		if (policy == M2M_POLICY_CLOSED)
			return drop(state, M2M_AGENT_AWAY_CLOSED, 1);
		m2m_count(state, M2M_AGENT_AWAY_OPEN, 1);
		return NF_ACCEPT;
	}
	if (!row) {
		if (atomic_read(&state->first_waiting) >= (int)state->hold_packets)
			return drop(state, M2M_HOLD_OVERFLOW, 1);
		fresh = m2m_row_new(key, GFP_ATOMIC);
		if (!fresh)
			return drop(state, M2M_HOLD_OVERFLOW, 1);
		row = m2m_table_add(&state->table, fresh);
		if (row == fresh)
			atomic_inc(&state->undecided);
		else
			kfree(fresh);
	}
	spin_lock(&row->lock);
	if (row->dead || (row->kind == M2M_ROW_DECIDED && !is_past(row, m2m_now(state)))) {
		bool dead = row->dead;

		spin_unlock(&row->lock);
		if (dead) /* taken out just now */
			return drop(state, M2M_HOLD_OVERFLOW, 1);
		return m2m_meet(state, row, skb, at, headers, M2M_HOOK_OUT, false);
	}
	if (row->kind == M2M_ROW_DECIDED) {
		row->kind = M2M_ROW_UNDECIDED;
		atomic_inc(&state->undecided);
	}
	error = m2m_wait_first(state, row, skb, at, &tell);
	spin_unlock(&row->lock);
	if (error)
		return NF_DROP; /* counted */
	if (tell)
		m2m_tell_row(state, row, tell);
	return NF_STOLEN;
}

/* A packet that no row matches. */
static unsigned int unknown(struct m2m_state *state, struct sk_buff *skb,
			    const struct nf_hook_state *at, struct m2m_headers *headers,
			    const struct m2m_key4 *key, struct m2m_row *row)
{
	if (key->hook == M2M_HOOK_OUT)
		return !m2m_opens(headers) ? NF_ACCEPT :
					     open_flow(state, skb, at, headers, key, row);
	if (headers->later_fragment) {
		/*
		 * Without ports nobody can tell whose it is. Between hosts whose subsessions are
		 * being fragmented it is most likely one of those, whose first was lost.
		 */
		if (m2m_fragments_pass(state->fragments, key, m2m_now(state)) &&
		    is_own(state, skb, key->dst))
			return drop(state, M2M_FRAGMENT_UNKNOWN, 1);
		return NF_ACCEPT;
	}
	/*
	 * Both ports of a subsession are of the range, so nothing else is met here. The stack
	 * would answer with a reset or an ICMP error, and end a session elsewhere.
	 */
	if (m2m_is_subsession_port(&state->config, key->dport) &&
	    m2m_is_subsession_port(&state->config, key->sport) && is_own(state, skb, key->dst))
		return drop(state, M2M_NO_ENTRY, 1);
	return NF_ACCEPT;
}

/* What was held first goes without a decision: the agent is away, or has not made any. */
static unsigned int let_go(struct m2m_state *state, const struct m2m_key4 *key)
{
	enum m2m_policy policy;

	if (!m2m_is_away(state))
		return NF_ACCEPT;
	policy = m2m_policy_of(state, key);
	if (policy == M2M_POLICY_CLOSED)
		return drop(state, M2M_AGENT_AWAY_CLOSED, 1);
	if (policy == M2M_POLICY_OPEN)
		m2m_count(state, M2M_AGENT_AWAY_OPEN, 1);
	return NF_ACCEPT;
}

/* What its entry learns from a packet; under the row's lock. */
static void account(struct m2m_entry *entry, const struct m2m_headers *headers,
		    const struct m2m_wire *wire, u32 now)
{
	u32 end;

	entry->packets += wire->packets;
	entry->bytes += wire->bytes;
	entry->last_seen = now;
	if (headers->proto != M2M_PROTO_TCP || headers->later_fragment)
		return;
	/* The same ports, used again before the old session was taken down. */
	if (headers->tcp_flags & M2M_TCP_SYN && entry->flags & (M2M_SEEN_FIN | M2M_SEEN_RST))
		entry->flags &= ~M2M_SEEN;
	end = m2m_end_of(headers);
	if (!(entry->flags & M2M_SEEN_SEQ) || m2m_seq_after(end, entry->max_seq))
		entry->max_seq = end;
	entry->flags |= M2M_SEEN_SEQ;
	if (headers->tcp_flags & M2M_TCP_FIN)
		entry->flags |= M2M_SEEN_FIN;
	if (headers->tcp_flags & M2M_TCP_RST)
		entry->flags |= M2M_SEEN_RST;
	if (headers->tcp_flags & M2M_TCP_ACK) {
		if (!(entry->flags & M2M_SEEN_ACK) || m2m_seq_after(headers->ack, entry->max_ack))
			entry->max_ack = headers->ack;
		entry->flags |= M2M_SEEN_ACK;
	}
}

/* What the agent wants to be told; under the row's lock. */
static u32 watched(struct m2m_row *row, const struct m2m_headers *headers)
{
	struct m2m_wait *wait = row->wait;
	u32 tell = 0;

	if (wait->state & M2M_WAIT_ACK && headers->tcp_flags & M2M_TCP_ACK &&
	    !m2m_seq_after(wait->ack, headers->ack)) {
		wait->state &= ~M2M_WAIT_ACK;
		tell |= M2M_UNTOLD_ACK;
	}
	if (wait->state & M2M_WAIT_COUNT && row->entry.packets >= wait->count) {
		wait->state &= ~M2M_WAIT_COUNT;
		tell |= M2M_UNTOLD_COUNT;
	}
	wait->state |= tell;
	return tell;
}

/* Rewrite and send: from here on the row is not looked at any more. */
static unsigned int carry_out(struct m2m_state *state, struct sk_buff *skb,
			      const struct m2m_headers *headers, const struct m2m_edit *edit,
			      enum m2m_verdict verdict, struct rtable *rt, u8 hook)
{
	bool sends = verdict == M2M_VERDICT_SEND;

	if (m2m_rewrite(skb, headers, edit, sends && hook == M2M_HOOK_IN))
		return drop(state, M2M_TRUNCATED, 1);
	if (hook == M2M_HOOK_IN && M2M_ROLE_POSITION(edit->role) == M2M_PROXY &&
	    headers->tcp_flags & M2M_TCP_SYN)
		skb->mark = M2M_PROXY_MARK;
	if (!sends)
		return NF_ACCEPT;
	if (hook == M2M_HOOK_OUT)
		return m2m_reroute(skb, rt, edit) ? NF_ACCEPT : drop(state, M2M_NO_NEIGHBOUR, 1);
	if (m2m_transmit(skb, rt))
		m2m_count(state, M2M_NO_NEIGHBOUR, 1);
	return NF_STOLEN;
}

/*
 * A row for which something waits or is watched decides whether a packet does; its lock is held, and
 * only is when this returns GO_ON. Else a netfilter verdict.
 */
#define GO_ON (-1)
static noinline int ask_to_wait(struct m2m_state *state, struct m2m_row *row, struct sk_buff *skb,
				const struct nf_hook_state *at, struct m2m_headers *headers,
				u8 hook, u32 *tell)
{
	struct nf_hook_state again = *at;
	struct sk_buff *extra = NULL;
	unsigned int done = NF_DROP;

	switch (m2m_wait_meet(state, row, skb, at, headers, hook, &extra, tell)) {
	case M2M_MET_GO_ON:
		return GO_ON;
	case M2M_MET_TAKEN:
		break;
	case M2M_MET_DROP: /* counted */
		spin_unlock(&row->lock);
		kfree_skb(extra);
		return NF_DROP;
	}
	spin_unlock(&row->lock);
	if (*tell)
		m2m_tell_row(state, row, *tell);
	if (extra) { /* an acknowledgement that does not wait */
		if (m2m_parse(extra, headers))
			done = m2m_meet(state, row, extra, at, headers, hook, false);
		m2m_go_on(state, extra, &again, done);
	}
	return NF_STOLEN;
}

/**
 * m2m_meet - a packet meets a row
 * @state: the namespace's
 * @row: found under RCU
 * @skb: the packet
 * @at: where
 * @headers: its headers; changed when only a part of the packet goes on
 * @hook: M2M_HOOK_IN or _OUT
 * @released: it has waited, and does not again
 *
 * A netfilter verdict. Bottom halves are off.
 */
unsigned int m2m_meet(struct m2m_state *state, struct m2m_row *row, struct sk_buff *skb,
		      const struct nf_hook_state *at, struct m2m_headers *headers, u8 hook,
		      bool released)
{
	const struct m2m_key4 *key = &row->key;
	enum m2m_verdict verdict;
	enum m2m_reason reason;
	struct m2m_packet packet;
	struct rtable *rt = NULL;
	struct m2m_edit edit;
	struct m2m_wire wire;
	struct m2m_key wide;
	u32 now = m2m_now(state), tell = 0;
	int done;

	if (unlikely(headers->truncated))
		return drop(state, M2M_TRUNCATED, 1);
	if (!released && unlikely(READ_ONCE(row->closing)))
		m2m_see_them_off(row);
	spin_lock(&row->lock);
	if (unlikely(row->dead)) {
		spin_unlock(&row->lock);
		if (released)
			return hook == M2M_HOOK_OUT ? NF_ACCEPT : drop(state, M2M_NO_ENTRY, 1);
		return unknown(state, skb, at, headers, key, NULL);
	}
	if (unlikely(row->entry.flags & M2M_SPLICED) && headers->tcp_flags & M2M_TCP_SYN) {
		spin_unlock(&row->lock);
		return drop(state, M2M_NOT_SPLICED, 1);
	}
	m2m_row_numbers(row, headers);
	if (unlikely(row->wait) && !released) {
		done = ask_to_wait(state, row, skb, at, headers, hook, &tell);
		if (done != GO_ON)
			return done;
	}
	if (unlikely(row->kind == M2M_ROW_UNDECIDED || is_past(row, now))) {
		spin_unlock(&row->lock);
		if (released)
			return let_go(state, key);
		return unknown(state, skb, at, headers, key, row);
	}
	m2m_key_widen(&wide, key);
	m2m_edit_of(&edit, &wide, &row->entry);
	edit.port_diff = row->port_diff; /* the same, once for all */
	if (unlikely(edit.spliced))
		edit.splice = row->splice;
	m2m_measure(skb, headers, hook, edit.mtu, &wire);
	packet.hook = hook;
	packet.ttl = headers->ttl;
	packet.wire_len = wire.longest;
	verdict = m2m_judge(&edit, &packet, now, &reason);
	if (verdict == M2M_VERDICT_SEND) {
		if (row->hop)
			rt = rcu_dereference(row->hop->rt);
		if (!rt) { /* its interface has gone */
			verdict = M2M_VERDICT_DROP;
			reason = M2M_NO_NEIGHBOUR;
		}
	}
	if (verdict != M2M_VERDICT_DROP) {
		account(&row->entry, headers, &wire, now);
		if (unlikely(row->wait))
			tell |= watched(row, headers);
	}
	spin_unlock(&row->lock);

	if (reason < M2M_REASONS)
		m2m_count(state, reason, wire.packets);
	if (verdict == M2M_VERDICT_DROP)
		return NF_DROP;
	if (verdict == M2M_VERDICT_PASS)
		return NF_ACCEPT;
	if (unlikely(headers->first_fragment))
		m2m_fragments_note(state->fragments, key, headers->id, now);
	done = carry_out(state, skb, headers, &edit, verdict, rt, hook);
	if (unlikely(tell))
		m2m_tell_row(state, row, tell);
	return done;
}

/* A packet whose headers have been read, and the row that has been found for it, if there is one. */
static unsigned int decide(struct m2m_state *state, struct sk_buff *skb,
			   const struct nf_hook_state *at, struct m2m_headers *headers,
			   const struct m2m_key4 *key, struct m2m_row *row)
{
	if (row)
		return m2m_meet(state, row, skb, at, headers, key->hook, false);
	return unknown(state, skb, at, headers, key, NULL);
}

static noinline unsigned int process_closely(struct m2m_state *state, struct sk_buff *skb,
					     const struct nf_hook_state *at, u8 hook)
{
	struct m2m_headers headers;
	struct m2m_row *row = NULL;
	struct m2m_key4 key;

	if (ip_hdr(skb)->protocol == IPPROTO_ICMP)
		return m2m_process_icmp(state, skb, at, hook);
	if (!m2m_parse(skb, &headers))
		return NF_ACCEPT;
	if (hook == M2M_HOOK_IN && !headers.later_fragment &&
	    !(m2m_may_come_in(&state->config, headers.sport) &&
	      m2m_may_come_in(&state->config, headers.dport)))
		return NF_ACCEPT;
	m2m_key4_of(&key, hook, &headers);
	if (!headers.later_fragment ||
	    m2m_fragments_find(state->fragments, &key, headers.id, m2m_now(state)))
		row = m2m_table_find(&state->table, &key);
	return decide(state, skb, at, &headers, &key, row);
}

static noinline unsigned int process_found(struct m2m_state *state, struct sk_buff *skb,
					   const struct nf_hook_state *at,
					   const struct m2m_key4 *key, struct m2m_row *row)
{
	struct m2m_headers headers;

	if (!m2m_parse(skb, &headers))
		return NF_ACCEPT;
	return decide(state, skb, at, &headers, key, row);
}

/**
 * m2m_process - a packet meets a hook
 * @state: the namespace's
 * @skb: an IPv4 packet, its data beginning at the IP header
 * @at: where
 * @ports: m2m_ports_of() it; on the way in they may be those of a session
 * @hook: M2M_HOOK_IN or _OUT
 *
 * A netfilter verdict. Under RCU. All but the packets of sessions shall notice it as little as can
 * be: what has no row, and cannot begin anything, goes on after one look into the table.
 */
unsigned int m2m_process(struct m2m_state *state, struct sk_buff *skb,
			 const struct nf_hook_state *at, const __be16 *ports, u8 hook)
{
	const struct iphdr *ip = ip_hdr(skb);
	bool bottom_halves = !in_softirq(); /* most often they are off already */
	struct m2m_row *row = NULL;
	struct m2m_key4 key;
	unsigned int done;

	if (likely(ports)) {
		key = (struct m2m_key4){
			.src = ip->saddr,
			.dst = ip->daddr,
			.sport = ports[0],
			.dport = ports[1],
			.proto = ip->protocol,
			.hook = hook,
		};
		row = m2m_table_find(&state->table, &key);
		if (!row && hook == M2M_HOOK_OUT && key.proto == M2M_PROTO_TCP &&
		    !m2m_is_syn(((const u8 *)ports)[13]))
			return NF_ACCEPT;
	}
	if (bottom_halves)
		local_bh_disable();
	done = likely(ports) ? process_found(state, skb, at, &key, row) :
			       process_closely(state, skb, at, hook);
	if (bottom_halves)
		local_bh_enable();
	return done;
}
