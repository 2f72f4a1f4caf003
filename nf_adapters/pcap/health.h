/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How far a program is with what it captures: a page that m2m-nf gives it (M2M_PCAP_HEALTH), one
 * line for each handle. "Everything captured before T has been delivered" is true when the
 * ring was seen empty later than T plus the time a block may take to be handed over.
 *
 * A program that waits for packets by itself (poll() on the handle's descriptor) does not come
 * here while none comes. So the line also says which word of the ring, in the program's memory,
 * was zero when all before it had been delivered: while it is, the ring is empty, and
 * m2m-nf looks at it itself.
 */
#ifndef M2M_PCAP_HEALTH_H
#define M2M_PCAP_HEALTH_H

#include <poll.h>
#include <time.h>

#include "find.h"

#define M2M_HEALTH_SLOTS 31 /* handles of one program; more of them are not told of */
#define M2M_HEALTH_MS 10    /* a block is handed over after that, if it is not full before */
#define M2M_HEALTH_LOOK 20  /* ms between two looks at a ring that stays empty */

struct m2m_health_slot {
	u64 process; /* whose memory the ring is in; 0: the handle is closed */
	u64 empty_at; /* ns of CLOCK_MONOTONIC */
	u64 delivered;
	u64 restored;
	u64 next; /* address of the u32 that is 0 (TP_STATUS_KERNEL) until a packet comes; 0: busy */
	u64 zero[3];
};

struct m2m_health {
	u32 handles; /* so many slots have been used */
	u32 zero[15];
	struct m2m_health_slot slots[M2M_HEALTH_SLOTS];
};

_Static_assert(sizeof(struct m2m_health) == 2048, "read in Python");

static inline u64 m2m_monotonic(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (u64)now.tv_sec * 1000000000u + (u64)now.tv_nsec;
}

/* The slot of one more handle; NULL when nobody wants to know. */
static inline struct m2m_health_slot *m2m_health_open(void)
{
	const char *path = secure_getenv("M2M_PCAP_HEALTH");
	struct m2m_health *page;
	struct stat about;
	u32 number;
	int fd;

	fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	if (fd < 0)
		return NULL;
	page = MAP_FAILED;
	if (!fstat(fd, &about) && about.st_size >= (off_t)sizeof(*page))
		page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (page == MAP_FAILED)
		return NULL;
	number = __atomic_fetch_add(&page->handles, 1, __ATOMIC_RELAXED);
	if (number >= M2M_HEALTH_SLOTS) {
		munmap(page, sizeof(*page));
		return NULL;
	}
	page->slots[number].process = (u64)getpid(); /* the page stays mapped: handles share it */
	return &page->slots[number];
}

/* As poll(), telling meanwhile that the ring is empty: it is only called when it is. */
static inline int m2m_health_poll(struct m2m_health_slot *slot, struct pollfd *fds, nfds_t count,
				  int timeout)
{
	for (;;) {
		int slice = timeout < 0 || timeout > M2M_HEALTH_LOOK ? M2M_HEALTH_LOOK : timeout;
		int ready;

		__atomic_store_n(&slot->empty_at, m2m_monotonic(), __ATOMIC_RELEASE);
		ready = poll(fds, count, slice);
		if (ready || slice == timeout)
			return ready;
		if (timeout > 0)
			timeout -= slice;
	}
}

#endif /* M2M_PCAP_HEALTH_H */
