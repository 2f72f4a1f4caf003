/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the patched pcap-linux.c calls; see patches/libpcap. One struct m2m_pcap per activated
 * handle, none for handles that are to behave as stock libpcap's do.
 *
 *   M2M_PCAP          see find.h
 *   M2M_PCAP_ONCE=1   each packet once: not again where this host sends on what it has received
 *   M2M_PCAP_BUFFER   MiB of the ring, whatever the program asks for
 *   M2M_PCAP_HEALTH   see health.h
 */
#ifndef M2M_PCAP_HOOK_H
#define M2M_PCAP_HOOK_H

#include <linux/if_packet.h>
#include <stdint.h>

#include "find.h"
#include "health.h"
#include "reach.h"
#include "restore.h"

#define M2M_AHEAD 12 /* packets: more than memory takes */
#define M2M_BATCH 8  /* names at once: the pages of many are then looked up at the same time */
#define M2M_SOON 16  /* a power of two, more than are ahead */
#define M2M_LINE 64 /* bytes that the processor fetches at once */
#define M2M_NEAR (1u << 14) /* cells: a table that the processor's caches hold is not waited for */
#define M2M_HEADERS 256 /* bytes of a frame: the kernel's header, and those of the packet */
#define M2M_LONGEST_CUT 65535u /* bytes: no packet is cut by that */
#define M2M_SHORTEST_CUT 256 /* bytes: every header that is restored, VLAN tags and options too */

struct m2m_pcap {
	struct m2m_restorer restorer; /* its map is file.map */
	struct m2m_map_file file;
	u32 looked; /* when a mapping that has been replaced was looked for, ms */
	int once;
	int untimed;
	u64 refused;  /* packets that the program's filter has refused, here instead of in the kernel */
	u64 received; /* the largest count that the program has been told */
	u8 *follows;  /* which packet comes next, if it is there already */
	u8 *cursor;   /* TPACKET_V3: the last one that is known ahead */
	unsigned int number;   /* of the packet that is handled now */
	unsigned int distance; /* how many packets behind it are known */
	struct m2m_soon soon[M2M_SOON]; /* those, by their numbers */
	struct m2m_health_slot *health; /* NULL: nobody wants to know */
};

m2m_inline u32 m2m_when(unsigned int seconds, unsigned int fraction, int nanoseconds)
{
	return seconds * 1000u + fraction / (nanoseconds ? 1000000u : 1000u);
}

/* NULL: be stock libpcap. Warns once per process when there should be a mapping and is none. */
static struct m2m_pcap *m2m_pcap_open(int untimed)
{
	static int warned;
	struct m2m_pcap *m2m = calloc(1, sizeof(*m2m));
	const char *once, *why = NULL;
	int found;

	if (!m2m)
		return NULL;
	found = m2m_map_find_file(&m2m->file, &why);
	if (found < 0 && !__atomic_exchange_n(&warned, 1, __ATOMIC_RELAXED))
		fprintf(stderr,
			"libpcap: packets keep their subsessions' addresses, %s cannot be used: "
			"%s (M2M_PCAP=off: be silent)\n",
			m2m->file.path, why);
	if (found <= 0) {
		free(m2m);
		return NULL;
	}
	once = secure_getenv("M2M_PCAP_ONCE");
	m2m->once = once && strcmp(once, "1") == 0;
	m2m->untimed = untimed;
	m2m->restorer.map = m2m->file.map;
	m2m->health = m2m_health_open();
	return m2m;
}

static void m2m_pcap_close(struct m2m_pcap *m2m)
{
	if (!m2m)
		return;
	if (m2m->health)
		m2m->health->process = 0;
	m2m_map_close(&m2m->file);
	free(m2m);
}

static inline int m2m_pcap_poll(struct m2m_pcap *m2m, struct pollfd *fds, nfds_t count, int timeout)
{
	if (m2m && m2m->health)
		return m2m_health_poll(m2m->health, fds, count, timeout);
	return poll(fds, count, timeout);
}

