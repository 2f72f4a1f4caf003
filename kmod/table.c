// SPDX-License-Identifier: GPL-2.0
/*
 * The translation table: found without a lock, under RCU; changed under the table's own lock. Rows
 * have a lock each, so that a packet reads, counts and decides as one step.
 */
#include <linux/random.h>
#include <linux/rculist.h>
#include <linux/slab.h>

#include "module.h"

int m2m_table_init(struct m2m_table *table, u32 room)
{
	u32 size = roundup_pow_of_two(max_t(u32, room, 64));

	spin_lock_init(&table->lock);
	get_random_bytes(table->seed, sizeof(table->seed));
	table->factor = get_random_u64() | 1;
	table->shift = 64 - ilog2(size);
	table->buckets = kvcalloc(size, sizeof(*table->buckets), GFP_KERNEL_ACCOUNT);
	if (!table->buckets)
		return -ENOMEM;
	INIT_LIST_HEAD(&table->all);
	table->coming = NULL;
	table->mask = size - 1;
	table->room = room;
	table->count = 0;
	return 0;
}

/* Nobody else may be looking. */
void m2m_table_free(struct m2m_table *table)
{
	struct m2m_row *row, *next;

	if (!table->buckets)
		return;
	list_for_each_entry_safe(row, next, &table->all, all) {
		kfree(row->wait);
		kfree(row);
	}
	kvfree(table->buckets);
}

/**
 * m2m_table_after - one row after the other
 * @table: the table
 * @row: %NULL: the first is wanted
 *
 * Under &m2m_net.lock, which whoever takes rows out has as well; packets add some at the end.
 */
struct m2m_row *m2m_table_after(const struct m2m_table *table, const struct m2m_row *row)
{
	const struct list_head *at = row ? &row->all : &table->all, *next = READ_ONCE(at->next);

	return next == &table->all ? NULL : list_entry(next, struct m2m_row, all);
}

/*
 * Keys of somebody who does not know the seeds meet in one bucket no more often than by chance,
 * however they have been chosen: NH (RFC 4418, 5.2) makes the same of two of them for one in 2^32
 * of the seeds, and a secret odd factor brings what differs into one bucket for two in as many as
 * there are (Dietzfelbinger et al., 1997). The fold between them loses nothing, and keeps keys that
 * follow each other, as ports do, from staying in step. A quarter of jhash's instructions.
 */
static __always_inline struct hlist_head *bucket_of(const struct m2m_table *table,
						    const struct m2m_key4 *key)
{
	const u32 *word = (const u32 *)key, *seed = table->seed;
	u64 sum = (u64)(word[0] + seed[0]) * (word[1] + seed[1]) +
		  (u64)(word[2] + seed[2]) * (word[3] + seed[3]);

	sum ^= sum >> 32;
	return &table->buckets[sum * table->factor >> table->shift];
}

static bool same_key(const struct m2m_key4 *a, const struct m2m_key4 *b)
{
	const u32 *left = (const u32 *)a, *right = (const u32 *)b; /* netlink aligns no better */

	BUILD_BUG_ON(sizeof(*a) != 4 * sizeof(u32));
	return !((left[0] ^ right[0]) | (left[1] ^ right[1]) | (left[2] ^ right[2]) |
		 (left[3] ^ right[3]));
}

/**
 * m2m_table_find - the row with this key
 * @table: the table
 * @key: of which all octets count
 *
 * Under RCU, or under &m2m_net.lock for rows that packets do not take out.
 */
struct m2m_row *m2m_table_find(const struct m2m_table *table, const struct m2m_key4 *key)
{
	struct m2m_row *row;

	hlist_for_each_entry_rcu(row, bucket_of(table, key), node, true) {
		if (same_key(&row->key, key))
			return row;
	}
	return NULL;
}

struct m2m_row *m2m_row_new(const struct m2m_key4 *key, gfp_t gfp)
{
	struct m2m_row *row = kzalloc(sizeof(*row), gfp | __GFP_NOWARN);

	if (!row)
		return NULL;
	row->key = *key;
	row->kind = M2M_ROW_UNDECIDED;
	spin_lock_init(&row->lock);
	return row;
}

/**
 * m2m_table_add - put a row in
 * @table: the table
 * @row: a new one
 *
 * Returns the row that has the key: this one, or another that was faster.
 */
struct m2m_row *m2m_table_add(struct m2m_table *table, struct m2m_row *row)
{
	struct m2m_row *there;

