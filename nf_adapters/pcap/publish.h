/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The writer's side of a mapping (mapping.h): one process at a time. Nothing here allocates, and
 * what a writer leaves when it is killed at any moment, the next one can go on from.
 *
 * A tuple that is over keeps its name for one to two sweeps, so that captures delivered late
 * still find it. There is no list of them: the table itself is gone through, a piece at a time.
 */
#ifndef M2M_PCAP_PUBLISH_H
#define M2M_PCAP_PUBLISH_H

#include "mapping.h"

m2m_inline void m2m_cell_turn(struct m2m_cell *cell, unsigned int state)
{
	u32 head = cell->head;

	__atomic_store_n(&cell->head, (head & 0xf0ffffffu) | (u32)state << 24, __ATOMIC_RELEASE);
}

/* Lay out an empty mapping in zeroed memory of m2m_map_size(cells) bytes. */
static inline void m2m_map_format(void *memory, u32 cells, u32 netns_dev, u64 netns_ino)
{
	struct m2m_map_header *header = memory;

	header->version = M2M_MAP_VERSION;
	header->cell_size = sizeof(struct m2m_cell);
	header->cells = cells;
	header->netns_dev = netns_dev;
	header->netns_ino = netns_ino;
	header->ports = 0xffffu; /* none: the lowest is above the highest */
	__atomic_store_n(&header->magic, M2M_MAP_MAGIC, __ATOMIC_RELEASE);
}

m2m_inline void m2m_map_widen(struct m2m_map *map, __be16 one, __be16 other)
{
	u32 ports = map->header->ports, low = ports & 0xffff, high = ports >> 16;
	u32 a = m2m_swap16(one), b = m2m_swap16(other);

	low = a < low ? a : low;
	low = b < low ? b : low;
	high = a > high ? a : high;
	high = b > high ? b : high;
	__atomic_store_n(&map->header->ports, low | high << 16, __ATOMIC_RELEASE);
}

m2m_inline int m2m_cell_names(const struct m2m_cell *cell, const struct m2m_name *name)
{
	return cell->super_src == name->src && cell->super_dst == name->dst &&
	       cell->super_sport == name->sport && cell->super_dport == name->dport &&
	       (cell->head >> 24 & M2M_CELL_AGAIN) == (name->again ? M2M_CELL_AGAIN : 0);
}

