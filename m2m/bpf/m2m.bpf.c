// SPDX-License-Identifier: GPL-2.0
/*
 * The datapath: every packet that enters or leaves the host on an attached interface.
 *
 *   network ─► m2m_in ──(IN, tuple)──► DELIVER: restored, on to the host's own stack
 *                 │                └─► SEND: translated, straight to the next hop
 *                 └─ unknown ─► untouched (or dropped, if it claims to be of a session)
 *
 *   stack ──► m2m_out ─(OUT, tuple)─► SEND: translated, to the next hop (a tap never gets here)
 *                 └─ unknown ─► untouched
 *
 * While its chain changes, a session's packets can wait on either way; m2m_held takes up those
 * that have waited (change.h).
 */
#include "account.h"
#include "agent_change.h"
#include "agent_splice.h"
#include "change.h"
#include "clock.h"
#include "fragments.h"
#include "held.h"
#include "maps.h"
#include "mss.h"
#include "neighbours.h"
#include "notes.h"
#include "packet.h"
#include "rewrite.h"
#include "splice.h"
#include "sweep.h"

/* The host's own addresses: what is addressed to others we only forward. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct m2m_addr);
	__type(value, u8);
} addresses SEC(".maps");

/*
 * Redirected packets pass the egress hook once more; these marks spare them the second look-up.
 * They can leave the host on a veth whose egress has no program: ingress takes them off again.
 */
#define M2M_FROM_NETWORK 0x4d32
#define M2M_FROM_STACK 0x4d33

static __always_inline int m2m_is_mark(u32 tc_index)
{
	return tc_index == M2M_FROM_NETWORK || tc_index == M2M_FROM_STACK;
}

static __always_inline int m2m_drop(enum m2m_reason reason, u32 packets)
{
	m2m_count(reason, packets);
	return TC_ACT_SHOT;
}

#define M2M_PACKET_HOST 0 /* PACKET_HOST of if_packet.h; a bridge passes on what is to others */

/* Whether a packet is for the host itself. */
static __always_inline int m2m_is_own(const struct __sk_buff *skb, const struct m2m_addr *to)
{
	const struct m2m_addr any = {}; /* an agent says so where nothing is routed */

	return bpf_map_lookup_elem(&addresses, to) ||
	       (skb->pkt_type == M2M_PACKET_HOST && bpf_map_lookup_elem(&addresses, &any));
}

/* A packet that no entry matches. */
static __always_inline int m2m_unknown(const struct __sk_buff *skb,
				       const struct m2m_config *config,
				       const struct m2m_key *key,
				       const struct m2m_headers *headers, u32 now)
{
	if (key->tuple.hook == M2M_HOOK_OUT)
		return TC_ACT_UNSPEC;
	if (headers->later_fragment) {
		/*
		 * Without ports nobody can tell whose it is, and fragments of untouched traffic
		 * may arrive in any order. Between hosts whose subsessions are being fragmented
		 * it is most likely one of those, whose first was lost: it would only wait in
		 * the stack for a datagram that never becomes whole.
		 */
		if (m2m_find_fragment(key, M2M_ANY_DATAGRAM, now) &&
		    m2m_is_own(skb, &key->tuple.dst))
			return m2m_drop(M2M_FRAGMENT_UNKNOWN, 1);
		return TC_ACT_UNSPEC;
	}
	/*
	 * Both ports of a subsession are of the range, so nothing else is met here. The stack
	 * would answer with a reset or an ICMP error, and end a session elsewhere.
	 */
	if (m2m_is_subsession_port(config, key->tuple.dport) &&
	    m2m_is_subsession_port(config, key->tuple.sport) &&
	    m2m_is_own(skb, &key->tuple.dst))
		return m2m_drop(M2M_NO_ENTRY, 1);
	return TC_ACT_UNSPEC;
}

/* What few packets need once they have been counted; one test finds out for all others. */
#define M2M_CHANGING 2 /* beside headers->first_fragment */

