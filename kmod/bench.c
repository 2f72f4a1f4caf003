// SPDX-License-Identifier: GPL-2.0
/*
 * m2m_bench.ko: what looking up, inserting and rewriting cost (section 7.1.1 of the paper), in the
 * module's own code. Loading it measures; debugfs has the results in m2m_bench/, one number a line:
 * nanoseconds for each of a hundred operations, timed together, less what reading the timer costs.
 */
#include <linux/debugfs.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/module.h>
#include <linux/random.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/tcp.h>
#include <linux/timekeeping.h>
#include <linux/vmalloc.h>
#include <net/ip.h>

#include "table.c"
#include "packet.c"
#include "rewrite.c"

static uint rows = 100000;
module_param(rows, uint, 0444);
MODULE_PARM_DESC(rows, "in the table (100000)");

#define M2M_BATCH 100 /* operations that are timed together */

/* Nanoseconds of each batch. */
struct series {
	const char *name;
	u32 count;
	u32 *ns;
};

static struct series series[] = { { "insert" }, { "lookup" }, { "rewrite" } };
static struct dentry *folder;
static struct m2m_table table;
static u64 timer; /* ns for reading it */

static void key_of(struct m2m_key4 *key, u32 number)
{
	*key = (struct m2m_key4){
		.src = htonl(0x0a000000 + number / 4000),
		.dst = htonl(0x0a090001),
		.sport = htons(61000 + number % 4000),
		.dport = htons(62000),
		.proto = M2M_PROTO_TCP,
		.hook = M2M_HOOK_IN,
	};
}

static void put(struct series *to, u64 took)
{
	to->ns[to->count++] = (u32)(took > timer ? took - timer : 0) / M2M_BATCH;
}

static void measure_timer(void)
{
	u64 least = U64_MAX, began;
	int round;

	for (round = 0; round < 10000; round++) {
		began = ktime_get_raw_ns();
		least = min(least, ktime_get_raw_ns() - began);
	}
	timer = least;
}

static int insert_all(struct series *to)
{
	struct m2m_entry entry = { .role = M2M_SEND, .session = 1 };
	struct m2m_row *batch[M2M_BATCH];
	u32 number, index;
	u64 began;

	for (number = 0; number < rows; number += M2M_BATCH) {
		local_bh_disable();
		began = ktime_get_raw_ns();
		for (index = 0; index < M2M_BATCH; index++) {
			struct m2m_key4 key;

			key_of(&key, number + index);
			batch[index] = m2m_row_new(&key, GFP_ATOMIC);
			if (!batch[index])
				break;
			m2m_row_fill(batch[index], &entry, NULL, NULL, 0);
			m2m_table_add(&table, batch[index]);
		}
		put(to, ktime_get_raw_ns() - began);
		local_bh_enable();
		if (index < M2M_BATCH)
			return -ENOMEM;
		cond_resched();
	}
	return 0;
}

/* In an order that no cache foresees. */
static int look_up_all(struct series *to)
{
	struct m2m_key4 key[M2M_BATCH];
	u32 number, index, found;
	u64 began;

	for (number = 0; number < rows; number += M2M_BATCH) {
		for (index = 0; index < M2M_BATCH; index++)
			key_of(&key[index], get_random_u32() % rows);
		found = 0;
		local_bh_disable();
		rcu_read_lock();
		began = ktime_get_raw_ns();
		for (index = 0; index < M2M_BATCH; index++)
			found += !!m2m_table_find(&table, &key[index]);
		put(to, ktime_get_raw_ns() - began);
		rcu_read_unlock();
		local_bh_enable();
		if (found != M2M_BATCH)
			return -ENOENT;
		cond_resched();
	}
	return 0;
}

/* One packet forth and back again, so that it is right each time. */
static int rewrite_all(struct series *to)
{
	struct m2m_entry entry = { .role = M2M_SEND, .sport = htons(1), .dport = htons(2) };
	struct sk_buff *skb = alloc_skb(2048, GFP_KERNEL);
	struct m2m_headers headers;
	struct m2m_edit edit[2];
	struct m2m_key key, back;
	struct iphdr *ip;
	u32 number, index;
	int error = 0;
	u64 began;

	if (!skb)
		return -ENOMEM;
	skb_reserve(skb, 128);
	ip = skb_put_zero(skb, 1500);
	skb_reset_network_header(skb);
	*ip = (struct iphdr){
		.version = 4, .ihl = 5, .tot_len = htons(1500), .ttl = 64,
		.protocol = M2M_PROTO_TCP,
		.saddr = htonl(0x0a000001), .daddr = htonl(0x0a000002),
	};
	((struct tcphdr *)(ip + 1))->doff = 5;
	ip_send_check(ip);
	m2m_key_v4(&key, M2M_HOOK_IN, M2M_PROTO_TCP, ip->saddr, 0, ip->daddr, 0);
	entry.src = htonl(0x0a000003);
	entry.dst = htonl(0x0a000004);
	m2m_entry_seal(&key, &entry);
	m2m_edit_of(&edit[0], &key, &entry);
	m2m_key_v4(&back, M2M_HOOK_IN, M2M_PROTO_TCP, entry.src, entry.sport, entry.dst,
		   entry.dport);
	entry.src = ip->saddr;
	entry.dst = ip->daddr;
	entry.sport = 0;
	entry.dport = 0;
	m2m_entry_seal(&back, &entry);
	m2m_edit_of(&edit[1], &back, &entry);
	for (number = 0; !error && number < rows; number += M2M_BATCH) {
		local_bh_disable();
		began = ktime_get_raw_ns();
		for (index = 0; index < M2M_BATCH; index++) {
			if (!m2m_parse(skb, &headers) ||
			    m2m_rewrite(skb, &headers, &edit[index & 1], false))
				error = -EINVAL;
		}
		put(to, ktime_get_raw_ns() - began);
		local_bh_enable();
		cond_resched();
	}
	kfree_skb(skb);
	return error;
}

static int results_show(struct seq_file *file, void *unused)
{
	const struct series *of = file->private;
	u32 index;

	for (index = 0; index < of->count; index++)
		seq_printf(file, "%u\n", of->ns[index]);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(results);

static void clean_up(void)
{
	size_t index;

	debugfs_remove_recursive(folder);
	for (index = 0; index < ARRAY_SIZE(series); index++)
		vfree(series[index].ns);
}

static int __init bench_init(void)
{
	int (*measure[])(struct series *to) = { insert_all, look_up_all, rewrite_all };
	size_t index;
	int error;

	rows = max(rows - rows % M2M_BATCH, (uint)M2M_BATCH);
	measure_timer();
	folder = debugfs_create_dir("m2m_bench", NULL);
	error = m2m_table_init(&table, rows);
	for (index = 0; !error && index < ARRAY_SIZE(series); index++) {
		series[index].ns = vmalloc(array_size(rows / M2M_BATCH, sizeof(u32)));
		error = series[index].ns ? measure[index](&series[index]) : -ENOMEM;
		debugfs_create_file(series[index].name, 0400, folder, &series[index],
				    &results_fops);
	}
	m2m_table_free(&table);
	if (error)
		clean_up();
	return error;
}

module_init(bench_init);
module_exit(clean_up);

MODULE_DESCRIPTION("M2M: costs of the datapath's steps");
MODULE_LICENSE("GPL");