m2m_inline void m2m_cell_write(struct m2m_cell *cell, const struct m2m_key4 *key,
			       const struct m2m_name *name, u32 now)
{
	u32 count = (cell->head + 1) & 0xffff;
	u32 kind = M2M_CELL_LIVE | (name->again ? M2M_CELL_AGAIN : 0);

	count |= 1; /* a writer that was killed in the midst has left an odd one */
	__atomic_store_n(&cell->head, count | (u32)M2M_CELL_ERASED << 24, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	__atomic_store_n(&cell->from, now, __ATOMIC_RELAXED);
	__atomic_store_n(&cell->src, key->src, __ATOMIC_RELAXED);
	__atomic_store_n(&cell->dst, key->dst, __ATOMIC_RELAXED);
	__atomic_store_n(&cell->sport, key->sport, __ATOMIC_RELAXED);
	__atomic_store_n(&cell->dport, key->dport, __ATOMIC_RELAXED);
	__atomic_store_n(&cell->super_src, name->src, __ATOMIC_RELAXED);
	__atomic_store_n(&cell->super_dst, name->dst, __ATOMIC_RELAXED);
	__atomic_store_n(&cell->super_sport, name->sport, __ATOMIC_RELAXED);
	__atomic_store_n(&cell->super_dport, name->dport, __ATOMIC_RELAXED);
	__atomic_store_n(&cell->head, ((count + 1) & 0xffff) | (u32)key->proto << 16 | kind << 24,
			 __ATOMIC_RELEASE);
}

/*
 * From now on packets with this tuple have this name. 1: they had not, 0: they had already,
 * -1: there is no room.
 */
static inline int m2m_map_publish(struct m2m_map *map, const struct m2m_key4 *key,
				  const struct m2m_name *name, u32 now)
{
	u32 at = m2m_map_home(map, key), probe;
	struct m2m_cell *place = NULL;
	unsigned int given = 0; /* how well place can be had: free or erased, fading, ended */

	for (probe = 0; probe < M2M_MAP_PROBES; probe++, at = (at + 1) & map->mask) {
		struct m2m_cell *cell = &map->cells[at];
		unsigned int state = m2m_head_state(cell->head);
		unsigned int worth;

		if (state == M2M_CELL_LIVE || state == M2M_CELL_STALE) {
			if (!m2m_cell_has(cell, cell->head, key))
				continue;
			if (m2m_cell_names(cell, name)) {
				m2m_cell_turn(cell, M2M_CELL_LIVE);
				return 0;
			}
			m2m_cell_turn(cell, M2M_CELL_ENDED);
			continue;
		}
		worth = state == M2M_CELL_FADING ? 2 : state == M2M_CELL_ENDED ? 1 : 3;
		if (worth > given) {
			place = cell;
			given = worth;
		}
		if (state == M2M_CELL_FREE)
			break;
	}
	if (!place) {
		map->header->refused++;
		return -1;
	}
	m2m_map_widen(map, key->sport, key->dport);
	m2m_cell_write(place, key, name, now);
	return 1;
}

/* The session that has this tuple is over, or has it no more. Whether there was one. */
static inline int m2m_map_end(struct m2m_map *map, const struct m2m_key4 *key)
{
	u32 at = m2m_map_home(map, key), probe;
	int found = 0;

	for (probe = 0; probe < M2M_MAP_PROBES; probe++, at = (at + 1) & map->mask) {
		struct m2m_cell *cell = &map->cells[at];
		unsigned int state = m2m_head_state(cell->head);

		if (state == M2M_CELL_FREE)
			break;
		if ((state == M2M_CELL_LIVE || state == M2M_CELL_STALE) &&
		    m2m_cell_has(cell, cell->head, key)) {
			m2m_cell_turn(cell, M2M_CELL_ENDED);
			found = 1;
		}
	}
	return found;
}

/*
 * Go through count cells downwards from below *at: what was over at the last sweep is forgotten.
 * *at becomes where to go on; wraps.
 */
static inline void m2m_map_sweep(struct m2m_map *map, u32 *at, u32 count)
{
	while (count--) {
		struct m2m_cell *cell, *next = &map->cells[*at & map->mask];

		*at = (*at - 1) & map->mask;
		cell = &map->cells[*at];
		switch (m2m_head_state(cell->head)) {
		case M2M_CELL_ENDED:
			m2m_cell_turn(cell, M2M_CELL_FADING);
			break;
		case M2M_CELL_FADING:
		case M2M_CELL_ERASED:
			/* where no probe has to go on behind it, it can end here */
			m2m_cell_turn(cell, m2m_head_state(next->head) == M2M_CELL_FREE ?
						    M2M_CELL_FREE : M2M_CELL_ERASED);
			break;
		}
	}
}

/* What an earlier writer has left: every session has to be confirmed, by publishing it again. */
static inline void m2m_map_take_over(struct m2m_map *map)
{
	u32 at;

	for (at = 0; at <= map->mask; at++) {
		struct m2m_cell *cell = &map->cells[at];

		if (cell->head & 1) {
			__atomic_store_n(&cell->head,
					 ((cell->head + 1) & 0xffff) | (u32)M2M_CELL_ERASED << 24,
					 __ATOMIC_RELEASE);
		} else if (m2m_head_state(cell->head) == M2M_CELL_LIVE) {
			m2m_cell_turn(cell, M2M_CELL_STALE);
		}
	}
}

/* All that are still here are confirmed: the others are over. How many those are. */
static inline u32 m2m_map_taken_over(struct m2m_map *map)
{
	u32 at, ended = 0;

	for (at = 0; at <= map->mask; at++) {
		if (m2m_head_state(map->cells[at].head) != M2M_CELL_STALE)
			continue;
		m2m_cell_turn(&map->cells[at], M2M_CELL_ENDED);
		ended++;
	}
	return ended;
}

/* How many tuples have names now: live ones, and those that are over. */
static inline void m2m_map_count(const struct m2m_map *map, u32 *live, u32 *over)
{
	u32 at;

	*live = *over = 0;
	for (at = 0; at <= map->mask; at++) {
		unsigned int state = m2m_head_state(map->cells[at].head);

		*live += state == M2M_CELL_LIVE || state == M2M_CELL_STALE;
		*over += state == M2M_CELL_ENDED || state == M2M_CELL_FADING;
	}
}

#endif /* M2M_PCAP_PUBLISH_H */
