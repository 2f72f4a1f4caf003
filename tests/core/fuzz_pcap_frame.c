/* SPDX-License-Identifier: GPL-2.0 */
/*
 * libFuzzer target: frames of any shape through the restorer, under ASan and UBSan. Each frame lies
 * in memory of its own of exactly the captured size. Fetching ahead reads no more. Where it was left as it was, no byte has
 * changed; where it was restored, restoring it back gives the frame as it was on the wire,
 * up to the two ways in which one's complement can write zero.
 */
#define _GNU_SOURCE
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>

#include "publish.h"
#include "restore.h"

#define CELLS 128u

static u8 there_memory[M2M_MAP_START + CELLS * 32] __attribute__((aligned(64)));
static u8 back_memory[sizeof(there_memory)] __attribute__((aligned(64)));
static struct m2m_restorer there, back;

/* Subsessions 10.0.2.1 <-> 10.0.3.1 with ports that are easy to hit, and where they belong. */
static void fill(void)
{
	unsigned int number;

	m2m_map_format(there_memory, CELLS, 0, 0);
	m2m_map_format(back_memory, CELLS, 0, 0);
	m2m_map_use(&there.map, there_memory, sizeof(there_memory));
	m2m_map_use(&back.map, back_memory, sizeof(back_memory));
	for (number = 0; number < 8; number++) {
		struct m2m_key4 wire = {
			.src = m2m_swap32(0x0a000201),
			.dst = m2m_swap32(0x0a000301),
			.sport = m2m_swap16(61001 + (number & 1)),
			.dport = m2m_swap16(62001 + (number >> 1 & 1)),
			.proto = number & 4 ? M2M_PROTO_TCP : M2M_PROTO_UDP,
		};
		struct m2m_key4 super = wire;
		struct m2m_name name, given;

		super.src = m2m_swap32(0xac100105);
		super.dst = m2m_swap32(0xc0a8ff01);
		super.dport = m2m_swap16(80 + (number >> 1 & 1));
		name = (struct m2m_name){super.src, super.dst, super.sport, super.dport, 0};
		given = (struct m2m_name){wire.src, wire.dst, wire.sport, wire.dport, 0};
		m2m_map_publish(&there.map, &wire, &name, 0);
		m2m_map_publish(&back.map, &super, &given, 0);
	}
}

static int same(const u8 *one, const u8 *other, size_t size)
{
	size_t i;

	/* 0x0000 and 0xffff are both zero; at any alignment */
	for (i = 0; i < size; i++) {
		if (one[i] == other[i])
			continue;
		if (i + 1 < size && (one[i] ^ other[i]) == 0xff && (one[i + 1] ^ other[i + 1]) == 0xff &&
		    (one[i] == 0 || one[i] == 0xff) && one[i] == one[i + 1]) {
			i++;
			continue;
		}
		return 0;
	}
	return 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const unsigned int links[] = {M2M_LINK_ETHERNET, M2M_LINK_RAW, M2M_LINK_SLL,
					     M2M_LINK_IPV4, M2M_LINK_SLL2, 105};
	enum m2m_restored done, undone;
	unsigned int link, flags;
	u8 *frame, *known;

	/* an ICMP error can come from an address that is a supersession's already: no way back */
	if (size < 2 || memmem(data, size, "\xac\x10\x01\x05", 4) ||
	    memmem(data, size, "\xc0\xa8\xff\x01", 4))
		return 0;
	if (!there.map.header)
		fill();
	link = links[data[0] % 6];
	flags = data[1] & 3;
	data += 2;
	size -= 2;
	frame = malloc(size ? size : 1);
	known = malloc(size ? size : 1);
	memcpy(frame, data, size);
	memcpy(known, data, size);
	done = m2m_restore(&there, link, frame, size, 7, flags);
	m2m_restore_ahead(&there, &there.next, link, known, size);
	m2m_restore_fetch(&there, &there.next);
	assert(m2m_restore(&there, link, known, size, 7, flags) == done);
	assert(!memcmp(known, frame, size));
	there.next.bytes = NULL;
	if (done == M2M_AS_IT_WAS) {
		assert(!memcmp(frame, data, size));
	} else {
		undone = m2m_restore(&back, link, frame, size, 7, flags);
		assert(undone != M2M_AS_IT_WAS);
		assert(same(frame, data, size));
	}
	free(known);
	free(frame);
	return 0;
}