static __always_inline void m2m_seldom(const struct m2m_key *key, struct m2m_entry *entry,
				       const struct m2m_headers *headers,
				       const struct m2m_wire *wire, u32 now)
{
	if (headers->first_fragment & M2M_CHANGING)
		m2m_count_change(key, entry, wire->packets);
	if (headers->first_fragment & ~M2M_CHANGING)
		m2m_note_fragment(key, headers->ip_id, now);
}

static __always_inline int m2m_process(struct __sk_buff *skb, u8 hook)
{
	const struct m2m_fragment *fragment;
	struct m2m_headers headers;
	struct m2m_entry *entry;
	struct m2m_packet packet;
	struct m2m_edit edit;
	struct m2m_wire wire;
	struct m2m_key key;
	enum m2m_verdict verdict;
	enum m2m_reason reason;
	const struct m2m_config *config;
	int redirect, met;
	u32 now;

	config = m2m_get_config();
	if (!config || !m2m_parse(skb, &headers))
		return TC_ACT_UNSPEC;
	if (hook == M2M_HOOK_IN && !headers.later_fragment &&
	    !(m2m_may_come_in(config, headers.sport) && m2m_may_come_in(config, headers.dport)))
		return TC_ACT_UNSPEC;
	now = m2m_now(config);
	m2m_key_of(&key, hook, &headers);
	if (headers.later_fragment) {
		fragment = m2m_find_fragment(&key, headers.ip_id, now);
		if (!fragment)
			return m2m_unknown(skb, config, &key, &headers, now);
		key = fragment->key;
	}
	entry = m2m_find_entry(&key);
	if (!entry || !m2m_edit_of(&edit, &key, entry))
		return m2m_unknown(skb, config, &key, &headers, now);
	m2m_measure(skb, &headers, &wire);
	packet.hook = hook;
	packet.ttl = headers.ttl;
	packet.wire_len = wire.longest;
	if (headers.truncated)
		return m2m_drop(M2M_TRUNCATED, 1);
	if (edit.spliced && !m2m_find_splice(&key, &headers, &edit))
		return m2m_drop(M2M_NOT_SPLICED, 1);
	if (edit.role & M2M_ROLE_CHANGING) {
		met = m2m_meet_change(skb, &key, &headers, entry, &edit);
		if (met != M2M_GO_ON)
			return met;
		headers.first_fragment |= M2M_CHANGING;
	}
	if (edit.spliced && headers.tcp_flags & M2M_TCP_SYN)
		return m2m_drop(M2M_NOT_SPLICED, 1);
	verdict = m2m_judge(&edit, &packet, now, &reason);
	if (reason < M2M_REASONS)
		m2m_count(reason, wire.packets);
	if (verdict == M2M_VERDICT_DROP)
		return TC_ACT_SHOT;
	if (verdict == M2M_VERDICT_PASS) {
		/* A refusal that has run out is as good as gone; it does not live on by retries. */
		if (reason == M2M_PASSED)
			m2m_account(entry, &key, &headers, &wire, now);
		return TC_ACT_UNSPEC;
	}
	m2m_account(entry, &key, &headers, &wire, now);
	redirect = verdict == M2M_VERDICT_SEND &&
		   (hook == M2M_HOOK_IN || !m2m_leads_to(skb, &edit, now));
	if (headers.first_fragment)
		m2m_seldom(&key, entry, &headers, &wire, now);
	if (headers.tcp_flags & M2M_TCP_SYN) {
		if (hook == M2M_HOOK_IN && M2M_ROLE_POSITION(edit.role) == M2M_PROXY)
			skb->mark = M2M_PROXY_MARK;
		if (edit.mss && m2m_clamp_mss(skb, headers.l4, headers.l4_len, edit.mss))
			return m2m_drop(M2M_TRUNCATED, 1);
	}
	if (edit.spliced && !headers.later_fragment &&
	    !m2m_carry_stamped(skb, &headers, &edit) && m2m_carry(skb, &headers, &edit))
		return m2m_drop(M2M_TRUNCATED, 1);
	if (m2m_rewrite(skb, key.tuple.proto, &headers, &edit,
			verdict == M2M_VERDICT_SEND && hook == M2M_HOOK_IN))
		return m2m_drop(M2M_TRUNCATED, 1);
	if (redirect) {
		struct bpf_redir_neigh neighbour = {
			.nh_family = AF_INET,
			.ipv4_nh = edit.next_hop,
		};

		skb->tc_index = hook == M2M_HOOK_IN ? M2M_FROM_NETWORK : M2M_FROM_STACK;
		return bpf_redirect_neigh(edit.ifindex, &neighbour, sizeof(neighbour), 0);
	}
	return TC_ACT_UNSPEC;
}

