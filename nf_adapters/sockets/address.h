/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The kernel's socket addresses and ours; what a socket's own are, and what they are going to be.
 */
#ifndef M2M_SOCKETS_ADDRESS_H
#define M2M_SOCKETS_ADDRESS_H

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "wire.h"

#ifndef m2m_libc
#define m2m_libc(name) name
#endif

#define M2M_ORIGINAL_DST 80     /* SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST, of netfilter */
/* Offsets of tcpi_bytes_acked and tcpi_bytes_received in the kernel's struct tcp_info. */
#define M2M_TCP_BYTES_ACKED 120
#define M2M_TCP_BYTES_RECEIVED 128

union m2m_sockaddr {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

static const uint8_t m2m_v4_prefix[12] = {[10] = 0xff, [11] = 0xff};

/* 0 when it is no address of IP. */
static inline int m2m_address_read(const struct sockaddr *from, socklen_t length, uint8_t *addr,
			    uint16_t *port)
{
	const union m2m_sockaddr *given = (const void *)from;

	if (!from || length < sizeof(sa_family_t))
		return 0;
	if (given->any.sa_family == AF_INET && length >= sizeof(given->v4)) {
		memcpy(addr, m2m_v4_prefix, sizeof(m2m_v4_prefix));
		memcpy(addr + 12, &given->v4.sin_addr, 4);
		*port = given->v4.sin_port;
		return 1;
	}
	if (given->any.sa_family == AF_INET6 && length >= sizeof(given->v6)) {
		memcpy(addr, &given->v6.sin6_addr, 16);
		*port = given->v6.sin6_port;
		return 1;
	}
	return 0;
}

/* For a socket of this family; its length, 0 when such a socket cannot have it. */
static inline socklen_t m2m_address_write(union m2m_sockaddr *to, int family, const uint8_t *addr,
				   uint16_t port)
{
	memset(to, 0, sizeof(*to));
	to->any.sa_family = (sa_family_t)family;
	if (family == AF_INET6) {
		memcpy(&to->v6.sin6_addr, addr, 16);
		to->v6.sin6_port = port;
		return sizeof(to->v6);
	}
	if (family != AF_INET || memcmp(addr, m2m_v4_prefix, sizeof(m2m_v4_prefix)))
		return 0;
	memcpy(&to->v4.sin_addr, addr + 12, 4);
	to->v4.sin_port = port;
	return sizeof(to->v4);
}

/* As bind(0.0.0.0) or bind(::) leave it. */
static inline int m2m_address_is_any(const uint8_t *addr)
{
	static const uint8_t none[16];

	return !memcmp(addr, none, 16) ||
	       (!memcmp(addr, m2m_v4_prefix, sizeof(m2m_v4_prefix)) && !memcmp(addr + 12, none, 4));
}

static inline int m2m_address_is_loopback(const uint8_t *addr)
{
	static const uint8_t six[16] = {[15] = 1};

	return !memcmp(addr, six, 16) ||
	       (!memcmp(addr, m2m_v4_prefix, sizeof(m2m_v4_prefix)) && addr[12] == 127);
}

static inline int m2m_is_tcp(int fd)
{
	int type = 0, protocol = 0;
	socklen_t length = sizeof(int);

	return !m2m_libc(getsockopt)(fd, SOL_SOCKET, SO_TYPE, &type, &length) &&
	       type == SOCK_STREAM &&
	       !m2m_libc(getsockopt)(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &length) &&
	       protocol == IPPROTO_TCP;
}

/* A number that no other socket has had since the machine was started; 0: it is no socket. */
static inline uint64_t m2m_cookie(int fd)
{
	uint64_t cookie = 0;
	socklen_t length = sizeof(cookie);

	if (m2m_libc(getsockopt)(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length))
		return 0;
	return cookie;
}

/*
 * Whose connection this accepted socket is, and where its client meant to go: conntrack knows
 * that if it was redirected, and else the socket itself.
 */
static inline int m2m_accepted_flow(int fd, struct m2m_flow *flow)
{
	union m2m_sockaddr peer, local;
	socklen_t length = sizeof(peer);

	memset(flow, 0, sizeof(*flow));
	flow->proto = IPPROTO_TCP;
	if (getpeername(fd, &peer.any, &length) ||
	    !m2m_address_read(&peer.any, length, flow->src, &flow->sport))
		return 0;
	length = sizeof(local);
	if (!memcmp(flow->src, m2m_v4_prefix, sizeof(m2m_v4_prefix)) &&
	    !m2m_libc(getsockopt)(fd, SOL_IP, M2M_ORIGINAL_DST, &local, &length))
		return m2m_address_read(&local.any, length, flow->dst, &flow->dport);
	length = sizeof(local);
	if (peer.any.sa_family == AF_INET6 &&
	    !m2m_libc(getsockopt)(fd, SOL_IPV6, M2M_ORIGINAL_DST, &local, &length))
		return m2m_address_read(&local.any, length, flow->dst, &flow->dport);
	length = sizeof(local);
	return !getsockname(fd, &local.any, &length) &&
	       m2m_address_read(&local.any, length, flow->dst, &flow->dport);
}

/* The address from which the host would send there. */
static inline int m2m_route_source(int fd, int family, const union m2m_sockaddr *to, socklen_t length,
			    uint8_t *addr)
{
	union m2m_sockaddr from;
	socklen_t size = sizeof(from);
	int probe = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int mark = 0, found;
	socklen_t mark_size = sizeof(mark);
	uint16_t port;

	if (probe < 0)
		return 0;
	if (!m2m_libc(getsockopt)(fd, SOL_SOCKET, SO_MARK, &mark, &mark_size) && mark)
		setsockopt(probe, SOL_SOCKET, SO_MARK, &mark, sizeof(mark)); /* routes may ask for it */
	found = !m2m_libc(connect)(probe, &to->any, length) &&
		!getsockname(probe, &from.any, &size) &&
		m2m_address_read(&from.any, size, addr, &port);
	m2m_libc(close)(probe);
	return found;
}

/*
 * Have a socket that is not connected yet bound to what it will send from, and say what that is.
 * A program may have bound it already, to an address, a port or both.
 */
static inline int m2m_bind_outgoing(int fd, struct m2m_flow *flow)
{
	union m2m_sockaddr from, to;
	socklen_t length = sizeof(from);
	int later = 0;

	if (getsockname(fd, &from.any, &length) ||
	    !m2m_address_read(&from.any, length, flow->src, &flow->sport))
		return 0;
	if (m2m_address_is_any(flow->src)) {
		socklen_t size = m2m_address_write(&to, from.any.sa_family, flow->dst, flow->dport);

		if (!size || !m2m_route_source(fd, from.any.sa_family, &to, size, flow->src))
			return 0;
	}
	if (flow->sport)
		return 1;
	setsockopt(fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT, &later, sizeof(later)); /* but now */
	length = m2m_address_write(&from, from.any.sa_family, flow->src, 0);
	if (!length || bind(fd, &from.any, length))
		return 0;
	length = sizeof(from);
	return !getsockname(fd, &from.any, &length) &&
	       m2m_address_read(&from.any, length, flow->src, &flow->sport);
}

/* The C library's struct tcp_info ends before these two. */
union m2m_tcp_info {
	struct tcp_info known;
	uint64_t number[M2M_TCP_BYTES_RECEIVED / 8 + 1];
};

static inline int m2m_tcp_info(int fd, union m2m_tcp_info *info)
{
	socklen_t length = sizeof(*info);

	memset(info, 0, sizeof(*info));
	return !m2m_libc(getsockopt)(fd, SOL_TCP, TCP_INFO, info, &length);
}

static inline int m2m_is_unconnected(int fd)
{
	union m2m_tcp_info info;

	return m2m_tcp_info(fd, &info) && info.known.tcpi_state == TCP_CLOSE;
}

/* Whether this socket is, or has been, connected: whether its SYN was acknowledged. */
static inline int m2m_has_stood(int fd)
{
	union m2m_tcp_info info;

	if (!m2m_tcp_info(fd, &info))
		return 1; /* it cannot be told: the datapath sees how it ends */
	if (info.known.tcpi_state == TCP_CLOSE)
		return info.number[M2M_TCP_BYTES_ACKED / 8] != 0;
	return info.known.tcpi_state != TCP_SYN_SENT;
}

#endif /* M2M_SOCKETS_ADDRESS_H */
