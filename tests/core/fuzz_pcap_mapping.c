/* SPDX-License-Identifier: GPL-2.0 */
/*
 * libFuzzer target: any bytes as a mapping, under ASan and UBSan. Whoever looks up in it or goes on
 * writing it reads and writes nothing outside it, and comes to an end.
 */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>

#include "publish.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct m2m_key4 key = {.proto = 6};
	struct m2m_map map;
	struct m2m_name name, found;
	u32 live, over, at = 0;
	unsigned int probe;
	u8 *memory;

	/* The head of the file, then cells; what is between is of no meaning. */
	if (size < sizeof(struct m2m_map_header))
		return 0;
	memory = aligned_alloc(64, (M2M_MAP_START + size + 63) & ~(size_t)63);
	memset(memory, 0, (M2M_MAP_START + size + 63) & ~(size_t)63);
	memcpy(memory, data, sizeof(struct m2m_map_header));
	memcpy(memory + M2M_MAP_START, data + sizeof(struct m2m_map_header),
	       size - sizeof(struct m2m_map_header));
	if (m2m_map_use(&map, memory, M2M_MAP_START + size - sizeof(struct m2m_map_header)))
		goto done;
	map.header->cells = 0xffffffff; /* what is checked is not read again */

	memcpy(&name, data + size - sizeof(name), sizeof(name));
	name.again &= 1;
	for (probe = 0; probe <= map.mask; probe++) {
		struct m2m_cell cell;
		int sure;

		m2m_cell_copy(&cell, &map.cells[probe]);
		key.src = cell.src;
		key.dst = cell.dst;
		key.sport = cell.sport;
		key.dport = cell.dport;
		key.proto = m2m_head_proto(cell.head);
		m2m_map_find(&map, &key, cell.from, 1, &found);
		m2m_map_find(&map, &key, 0, 0, &found);
		if (probe % 5 == 0)
			m2m_map_end(&map, &key);
		sure = m2m_map_publish(&map, &key, &name, cell.from);
		if (sure == 1 && m2m_map_find(&map, &key, cell.from, 1, &found)) {
			assert(found.src == name.src && found.dst == name.dst);
			assert(found.sport == name.sport && found.dport == name.dport);
			assert(found.again == name.again);
		}
	}
	m2m_map_sweep(&map, &at, map.mask + 3);
	m2m_map_take_over(&map);
	m2m_map_taken_over(&map);
	m2m_map_count(&map, &live, &over);
	assert(live == 0);
done:
	free(memory);
	return 0;
}
