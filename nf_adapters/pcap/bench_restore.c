// SPDX-License-Identifier: GPL-2.0
/*
 * What restoring a frame takes, look-up and all: bench_restore NAMES
 *
 * Frames of so many flows, at random, lie in a ring that is larger than the nearest cache, as in a
 * capture; names are fetched as far ahead as the patched libpcap does. Prints the median over
 * batches of frames, in ns per frame.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "publish.h"
#include "hook.h"

#define FRAMES 4096
#define BATCH 64
#define ROUNDS 200

static struct m2m_pcap pcap;
static u8 ring[FRAMES + M2M_AHEAD][160];
static double taken[ROUNDS * FRAMES / BATCH];

static int compare(const void *one, const void *other)
{
	double a = *(const double *)one, b = *(const double *)other;

	return (a > b) - (a < b);
}

static struct m2m_key4 flow(u32 number)
{
	return (struct m2m_key4){
		.src = m2m_swap32(0x0a000201),
		.dst = m2m_swap32(0x0a000301),
		.sport = m2m_swap16((u16)(40000 + number % 20000)),
		.dport = m2m_swap16((u16)(61000 + number / 20000)),
		.proto = M2M_PROTO_TCP,
	};
}

static void make(u8 *frame, u32 number)
{
	struct m2m_key4 key = flow(number);

	memset(frame, 0, sizeof(ring[0]));
	frame[12] = 8;
	frame[14] = 0x45;
	frame[23] = key.proto;
	memcpy(frame + 26, &key.src, 4);
	memcpy(frame + 30, &key.dst, 4);
	memcpy(frame + 34, &key.sport, 2);
	memcpy(frame + 36, &key.dport, 2);
}

/* As it is done for a ring of frames (m2m_pcap_ahead_v2). */
static void look_ahead(unsigned int at)
{
	unsigned int before;

	if (!m2m_pcap_steps(&pcap, ring[at], ring[at + 1]) || !m2m_pcap_due(&pcap))
		return;
	before = pcap.distance;
	while (pcap.distance < M2M_AHEAD)
		m2m_pcap_know(&pcap, M2M_LINK_ETHERNET, ring[at + pcap.distance + 1],
			      sizeof(ring[0]));
	m2m_pcap_fetch(&pcap, before);
}

int main(int argc, char **argv)
{
	u32 names = argc > 1 ? (u32)atoi(argv[1]) : 0, cells = M2M_MAP_MIN_CELLS, number;
	unsigned long restored = 0;
	unsigned int count = 0, round, at, i;
	void *memory;

	if (!names || names > 1000000)
		return 2;
	while (cells < 2 * names)
		cells *= 2;
	memory = aligned_alloc(M2M_MAP_LARGE, (m2m_map_size(cells) | (M2M_MAP_LARGE - 1)) + 1);
	memset(memory, 0, m2m_map_size(cells));
	madvise(memory, m2m_map_size(cells), MADV_COLLAPSE); /* as readers have it: find.h */
	m2m_map_format(memory, cells, 0, 0);
	m2m_map_use(&pcap.restorer.map, memory, m2m_map_size(cells));
	for (number = 0; number < names; number++) {
		struct m2m_key4 key = flow(number);
		struct m2m_name name = {m2m_swap32(0x0a000101), m2m_swap32(0x0a000901), key.sport,
					key.dport, 0};

		if (m2m_map_publish(&pcap.restorer.map, &key, &name, 0) != 1)
			return 1;
	}
	srandom(1);
	for (round = 0; round < ROUNDS; round++) {
		for (at = 0; at < FRAMES + M2M_AHEAD; at++)
			make(ring[at], (u32)random() % names);
		for (at = 0; at < FRAMES; at += BATCH) {
			u64 began = m2m_monotonic();

			for (i = at; i < at + BATCH; i++) {
				look_ahead(i);
				restored += m2m_restore(&pcap.restorer, M2M_LINK_ETHERNET, ring[i],
							sizeof(ring[0]), 1, 0) == M2M_RESTORED;
			}
			taken[count++] = (double)(m2m_monotonic() - began) / BATCH;
		}
	}
	if (restored != (unsigned long)count * BATCH)
		return 1;
	qsort(taken, count, sizeof(taken[0]), compare);
	printf("%.2f\n", taken[count / 2]);
	return 0;
}
