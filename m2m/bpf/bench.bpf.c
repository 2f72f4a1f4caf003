// SPDX-License-Identifier: GPL-2.0
/*
 * What the steps of the datapath cost at a given number of entries (m2m/datapath/bench.py): the
 * very code of the datapath. The clock is read every M2M_BATCH steps, as the paper does, and all
 * batches of a series are measured in one go: with user space in between, each would begin with
 * caches and TLBs that hold something else.
 */
#include "account.h"
#include "clock.h"
#include "maps.h"
#include "packet.h"
#include "rewrite.h"

#define M2M_BATCH 100
#define M2M_MAX_BATCHES 1000

/* What is to be measured. */
struct m2m_bench {
	u32 entries; /* in the table */
	u32 first;   /* number of the first entry of the series */
	u32 count;   /* of entries; a multiple of M2M_BATCH for all but bench_fill */
	u32 random;  /* draw from all entries instead of taking one after the other */
	u32 done;    /* out: steps that went as they should */
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

/* ns of each batch */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, M2M_MAX_BATCHES);
	__type(key, u32);
	__type(value, u64);
} times SEC(".maps");

/* A series under way. */
struct m2m_series {
	struct __sk_buff *skb;
	struct m2m_bench job;
	struct m2m_entry *entry; /* what bench_insert inserts */
	u64 began;
	u32 seed;
	u32 zero;
};

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
	entry->src = bpf_htonl(0x0aff0101);
	entry->dst = bpf_htonl(0x0aff0102);
	entry->sport = bpf_htons(61000 + n % 1999);
	entry->dport = bpf_htons(63500 + n % 997);
	entry->super_src = key->tuple.src.word[3];
	entry->super_dst = entry->dst;
	m2m_entry_seal(key, entry);
}

/* Write down the keys of the batch that begins with this step. */
static __always_inline void draw(struct m2m_series *series, u32 index)
{
	u32 i, seed = series->seed;

	for (i = 0; i < M2M_BATCH; i++) {
		u32 at = i;
		struct m2m_key *key = bpf_map_lookup_elem(&keys, &at);

		if (!key)
			return;
		seed = seed * 1664525 + 1013904223;
		if (series->job.random && series->job.entries)
			key_of(key, (seed >> 4) % series->job.entries);
		else
			key_of(key, series->job.first + index + i);
	}
	series->seed = seed;
}

/* What surrounds every step: its key, and the clock at both ends of a batch. */
static __always_inline struct m2m_key *begin_step(struct m2m_series *series, u32 index)
{
	u32 at = index % M2M_BATCH;

	if (!at) {
		draw(series, index);
		series->began = bpf_ktime_get_ns();
	}
	return bpf_map_lookup_elem(&keys, &at);
}

static __always_inline void end_step(struct m2m_series *series, u32 index, int good)
{
	u32 batch = index / M2M_BATCH;
	u64 *time;

	series->job.done += good;
	if (index % M2M_BATCH != M2M_BATCH - 1)
		return;
	time = bpf_map_lookup_elem(&times, &batch);
	if (time)
		*time = bpf_ktime_get_ns() - series->began;
}

static __always_inline int run_series(struct __sk_buff *skb, struct m2m_entry *entry, void *step)
{
	u32 zero = 0;
	struct m2m_bench *job = bpf_map_lookup_elem(&bench, &zero);
	struct m2m_series series = {.skb = skb, .entry = entry, .seed = 1};

	if (!job)
		return 0;
	series.job = *job;
	bpf_loop(series.job.count, step, &series, 0);
	job->done = series.job.done;
	return 0;
}

static __always_inline long put(const struct m2m_key *key, const struct m2m_entry *entry, u64 how)
{
	struct m2m_key4 narrow;

	m2m_key_narrow(&narrow, key);
	return bpf_map_update_elem(&flows, &narrow, entry, how);
}

static long fill_step(u32 index, void *context)
{
	struct m2m_series *series = context;
	u32 n = series->job.first + index;
	struct m2m_entry entry;
	struct m2m_key key;

	key_of(&key, n);
	entry_of(&entry, &key, n);
	series->job.done++;
	return put(&key, &entry, BPF_ANY) ? 1 : 0;
}

SEC("tc")
int bench_fill(struct __sk_buff *skb)
{
	return run_series(skb, NULL, fill_step);
}

/* What all series have in common: to be subtracted. */
static long nothing_step(u32 index, void *context)
{
	struct m2m_key *key = begin_step(context, index);

	asm volatile("" : : "r"(key) : "memory");
	end_step(context, index, !!key);
	return 0;
}

SEC("tc")
int bench_nothing(struct __sk_buff *skb)
{
	return run_series(skb, NULL, nothing_step);
}

/* Find an entry and see that it is the one asked for: what comes before the first of its bytes. */
static long lookup_step(u32 index, void *context)
{
	struct m2m_key *key = begin_step(context, index);
	const struct m2m_entry *entry = key ? m2m_find_entry(key) : NULL;

	end_step(context, index,
		 entry && *(const volatile u16 *)&entry->tag == m2m_key_tag(key));
	return 0;
}

SEC("tc")
int bench_lookup(struct __sk_buff *skb)
{
	return run_series(skb, NULL, lookup_step);
}

/*
 * All that is done to a packet of an established session before it is sent, the look-up included:
 * m2m.datapath.bench takes that off. It is one packet all the time, so its TTL stays as it is.
 */
static __always_inline int process(struct __sk_buff *skb, const struct m2m_key *key)
{
	struct m2m_packet packet = {.hook = M2M_HOOK_IN};
	struct m2m_headers headers;
	struct m2m_entry *entry;
	struct m2m_wire wire;
	struct m2m_edit edit;
	struct m2m_key parsed;
	const struct m2m_config *config = m2m_get_config();
	enum m2m_reason reason;
	u32 now;

	if (!config || !m2m_parse(skb, &headers) || !m2m_may_come_in(config, headers.sport) ||
	    !m2m_may_come_in(config, headers.dport))
		return 0;
	now = m2m_now(config);
	m2m_key_of(&parsed, M2M_HOOK_IN, &headers);
	entry = m2m_find_entry(key);
	if (!entry || !m2m_edit_of(&edit, key, entry))
		return 0;
	m2m_measure(skb, &headers, &wire);
	packet.ttl = headers.ttl;
	packet.wire_len = wire.longest;
	if (m2m_judge(&edit, &packet, now, &reason) != M2M_VERDICT_SEND)
		return 0;
	m2m_account(entry, key, &headers, &wire, now);
	return !m2m_rewrite(skb, M2M_PROTO_TCP, &headers, &edit, 0);
}

static long rewrite_step(u32 index, void *context)
{
	struct m2m_series *series = context;
	struct m2m_key *key = begin_step(series, index);

	end_step(series, index, key && process(series->skb, key));
	return 0;
}

SEC("tc")
int bench_rewrite(struct __sk_buff *skb)
{
	return run_series(skb, NULL, rewrite_step);
}

/* Put one more entry in, under a key that is new. */
static long insert_step(u32 index, void *context)
{
	struct m2m_series *series = context;
	struct m2m_key *key = begin_step(series, index);

	end_step(series, index,
		 key && !put(key, series->entry, BPF_NOEXIST));
	return 0;
}

SEC("tc")
int bench_insert(struct __sk_buff *skb)
{
	struct m2m_entry entry;
	struct m2m_key key;

	key_of(&key, 0);
	entry_of(&entry, &key, 0);
	return run_series(skb, &entry, insert_step);
}

char _license[] SEC("license") = "GPL";