SEC("tc")
int m2m_in(struct __sk_buff *skb)
{
	if (skb->tc_index == M2M_GIVEN_BACK) {
		skb->tc_index = 0;
		bpf_skb_change_type(skb, M2M_PACKET_HOST); /* its Ethernet address is not ours */
		return TC_ACT_UNSPEC;
	}
	if (m2m_is_mark(skb->tc_index))
		skb->tc_index = 0;
	/* A monitor that listens to everything makes others' packets come here too. */
	if (skb->pkt_type != 0 /* PACKET_HOST */)
		return TC_ACT_UNSPEC;
	return m2m_process(skb, M2M_HOOK_IN);
}

SEC("tc")
int m2m_out(struct __sk_buff *skb)
{
	const struct m2m_config *config;
	u32 mark = skb->tc_index;

	if (m2m_is_mark(mark)) {
		skb->tc_index = 0;
		config = m2m_get_config();
		if (mark == M2M_FROM_STACK && config)
			m2m_learn_neighbour(skb, m2m_now(config));
		return TC_ACT_UNSPEC;
	}
	return m2m_process(skb, M2M_HOOK_OUT);
}

/*
 * On the way out of the device where packets wait. What the agent puts there meets its hook as if
 * it came just now; what has waited meets it and does not wait again.
 */
SEC("tc")
int m2m_held(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	u32 mark = skb->tc_index, prefix;
	struct ethhdr *ethernet = data;
	struct m2m_waiting *all = m2m_get_waiting();
	__be32 late = 0;
	u8 hook, kind;
	int action;

	if (!all || (void *)(ethernet + 1) > end)
		return TC_ACT_SHOT;
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return m2m_asked(skb);
	if (skb->protocol != bpf_htons(ETH_P_IP))
		return TC_ACT_SHOT;
	prefix = ethernet->h_source[0] | ethernet->h_source[1] << 8 | ethernet->h_source[2] << 16;
	kind = ethernet->h_source[3];
	hook = ethernet->h_source[5] & 1;
	if (prefix == M2M_MAC_PREFIX && (kind == M2M_MAC_WHOLE || kind == M2M_MAC_COPY))
		return TC_ACT_UNSPEC;
	if (prefix == M2M_MAC_PREFIX && kind == M2M_MAC_AGAIN) {
		skb->tc_index = 0;
	} else {
		hook = mark >> M2M_NUMBER_HOOK_SHIFT & 1;
		if (!m2m_in_turn(skb, hook, mark & M2M_NUMBER_MASK, &late))
			return m2m_wait_at(all->ifindex, late);
		skb->tc_index = M2M_RELEASED;
	}
	m2m_came_by(skb, hook);
	if (hook == M2M_HOOK_IN)
		action = m2m_process(skb, M2M_HOOK_IN);
	else
		action = m2m_process(skb, M2M_HOOK_OUT);
	if (action != TC_ACT_UNSPEC)
		return action;
	/* There is no way on from here but the entry's, or to the stack, from where it came in. */
	if (hook == M2M_HOOK_OUT || !skb->cb[0])
		return m2m_drop(M2M_NO_ENTRY, 1);
	skb->tc_index = M2M_GIVEN_BACK;
	return bpf_redirect(skb->cb[0], BPF_F_INGRESS);
}

/* On the way in by it. */
SEC("tc")
int m2m_let_go(struct __sk_buff *skb)
{
	return m2m_answered(skb);
}

char _license[] SEC("license") = "GPL";
