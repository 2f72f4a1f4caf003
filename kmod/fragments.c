// SPDX-License-Identifier: GPL-2.0
/*
 * Fragments: only the first one carries ports. It leaves a note of its flow under the datagram's
 * id, by which the later ones find the same row. A note that gives way to another costs one
 * datagram, which its protocol survives.
 */
#include <linux/jhash.h>
#include <linux/random.h>
#include <linux/slab.h>

#include "module.h"

#define M2M_SETS 1024
#define M2M_WAYS 4

/* How long the parts of a datagram belong together, as in the stack's own reassembly. */
#define M2M_FRAGMENT_TICKS M2M_TICKS(30)

/* Notes that fragments of subsessions do pass between two addresses. */
#define M2M_ANY_DATAGRAM 0x10000u

struct note {
	struct m2m_key4 key; /* of the flow; proto 0: none */
	u32 id;
	u32 seen;
};

struct m2m_fragments {
	spinlock_t lock; /* of the notes */
	u32 seed;
	struct note note[M2M_SETS][M2M_WAYS];
};

struct m2m_fragments *m2m_fragments_new(void)
{
	struct m2m_fragments *fragments = kvzalloc(sizeof(*fragments), GFP_KERNEL_ACCOUNT);

	if (fragments) {
		spin_lock_init(&fragments->lock);
		fragments->seed = get_random_u32();
	}
	return fragments;
}

void m2m_fragments_free(struct m2m_fragments *fragments)
{
	kvfree(fragments);
}

static struct note *set_of(struct m2m_fragments *fragments, const struct m2m_key4 *key, u32 id)
{
	u32 hash = jhash_3words((__force u32)key->src, (__force u32)key->dst,
				id << 9 ^ key->proto << 1 ^ key->hook, fragments->seed);

	return fragments->note[hash % M2M_SETS];
}

static struct note *find(struct m2m_fragments *fragments, const struct m2m_key4 *key, u32 id,
			 u32 now)
{
	struct note *set = set_of(fragments, key, id);
	int way;

	for (way = 0; way < M2M_WAYS; way++) {
		struct note *note = &set[way];

		if (note->id == id && note->key.src == key->src && note->key.dst == key->dst &&
		    note->key.proto == key->proto && note->key.hook == key->hook &&
		    m2m_ticks_since(note->seen, now) <= M2M_FRAGMENT_TICKS)
			return note;
	}
	return NULL;
}

static void put(struct m2m_fragments *fragments, const struct m2m_key4 *key, u32 id, u32 now)
{
	struct note *note = find(fragments, key, id, now), *set;
	int way;

	if (!note) {
		set = set_of(fragments, key, id);
		note = set;
		for (way = 1; way < M2M_WAYS; way++) {
			u32 age = m2m_ticks_since(set[way].seen, now);

			if (!set[way].key.proto ||
			    (note->key.proto && age > m2m_ticks_since(note->seen, now)))
				note = &set[way];
		}
	}
	*note = (struct note){.key = *key, .id = id, .seen = now};
}

void m2m_fragments_note(struct m2m_fragments *fragments, const struct m2m_key4 *key, __be16 id,
			u32 now)
{
	spin_lock_bh(&fragments->lock);
	put(fragments, key, ntohs(id), now);
	put(fragments, key, M2M_ANY_DATAGRAM, now);
	spin_unlock_bh(&fragments->lock);
}

/* Make a later fragment's key that of its flow; false when its first was not seen. */
bool m2m_fragments_find(struct m2m_fragments *fragments, struct m2m_key4 *key, __be16 id, u32 now)
{
	struct note *note;

	spin_lock_bh(&fragments->lock);
	note = find(fragments, key, ntohs(id), now);
	if (note)
		*key = note->key;
	spin_unlock_bh(&fragments->lock);
	return note;
}

/* Whether any of a subsession have passed lately between these addresses. */
bool m2m_fragments_pass(struct m2m_fragments *fragments, const struct m2m_key4 *key, u32 now)
{
	bool found;

	spin_lock_bh(&fragments->lock);
	found = find(fragments, key, M2M_ANY_DATAGRAM, now);
	spin_unlock_bh(&fragments->lock);
	return found;
}
