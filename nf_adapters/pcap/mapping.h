/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The mapping: which supersession the packets of each subsession belong to. One file, written by
 * the host's agent and mapped by whoever captures; looking up takes no lock and no system call.
 *
 *   header (one page) | cell 0 | cell 1 | ... | cell n-1        n a power of two
 *
 * Cells are an open-addressed hash table over wire tuples, probed in order from an even cell on, so
 * that the first two lie in one cache line. It is never moved nor resized: a table of other size is
 * another file.
 *
 * One writer, any number of readers. A cell's head carries a counter that is odd while the cell is
 * being written; a reader copies the cell and believes the copy only if the head is the same
 * before and after. A cell is written once per session; all else that happens to it is a
 * change of its state, one store.
 *
 * Readers trust nothing: the number of cells is checked against the file's size once and kept by
 * the reader, every index is masked, every loop bounded. A wrong file can make names wrong, not
 * a reader fail.
 *
 * IPv4 alone, as the datapath's own table (struct m2m_key4): IPv6 would get a second table of wider
 * cells behind this one, and another version.
 */
#ifndef M2M_PCAP_MAPPING_H
#define M2M_PCAP_MAPPING_H

#include <stddef.h>
#include <string.h>

#include "core/core.h"

#define M2M_MAP_MAGIC 0x0070616d2d6d326dull /* "m2m-map" */
#define M2M_MAP_VERSION 1u
#define M2M_MAP_START 4096u /* bytes before the first cell */
#define M2M_MAP_PROBES 64u  /* cells a key can lie behind its first one */
#define M2M_MAP_TRIES 16    /* to copy a cell that is being written */
#define M2M_MAP_MIN_CELLS 128u
#define M2M_MAP_MAX_CELLS (1u << 28)

enum m2m_cell_state {
	M2M_CELL_FREE = 0,   /* never used since the probes that pass here began: they end here */
	M2M_CELL_LIVE = 1,
	M2M_CELL_STALE = 2,  /* live, but the agent that has taken over has not confirmed it yet */
	M2M_CELL_ENDED = 3,  /* over; what is delivered late still finds its name */
	M2M_CELL_FADING = 4, /* over, since the sweep before */
	M2M_CELL_ERASED = 5, /* can be used again; probes go on */
};

#define M2M_CELL_AGAIN 0x80u /* this host has received these packets as another tuple before */

struct m2m_map_header {
	u64 magic;
	u32 version;
	u32 cell_size;
	u32 cells;
	u32 netns_dev; /* the network namespace that the agent serves, as stat() names it */
	u64 netns_ino;
	/* changes while it is in use */
	u32 ports;    /* lowest | highest << 16 port of any subsession: others are not looked up */
	u32 replaced; /* not 0: another file is at this path now */
	u64 refused;  /* tuples for which there was no room */
};

struct m2m_cell {
	u32 head;     /* counter | protocol << 16 | state << 24 */
	u32 from;     /* when it was written, ms of CLOCK_REALTIME; wraps */
	__be32 src;   /* on the wire */
	__be32 dst;
	__be16 sport;
	__be16 dport;
	__be32 super_src;
	__be32 super_dst;
	__be16 super_sport;
	__be16 super_dport;
};

_Static_assert(sizeof(struct m2m_cell) == 32, "two in a cache line");
_Static_assert(sizeof(struct m2m_map_header) <= 64, "one cache line");

/* A mapping as one process sees it. */
struct m2m_map {
	struct m2m_map_header *header;
	struct m2m_cell *cells;
	u32 mask;
};

struct m2m_name {
	__be32 src;
	__be32 dst;
	__be16 sport;
	__be16 dport;
	u8 again;
};

m2m_inline unsigned int m2m_head_state(u32 head)
{
	return head >> 24 & 0x0f;
}

m2m_inline u8 m2m_head_proto(u32 head)
{
	return (u8)(head >> 16);
}

m2m_inline size_t m2m_map_size(u32 cells)
{
	return M2M_MAP_START + (size_t)cells * sizeof(struct m2m_cell);
}

/* Use size bytes at memory as a mapping; NULL, or what is wrong with them. */
static inline const char *m2m_map_use(struct m2m_map *map, void *memory, size_t size)
{
	struct m2m_map_header *header = memory;
	u32 cells;

	if (size < M2M_MAP_START || header->magic != M2M_MAP_MAGIC)
		return "it is no mapping";
	if (header->version != M2M_MAP_VERSION || header->cell_size != sizeof(struct m2m_cell))
		return "it is of another version";
	cells = *(volatile u32 *)&header->cells;
	if (cells < M2M_MAP_MIN_CELLS || cells > M2M_MAP_MAX_CELLS || (cells & (cells - 1)) ||
	    size < m2m_map_size(cells))
		return "its size is wrong";
	map->header = header;
	map->cells = (struct m2m_cell *)((u8 *)memory + M2M_MAP_START);
	map->mask = cells - 1;
	return NULL;
}

/* The first cell that a tuple can lie in. */
m2m_inline u32 m2m_map_home(const struct m2m_map *map, const struct m2m_key4 *key)
{
	u64 addrs = (u64)key->src << 32 | key->dst;
	u64 rest = (u64)key->sport | (u64)key->dport << 16 | (u64)key->proto << 32;
	u64 mix = addrs * 0xc2b2ae3d27d4eb4full ^ rest * 0xa0761d6478bd642full;

	mix = (mix ^ mix >> 32) * 0xd6e8feb86659fd93ull;
	return (u32)(mix >> 32) & map->mask & ~1u;
}

