/* SPDX-License-Identifier: GPL-2.0 */
/* How many octets a program has read from a TCP connection and written to it, by the kernel's own account. */
#ifndef M2M_SOCKETS_COUNTS_H
#define M2M_SOCKETS_COUNTS_H

#include <linux/sockios.h>
#include <sys/ioctl.h>

#include "address.h"

struct m2m_counts {
	uint64_t read, written;
	int unread; /* octets that wait for the program */
	int ended;  /* the peer has ended its direction */
	int ends;   /* the program has */
};

#define M2M_COUNT_TRIES 8

/* 0: it cannot be told, or changes all the time. */
static inline int m2m_count(int fd, int is_accepted, struct m2m_counts *counts)
{
	int tries, unread, unacked, unread_then, unacked_then, state;
	union m2m_tcp_info info;

	for (tries = 0; tries < M2M_COUNT_TRIES; tries++) {
		if (ioctl(fd, SIOCINQ, &unread) || ioctl(fd, SIOCOUTQ, &unacked) ||
		    !m2m_tcp_info(fd, &info) || ioctl(fd, SIOCINQ, &unread_then) ||
		    ioctl(fd, SIOCOUTQ, &unacked_then))
			return 0;
		if (unread != unread_then || unacked != unacked_then)
			continue;
		state = info.known.tcpi_state;
		counts->unread = unread;
		counts->ended =
			state == TCP_CLOSE_WAIT || state == TCP_LAST_ACK || state == TCP_CLOSING;
		counts->ends = state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 ||
			       state == TCP_LAST_ACK || state == TCP_CLOSING;
		/* FIN counts as an octet; so does SYN, for whoever has begun the connection */
		counts->read = info.number[M2M_TCP_BYTES_RECEIVED / 8] - (uint64_t)unread -
			       (uint64_t)counts->ended;
		counts->written = info.number[M2M_TCP_BYTES_ACKED / 8] + (uint64_t)unacked -
				  (uint64_t)counts->ends - !is_accepted;
		return 1;
	}
	return 0;
}

#endif /* M2M_SOCKETS_COUNTS_H */