/* Whether the next frame or block is the program's; all before it have been handled. */
static inline int m2m_pcap_acquired(struct m2m_pcap *m2m, const u32 *status, int acquired)
{
	u64 next = acquired ? 0 : (u64)(uintptr_t)status;

	/* not busy any more only when all has been told that was before */
	if (m2m && m2m->health && m2m->health->next != next)
		__atomic_store_n(&m2m->health->next, next, __ATOMIC_RELEASE);
	return acquired;
}

/* After how many ms a block is handed over that is not full; 0 is the kernel's own time. */
static inline unsigned int m2m_pcap_retire(struct m2m_pcap *m2m, unsigned int wanted)
{
	if (!m2m || !m2m->health || (wanted && wanted < M2M_HEALTH_MS))
		return wanted;
	return M2M_HEALTH_MS;
}

/* The size of the ring in bytes: that which the program wants, unless the operator says another. */
static int m2m_pcap_buffer(int wanted)
{
	const char *text = secure_getenv("M2M_PCAP_BUFFER");
	long size = text ? strtol(text, NULL, 10) : 0;

	return size >= 1 && size <= 1024 ? (int)size << 20 : wanted;
}

/* Bytes of a frame of the ring (TPACKET_V2), so that there is room for what is restored. */
static unsigned int m2m_pcap_frame(struct m2m_pcap *m2m, unsigned int wanted)
{
	return m2m && wanted < M2M_SHORTEST_CUT ? M2M_SHORTEST_CUT : wanted;
}

/* How much of a packet the kernel has to deliver for this snapshot and this filter, if any. */
static unsigned int m2m_pcap_cut(int snapshot, const struct sock_filter *program, u32 length)
{
	unsigned int cut = program ? m2m_reach(program, length) : 0;

	if (cut < (unsigned int)snapshot)
		cut = (unsigned int)snapshot;
	return cut < M2M_SHORTEST_CUT ? M2M_SHORTEST_CUT : cut;
}

/* An agent with another number of sessions has made another file; not to be had after a chroot. */
static void m2m_pcap_reopen(struct m2m_pcap *m2m, u32 when)
{
	if (when - m2m->looked < 1000)
		return;
	m2m->looked = when;
	if (m2m_map_open(&m2m->file) != NULL)
		return;
	m2m->restorer.map = m2m->file.map;
	/* what has been looked up ahead was so in the former one */
	m2m->restorer.next.bytes = NULL;
	m2m->distance = 0;
}

/* Restore one frame; whether the program is to see it. */
m2m_inline int m2m_pcap_restore(struct m2m_pcap *m2m, int link, u8 *bytes, size_t captured,
				u32 when, int partial)
{
	unsigned int flags = (partial ? M2M_PARTIAL_CHECK : 0) | (m2m->untimed ? M2M_UNTIMED : 0);
	enum m2m_restored done;

	if (__atomic_load_n(&m2m->file.map.header->replaced, __ATOMIC_RELAXED))
		m2m_pcap_reopen(m2m, when);
	done = m2m_restore(&m2m->restorer, (unsigned int)link, bytes, captured, when, flags);
	if (m2m->health) {
		m2m->health->delivered++;
		m2m->health->restored += done != M2M_AS_IT_WAS;
	}
	if (done == M2M_RESTORED_AGAIN && m2m->once) {
		m2m->refused++;
		return 0;
	}
	return 1;
}

/* Packet is handled now, and behind it follows comes. Whether names are fetched ahead. */
m2m_inline int m2m_pcap_steps(struct m2m_pcap *m2m, const u8 *packet, u8 *follows)
{
	if (m2m->restorer.map.mask < M2M_NEAR)
		return 0;
	m2m->number++;
	if (packet == m2m->follows && m2m->distance) {
		m2m->distance--;
		m2m->restorer.next = m2m->soon[m2m->number % M2M_SOON];
	} else {
		m2m->distance = 0;
		m2m->restorer.next.bytes = NULL;
	}
	m2m->follows = follows;
	return 1;
}

/* So few are left of those fetched ahead that the next ones are due. */
m2m_inline int m2m_pcap_due(const struct m2m_pcap *m2m)
{
	return m2m->distance <= M2M_AHEAD - M2M_BATCH;
}