	spin_lock_bh(&table->lock);
	there = m2m_table_find(table, &row->key);
	if (!there) {
		hlist_add_head_rcu(&row->node, bucket_of(table, &row->key));
		list_add_tail_rcu(&row->all, &table->all);
	}
	spin_unlock_bh(&table->lock);
	return there ?: row;
}

/**
 * m2m_table_remove - take a row out
 * @table: the table
 * @row: its lock is held; nothing waits for it, and it is marked dead
 *
 * Under &m2m_net.lock. It is to be freed when nobody can be looking at it any more.
 */
void m2m_table_remove(struct m2m_table *table, struct m2m_row *row)
{
	spin_lock(&table->lock);
	if (table->coming == row)
		table->coming = m2m_table_after(table, row);
	list_del(&row->all);
	hlist_del_rcu(&row->node);
	if (row->counted)
		table->count--;
	spin_unlock(&table->lock);
}

/* Take places for so many rows; false when there are not as many. */
bool m2m_table_reserve(struct m2m_table *table, u32 rows)
{
	bool enough;

	spin_lock_bh(&table->lock);
	enough = rows <= table->room - min(table->room, table->count);
	if (enough)
		table->count += rows;
	spin_unlock_bh(&table->lock);
	return enough;
}

void m2m_table_return(struct m2m_table *table, u32 rows)
{
	spin_lock_bh(&table->lock);
	table->count -= rows;
	spin_unlock_bh(&table->lock);
}

static void widen(struct m2m_key *wide, const struct m2m_row *row)
{
	m2m_key_widen(wide, &row->key);
}

static void set_splice(struct m2m_row *row, const struct m2m_entry *entry,
		       const struct m2m_splice *splice)
{
	row->entry.flags &= ~M2M_SPLICED;
	if (!splice || !(entry->flags & M2M_SPLICED))
		return;
	row->entry.flags |= M2M_SPLICED;
	row->splice = *splice;
}

/* Have headers of a packet say what counts; the row's lock is held. */
void m2m_row_numbers(const struct m2m_row *row, struct m2m_headers *headers)
{
	if (unlikely(row->entry.flags & M2M_SPLICED))
		m2m_left_numbers(&row->splice, row->entry.role, &headers->seq, &headers->ack);
}

/* Make it a new row of this entry; its lock is held. The hop it had is the caller's to put. */
void m2m_row_fill(struct m2m_row *row, const struct m2m_entry *entry,
		  const struct m2m_splice *splice, struct m2m_hop *hop, u32 now)
{
	struct m2m_key key;

	widen(&key, row);
	row->entry = *entry;
	row->entry.flags = 0;
	set_splice(row, entry, splice);
	row->entry.max_seq = 0;
	row->entry.max_ack = 0;
	row->entry.packets = 0;
	row->entry.bytes = 0;
	row->entry.zero = 0;
	row->entry.last_seen = now;
	m2m_entry_seal(&key, &row->entry);
	row->port_diff = m2m_entry_port_diff(&key, &row->entry);
	row->hop = hop;
	row->kind = M2M_ROW_DECIDED;
	row->reported = false;
}

/* Rewrite and send otherwise from now on, and go on counting; its lock is held. */
void m2m_row_redirect(struct m2m_row *row, const struct m2m_entry *entry,
		      const struct m2m_splice *splice, struct m2m_hop *hop)
{
	struct m2m_entry *mine = &row->entry;
	struct m2m_key key;

	widen(&key, row);
	mine->chain = entry->chain;
	mine->generation = entry->generation;
	mine->ifindex = entry->ifindex;
	mine->next_hop = entry->next_hop;
	mine->mss = entry->mss;
	mine->mtu = entry->mtu;
	mine->src = entry->src;
	mine->dst = entry->dst;
	mine->sport = entry->sport;
	mine->dport = entry->dport;
	mine->super_src = entry->super_src;
	mine->super_dst = entry->super_dst;
	mine->super_sport = entry->super_sport;
	mine->super_dport = entry->super_dport;
	set_splice(row, entry, splice);
	m2m_entry_seal(&key, mine);
	row->port_diff = m2m_entry_port_diff(&key, mine);
	row->hop = hop;
}

void m2m_row_read(struct m2m_row *row, struct m2m_entry *entry)
{
	spin_lock_bh(&row->lock);
	*entry = row->entry;
	spin_unlock_bh(&row->lock);
}

/* Whether it is a row of a session: not of a flow that is undecided, passed or refused. */
bool m2m_row_is_session(struct m2m_row *row)
{
	return !row->dead && row->kind == M2M_ROW_DECIDED && row->entry.session;
}
