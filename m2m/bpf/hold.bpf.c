// SPDX-License-Identifier: GPL-2.0
/*
 * Holding first packets. An iptables rule of the mangle table's OUTPUT chain asks `hold` about
 * every packet that leaves the host's own sockets, or, at a gateway, one of the FORWARD chain about
 * every packet that is forwarded; what it picks is shown to `refuse`, whose yes
 * drops the packet and whose no sends it to the agent's netfilter queue (m2m.datapath.hold).
 *
 * Two programs, because the answer to iptables is one bit: `hold` runs for every packet and
 * decides alone, `refuse` runs for the few and keeps the counts.
 *
 * Packets begin at the network header here, whole: fragmentation comes later on the way out, and
 * at a gateway fragments have been put together before.
 * The sender of a dropped datagram is told (EPERM), as by any firewall of its own host.
 */
#include <linux/bpf.h>
#include <linux/ip.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "hold.h"
#include "maps.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct m2m_hold_state);
} hold_state SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC); /* few flows are held at once */
	__uint(max_entries, 65536);
	__type(key, struct m2m_tuple);
	__type(value, struct m2m_hold_record);
} holds SEC(".maps");

#define IP_OFFSET_MASK 0x1fff
#define TCP_SYN 0x02
#define TCP_ACK 0x10

static __always_inline struct m2m_hold_state *get_state(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&hold_state, &zero);
}

/* The key of a packet that may begin a session; false for all others. */
static __always_inline int read_opening(struct __sk_buff *skb, struct m2m_key *key)
{
	struct iphdr ip;
	u8 tcp[14]; /* as far as the flags */
	u32 at;

	if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) || ip.version != 4 ||
	    ip.frag_off & bpf_htons(IP_OFFSET_MASK))
		return 0;
	at = ip.ihl * 4;
	if (ip.protocol == M2M_PROTO_TCP) {
		if (bpf_skb_load_bytes(skb, at, tcp, sizeof(tcp)) ||
		    (tcp[13] & (TCP_SYN | TCP_ACK)) != TCP_SYN)
			return 0;
	} else if (ip.protocol == M2M_PROTO_UDP) {
		if (bpf_skb_load_bytes(skb, at, tcp, 4))
			return 0;
	} else {
		return 0;
	}
	m2m_key_v4(key, M2M_HOOK_OUT, ip.protocol, ip.saddr, *(__be16 *)tcp, ip.daddr,
		   *(__be16 *)(tcp + 2));
	return 1;
}

/* Whether the table says where this flow goes. A refusal that has expired says nothing. */
static __always_inline int has_entry(const struct m2m_key *key)
{
	const struct m2m_entry *entry = m2m_find_entry(key);
	u32 since, now;
	u8 role;

	if (!entry)
		return 0;
	role = entry->role;
	since = entry->last_seen;
	if (*(const volatile u16 *)&entry->tag != m2m_key_tag(key))
		return 0; /* recycled under our eyes */
	if (M2M_ROLE_ACTION(role) != M2M_DROP)
		return 1;
	now = bpf_ktime_get_coarse_ns() >> M2M_TICK_SHIFT;
	return m2m_ticks_since(since, now) <= M2M_REFUSAL_TICKS;
}

static __always_inline int still_waiting(const struct m2m_tuple *flow)
{
	const struct m2m_hold_record *record = bpf_map_lookup_elem(&holds, flow);

	return record && (__s64)(record->queued - record->released) > 0;
}

struct search {
	const struct m2m_tuple *flow;
	u32 first;
	int fail; /* enum m2m_fail of the rule that decides, or NOT_HELD */
};

#define NOT_HELD -1

static long try_rule(u32 index, void *context)
{
	struct search *search = context;
	u32 row = search->first + index;
	const struct m2m_rule *rule = bpf_map_lookup_elem(&rules, &row);

	if (!rule)
		return 1;
	if (!m2m_rule_match(rule, search->flow))
		return 0;
	if (!rule->exempt)
		search->fail = rule->fail;
	return 1;
}