/* One packet more is known; captured 0: it has none that could be looked for. */
m2m_inline void m2m_pcap_know(struct m2m_pcap *m2m, int link, const u8 *bytes, size_t captured)
{
	m2m->distance++;
	m2m_restore_ahead(&m2m->restorer, &m2m->soon[(m2m->number + m2m->distance) % M2M_SOON],
			  (unsigned int)link, bytes, captured);
}

/* Have the names fetched of all that are known but the first so many. */
m2m_inline void m2m_pcap_fetch(const struct m2m_pcap *m2m, unsigned int distance)
{
	while (distance < m2m->distance)
		m2m_restore_fetch(&m2m->restorer,
				  &m2m->soon[(m2m->number + ++distance) % M2M_SOON]);
}

/*
 * Have a frame's headers fetched, further ahead than its name: they are read to know that.
 * The kernel has written so much since that no cache near the processor has them any more.
 */
m2m_inline void m2m_pcap_far_ahead(const u8 *frame)
{
	unsigned int at;

	for (at = 0; at < M2M_HEADERS; at += M2M_LINE)
		__builtin_prefetch(frame + at);
}

/*
 * Before a packet of a block is handled, of which so many are left: have the names of those behind
 * it fetched. ring: bytes of the block.
 */
m2m_inline void m2m_pcap_ahead_v3(struct m2m_pcap *m2m, u8 *packet, int left, unsigned int ring,
				  int link)
{
	unsigned int step = ((struct tpacket3_hdr *)packet)->tp_next_offset, before;
	u8 *follows = packet + step;

	if (!m2m_pcap_steps(m2m, packet, follows))
		return;
	if (!m2m->distance)
		m2m->cursor = packet;
	/* as if all packets were as long as this one: that is where, or not far from it */
	m2m_pcap_far_ahead(packet + (M2M_AHEAD + M2M_BATCH) * step);
	if (!m2m_pcap_due(m2m))
		return;
	before = m2m->distance;
	while (m2m->distance < M2M_AHEAD && (int)m2m->distance + 1 < left) {
		struct tpacket3_hdr *next;

		m2m->cursor += ((struct tpacket3_hdr *)m2m->cursor)->tp_next_offset;
		next = (struct tpacket3_hdr *)m2m->cursor;
		m2m_pcap_know(m2m, link, m2m->cursor + next->tp_mac,
			      next->tp_mac + next->tp_snaplen <= ring ? next->tp_snaplen : 0);
	}
	m2m_pcap_fetch(m2m, before);
}

/*
 * The same in a ring of count frames (TPACKET_V2), of which the one at number at is handled: those
 * behind it that the kernel has filled are known, too. size: bytes of a frame.
 */
m2m_inline void m2m_pcap_ahead_v2(struct m2m_pcap *m2m, u8 *const *frames, unsigned int at,
				  unsigned int count, unsigned int size, int link)
{
	unsigned int far = at + M2M_AHEAD + M2M_BATCH, before;

	if (!m2m_pcap_steps(m2m, frames[at], frames[at + 1 < count ? at + 1 : 0]))
		return;
	if (far < count)
		m2m_pcap_far_ahead(frames[far]);
	if (!m2m_pcap_due(m2m))
		return;
	before = m2m->distance;
	while (m2m->distance < M2M_AHEAD && m2m->distance + 1 < count) {
		unsigned int ahead = at + m2m->distance + 1;
		struct tpacket2_hdr *next;

		next = (struct tpacket2_hdr *)frames[ahead < count ? ahead : ahead - count];
		if (__atomic_load_n(&next->tp_status, __ATOMIC_ACQUIRE) == TP_STATUS_KERNEL)
			break;
		m2m_pcap_know(m2m, link, (u8 *)next + next->tp_mac,
			      next->tp_mac + next->tp_snaplen <= size ? next->tp_snaplen : 0);
	}
	m2m_pcap_fetch(m2m, before);
}

/*
 * How many packets the program's filter has let pass, of all that the kernel has given. What it
 * has not looked at yet counts as passed, as it does in the kernel; never less than before.
 */
static u64 m2m_pcap_received(struct m2m_pcap *m2m, u64 all)
{
	u64 passed = all > m2m->refused ? all - m2m->refused : 0;

	if (passed > m2m->received)
		m2m->received = passed;
	return m2m->received;
}

#endif /* M2M_PCAP_HOOK_H */