m2m_inline int m2m_cell_has(const struct m2m_cell *cell, u32 head, const struct m2m_key4 *key)
{
	return cell->src == key->src && cell->dst == key->dst && cell->sport == key->sport &&
	       cell->dport == key->dport && m2m_head_proto(head) == key->proto;
}

typedef u64 __attribute__((may_alias)) m2m_word;

/* Copy a whole cell; its head, or that of an erased one when the writer never finishes. */
m2m_inline u32 m2m_cell_copy(struct m2m_cell *copy, const struct m2m_cell *cell)
{
	const m2m_word *from = (const m2m_word *)cell;
	m2m_word *to = (m2m_word *)copy;
	int tries;

	for (tries = 0; tries < M2M_MAP_TRIES; tries++) {
		to[0] = __atomic_load_n(&from[0], __ATOMIC_ACQUIRE);
		if (copy->head & 1)
			continue;
		to[1] = __atomic_load_n(&from[1], __ATOMIC_RELAXED);
		to[2] = __atomic_load_n(&from[2], __ATOMIC_RELAXED);
		to[3] = __atomic_load_n(&from[3], __ATOMIC_RELAXED);
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		if (__atomic_load_n(&cell->head, __ATOMIC_RELAXED) == copy->head)
			return copy->head;
	}
	return copy->head = (u32)M2M_CELL_ERASED << 24;
}

m2m_inline void m2m_cell_name(struct m2m_name *name, const struct m2m_cell *cell)
{
	name->src = cell->super_src;
	name->dst = cell->super_dst;
	name->sport = cell->super_sport;
	name->dport = cell->super_dport;
	name->again = cell->head >> 24 & M2M_CELL_AGAIN ? 1 : 0;
}

/* Whether any subsession can have these ports. */
m2m_inline int m2m_map_may_have(const struct m2m_map *map, __be16 sport, __be16 dport)
{
	u32 ports = __atomic_load_n(&map->header->ports, __ATOMIC_RELAXED);
	u32 low = ports & 0xffff, high = ports >> 16;
	u32 source = m2m_swap16(sport), destination = m2m_swap16(dport);

	return source >= low && source <= high && destination >= low && destination <= high;
}

/*
 * Where a tuple has come to another session, and the former one is not forgotten yet: the name is
 * that of the latest which had begun by then, and with timed 0 the latest. at: where it is first met.
 */
static inline int m2m_map_find_among(const struct m2m_map *map, const struct m2m_key4 *key, u32 at,
				     u32 when, int timed, struct m2m_name *name)
{
	struct m2m_cell best = {0};
	int found = 0, found_begun = 0;
	u32 probe;

	for (probe = 0; probe < M2M_MAP_PROBES; probe++, at = (at + 1) & map->mask) {
		struct m2m_cell cell;
		u32 head = m2m_cell_copy(&cell, &map->cells[at]);
		unsigned int state = m2m_head_state(head);
		int begun, alive, better;

		if (state == M2M_CELL_FREE)
			break;
		if (state > M2M_CELL_FADING || !m2m_cell_has(&cell, head, key))
			continue;
		begun = !timed || (s32)(when - cell.from) >= 0;
		alive = state <= M2M_CELL_STALE && begun; /* nothing has begun later than that */
		if (!found || alive)
			better = 1;
		else if (begun != found_begun)
			better = begun;
		else /* the later of those that had begun, the earlier of those that had not */
			better = ((s32)(cell.from - best.from) > 0) == begun;
		if (better) {
			best = cell;
			found = 1;
			found_begun = begun;
		}
		if (alive)
			break;
	}
	if (found)
		m2m_cell_name(name, &best);
	return found;
}

/*
 * The supersession's name for a packet with this wire tuple, captured at when (ms of
 * CLOCK_REALTIME, wraps). Whether there is one. at: the tuple's home.
 *
 * Tuples of subsessions are used for nothing else, so the last session that had one has its
 * packets, whatever the clocks say; only where another had it before, the time decides.
 *
 * Whoever wants to ask the kernel about tuples of which the agent does not know, does so where
 * this returns 0.
 */
m2m_inline int m2m_map_find_from(const struct m2m_map *map, const struct m2m_key4 *key, u32 at,
				 u32 when, int timed, struct m2m_name *name)
{
	struct m2m_name other; /* name itself is then not in memory, but for this one */
	u32 probe;

	for (probe = 0; probe < M2M_MAP_PROBES; probe++, at = (at + 1) & map->mask) {
		struct m2m_cell cell;
		u32 head = m2m_cell_copy(&cell, &map->cells[at]);
		unsigned int state = m2m_head_state(head);

		if (state == M2M_CELL_FREE)
			return 0;
		if (state > M2M_CELL_FADING || !m2m_cell_has(&cell, head, key))
			continue;
		if (state <= M2M_CELL_STALE && (!timed || (s32)(when - cell.from) >= 0)) {
			m2m_cell_name(name, &cell);
			return 1;
		}
		if (!m2m_map_find_among(map, key, at, when, timed, &other))
			return 0;
		*name = other;
		return 1;
	}
	return 0;
}

m2m_inline int m2m_map_find(const struct m2m_map *map, const struct m2m_key4 *key, u32 when,
			    int timed, struct m2m_name *name)
{
	return m2m_map_may_have(map, key->sport, key->dport) &&
	       m2m_map_find_from(map, key, m2m_map_home(map, key), when, timed, name);
}

#endif /* M2M_PCAP_MAPPING_H */
