// SPDX-License-Identifier: GPL-2.0
/*
 * What the steps of the datapath cost at a given number of entries (m2m/datapath/bench.py): the
 * very code of the datapath, M2M_BATCH keys at a time. Of each batch's time that of the same loop
 * without the step is subtracted, and with it what reading the clock costs.
 */
#include "account.h"
#include "maps.h"
#include "packet.h"
#include "rewrite.h"

#define M2M_BATCH 100

struct m2m_bench {
	u64 spent; /* ns, of the whole batch */
	u32 entries;
	u32 seed;
	u32 done; /* steps that went as they should */
	u32 first; /* of the entries to fill in or to take in their order */
	u32 count; /* to fill in */
	u32 random; /* draw keys from all entries instead */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct m2m_bench);
} bench SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, M2M_BATCH);
	__type(key, u32);
	__type(value, struct m2m_key);
} keys SEC(".maps");

static __always_inline struct m2m_bench *get_bench(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&bench, &zero);
}

/* The key of entry number n: neighbours differ in everything that differs between real flows. */
static __always_inline void key_of(struct m2m_key *key, u32 n)
{
	m2m_key_v4(key, M2M_HOOK_IN, M2M_PROTO_TCP, bpf_htonl(0x0a000000 + n),
		   bpf_htons(61000 + n % 2048), bpf_htonl(0x0aff0001), bpf_htons(63500 + n % 1024));
}

static __always_inline void entry_of(struct m2m_entry *entry, const struct m2m_key *key, u32 n)
{
	__builtin_memset(entry, 0, sizeof(*entry));
	entry->session = n + 1;
	entry->ifindex = 1;
	entry->role = M2M_ROLE(M2M_SEND, M2M_RIGHT, M2M_TAP);
	m2m_addr_from_v4(&entry->src, bpf_htonl(0x0aff0101));
	m2m_addr_from_v4(&entry->dst, bpf_htonl(0x0aff0102));
	entry->sport = bpf_htons(61000 + n % 1999);
	entry->dport = bpf_htons(63500 + n % 997);
	entry->super_src = key->tuple.src;
	entry->super_dst = entry->dst;
	m2m_entry_seal(key, entry);
}

/* Write down the keys of the next batch: in the order of insertion, or any. */
static __always_inline void draw(struct m2m_bench *work)
{
	u32 i, state = work->seed;

	for (i = 0; i < M2M_BATCH; i++) {
		u32 at = i;
		struct m2m_key *key = bpf_map_lookup_elem(&keys, &at);

		if (!key)
			return;
		state = state * 1664525 + 1013904223;
		if (work->random && work->entries)
			key_of(key, (state >> 4) % work->entries);
		else
			key_of(key, work->first + i);
	}
	work->seed = state;
}

/* The loop alone, with the clock read at both ends. */
static __always_inline u64 time_nothing(void)
{
	u64 began = bpf_ktime_get_ns();
	u32 i;

	for (i = 0; i < M2M_BATCH; i++) {
		u32 at = i;
		struct m2m_key *key = bpf_map_lookup_elem(&keys, &at);

		if (!key)
			break;
		asm volatile("" : : "r"(key) : "memory");
	}
	return bpf_ktime_get_ns() - began;
}

static __always_inline void report(struct m2m_bench *work, u64 spent, u32 done)
{
	u64 nothing = time_nothing();

	work->spent = spent > nothing ? spent - nothing : 0;
	work->done = done;
}

static long fill_one(u32 index, void *context)
{
	struct m2m_bench *work = context;
	u32 n = work->first + index;
	struct m2m_entry entry;
	struct m2m_key key;

	key_of(&key, n);
	entry_of(&entry, &key, n);
	return bpf_map_update_elem(&flows, &key, &entry, BPF_ANY) ? 1 : 0;
}

SEC("tc")
int bench_fill(struct __sk_buff *skb)
{
	struct m2m_bench *work = get_bench();
	struct m2m_bench job;

	(void)skb;
	if (!work)
		return 0;
	job = *work;
	work->done = bpf_loop(job.count, fill_one, &job, 0);
	return 0;
}

/* Find an entry and see that it is the one asked for: what comes before the first of its bytes. */
SEC("tc")
int bench_lookup(struct __sk_buff *skb)
{
	struct m2m_bench *work = get_bench();
	u32 i, done = 0;
	u64 began;

	(void)skb;
	if (!work)
		return 0;
	draw(work);
	began = bpf_ktime_get_ns();
	for (i = 0; i < M2M_BATCH; i++) {
		u32 at = i;
		struct m2m_key *key = bpf_map_lookup_elem(&keys, &at);
		const struct m2m_entry *entry;

		if (!key)
			break;
		entry = bpf_map_lookup_elem(&flows, key);
		if (entry && *(const volatile u32 *)&entry->tag == m2m_key_tag(key))
			done++;
	}
	report(work, bpf_ktime_get_ns() - began, done);
	return 0;
}

/*
 * All that is done to a packet of an established session between taking it apart and sending it,
 * the look-up included: m2m.datapath.bench takes that off.
 */
SEC("tc")
int bench_rewrite(struct __sk_buff *skb)
{
	struct m2m_bench *work = get_bench();
	struct m2m_packet packet = {.hook = M2M_HOOK_IN};
	struct m2m_headers headers;
	struct m2m_wire wire;
	struct m2m_edit edit;
	struct m2m_key parsed;
	enum m2m_reason reason;
	u32 i, done = 0;
	u64 began;

	if (!work || !m2m_parse(skb, M2M_HOOK_IN, &parsed, &headers))
		return 0;
	draw(work);
	began = bpf_ktime_get_ns();
	for (i = 0; i < M2M_BATCH; i++) {
		u32 at = i, now = bpf_ktime_get_coarse_ns() >> M2M_TICK_SHIFT;
		struct m2m_key *key = bpf_map_lookup_elem(&keys, &at);
		struct m2m_entry *entry;

		if (!key)
			break;
		entry = bpf_map_lookup_elem(&flows, key);
		if (!entry || !m2m_edit_of(&edit, key, entry))
			break;
		m2m_measure(skb, &headers, &wire);
		packet.ttl = headers.ttl;
		packet.wire_len = wire.longest;
		if (m2m_judge(&edit, &packet, now, &reason) != M2M_VERDICT_SEND)
			break;
		m2m_account(entry, key, &headers, &wire, now);
		if (m2m_rewrite(skb, M2M_PROTO_TCP, &headers, &edit, 1))
			break;
		done++;
	}
	report(work, bpf_ktime_get_ns() - began, done);
	return 0;
}

/* New entries, on top of those that are there; they stay. */
SEC("tc")
int bench_insert(struct __sk_buff *skb)
{
	struct m2m_bench *work = get_bench();
	struct m2m_entry entry;
	struct m2m_key first;
	u32 i, done = 0;
	u64 began;

	(void)skb;
	if (!work)
		return 0;
	draw(work);
	key_of(&first, work->first);
	entry_of(&entry, &first, work->first);
	began = bpf_ktime_get_ns();
	for (i = 0; i < M2M_BATCH; i++) {
		u32 at = i;
		struct m2m_key *key = bpf_map_lookup_elem(&keys, &at);

		if (!key || bpf_map_update_elem(&flows, key, &entry, BPF_NOEXIST))
			break;
		done++;
	}
	report(work, bpf_ktime_get_ns() - began, done);
	return 0;
}

char _license[] SEC("license") = "GPL";