static __always_inline int policy_of(const struct m2m_config *config, const struct m2m_tuple *flow)
{
	u32 active = config->active_rules & 1;
	struct search search = {
		.flow = flow, .first = active * M2M_MAX_RULES, .fail = NOT_HELD,
	};

	bpf_loop(config->rule_count[active], try_rule, &search, 0);
	return search.fail;
}

/* 1: the packet must not go on its own way now. */
SEC("socket")
int hold(struct __sk_buff *skb)
{
	const struct m2m_hold_state *state;
	const struct m2m_config *config;
	struct m2m_key key;
	int fail;

	if (!read_opening(skb, &key))
		return 0;
	state = get_state();
	config = m2m_get_config();
	if (!state || !config)
		return 0;
	if (key.tuple.proto == M2M_PROTO_UDP && state->queued != state->released &&
	    still_waiting(&key.tuple) && !m2m_agent_away(config, bpf_ktime_get_ns()))
		return 1;
	if (has_entry(&key))
		return 0;
	fail = policy_of(config, &key.tuple);
	if (fail == NOT_HELD)
		return 0;
	if (fail == M2M_FAIL_OPEN && m2m_agent_away(config, bpf_ktime_get_ns())) {
		m2m_count(M2M_AGENT_AWAY_OPEN, 1);
		return 0;
	}
	return 1;
}

static __always_inline struct m2m_hold_record *record_of(const struct m2m_tuple *flow)
{
	struct m2m_hold_record *record = bpf_map_lookup_elem(&holds, flow);
	struct m2m_hold_record fresh = {};

	if (record)
		return record;
	bpf_map_update_elem(&holds, flow, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&holds, flow); /* ours, or another CPU's */
}

/* 1: the packet is dropped. 0: it is counted and must go to the queue. */
SEC("socket")
int refuse(struct __sk_buff *skb)
{
	struct m2m_hold_record *record;
	struct m2m_hold_state *state;
	const struct m2m_config *config;
	struct m2m_key key;
	u64 now = bpf_ktime_get_ns();

	if (!read_opening(skb, &key))
		return 0;
	state = get_state();
	config = m2m_get_config();
	if (!state || !config)
		return 1;
	if (m2m_agent_away(config, now)) {
		m2m_count(M2M_AGENT_AWAY_CLOSED, 1);
		return 1;
	}
	if ((__s64)(state->queued - state->released) >= (__s64)state->limit)
		goto overflow;
	if (key.tuple.proto == M2M_PROTO_UDP) {
		record = record_of(&key.tuple);
		if (!record)
			goto overflow;
		record->since = now;
		__sync_fetch_and_add(&record->queued, 1);
	}
	__sync_fetch_and_add(&state->queued, 1);
	m2m_count(M2M_HELD, 1);
	return 0;
overflow:
	m2m_count(M2M_HOLD_OVERFLOW, 1);
	return 1;
}

/* Run by the agent, for what only a program can do without losing a count made meanwhile. */
SEC("syscall")
int settle(struct m2m_settle *request)
{
	struct m2m_tuple flow = request->flow;
	struct m2m_hold_record *record = bpf_map_lookup_elem(&holds, &flow);

	request->waiting = 0;
	request->kept = 0;
	if (request->refused)
		m2m_count(M2M_REFUSED, request->refused);
	if (request->overflowed)
		m2m_count(M2M_HOLD_OVERFLOW, request->overflowed);
	if (!record)
		return 0;
	__sync_fetch_and_add(&record->released, request->released);
	if ((__s64)(record->queued - record->released) > 0) {
		request->waiting = record->queued - record->released;
	} else if (request->quiet && bpf_ktime_get_ns() - record->since > request->quiet) {
		bpf_map_delete_elem(&holds, &flow);
		return 0;
	}
	request->kept = 1;
	return 0;
}

char _license[] SEC("license") = "GPL";
