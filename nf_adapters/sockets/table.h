/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What is known of this process's sockets: which connections it has accepted, which outgoing ones
 * continue them, and the tokens by which a program that runs many at a time says which is which.
 *
 * A socket may have several descriptors (dup()), and descriptors may be closed unseen and their
 * numbers be another socket's by now. So each socket has one record, found by any of its
 * descriptors and believed only if the kernel's own number for the socket (SO_COOKIE) is the same.
 *
 * A token is a port that an accepted connection is given, beside its true destination's
 * address: the answer to SO_ORIGINAL_DST. No two connections to one address have the same one, so
 * connect() to it names the connection. It is given away again only when all sockets of the
 * connection are closed, outgoing ones too: a program that keeps those in a pool knows them by it. Even then
 * it is known until its port is wanted, as a connect() may come late.
 *
 * Everything here is called under the lock. Records are used again for other sockets, but never
 * freed: a pointer to one that is gone leads to another one, with another cookie.
 */
#ifndef M2M_SOCKETS_TABLE_H
#define M2M_SOCKETS_TABLE_H

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#include "wire.h"

#define M2M_TABLE_PART 1024 /* descriptors; as many such parts */
#define M2M_TOKEN_FIRST 32768u
#ifndef M2M_TOKENS /* the fuzzer has fewer */
#define M2M_TOKENS 32768u /* ports, for each address */
#endif

struct m2m_socket {
	uint64_t cookie;  /* 0: the record is unused */
	uint64_t session; /* 0: of none, or it is not known yet */
	struct m2m_flow flow;
	struct m2m_socket *of;   /* of an outgoing one: the accepted one that it continues */
	struct m2m_socket *next; /* with a token of the same port; or unused */
	uint32_t descriptors;
	uint32_t outgoing; /* sockets that continue this one */
	uint32_t forks;    /* when it was made: others may have it, if there were more since */
	uint16_t token;    /* in network order; 0: none */
	uint8_t asked;     /* the agent has said what it knows */
	struct m2m_relay *relay; /* of an accepted one that may be left (leave.h) */
};

static void (*m2m_relay_gone)(struct m2m_relay *relay); /* set before there is one */

static struct {
	struct m2m_socket **parts[M2M_TABLE_PART];
	struct m2m_socket *tokens[M2M_TOKENS];
	struct m2m_socket *unused;
	uint32_t next_token;
	uint32_t given; /* tokens, ever */
	uint32_t forks;
} m2m_table;

/* The record of a descriptor. Without the lock: whether there is one. */
static inline struct m2m_socket *m2m_table_at(int fd)
{
	struct m2m_socket **part;

	if (fd < 0 || fd >= M2M_TABLE_PART * M2M_TABLE_PART)
		return NULL;
	part = __atomic_load_n(&m2m_table.parts[fd / M2M_TABLE_PART], __ATOMIC_ACQUIRE);
	return part ? __atomic_load_n(&part[fd % M2M_TABLE_PART], __ATOMIC_RELAXED) : NULL;
}

static inline int m2m_table_set(int fd, struct m2m_socket *socket)
{
	struct m2m_socket ***part;

	if (fd < 0 || fd >= M2M_TABLE_PART * M2M_TABLE_PART)
		return 0;
	part = &m2m_table.parts[fd / M2M_TABLE_PART];
	if (!*part) {
		struct m2m_socket **fresh = calloc(M2M_TABLE_PART, sizeof(*fresh));

		if (!fresh)
			return 0;
		__atomic_store_n(part, fresh, __ATOMIC_RELEASE);
	}
	__atomic_store_n(&(*part)[fd % M2M_TABLE_PART], socket, __ATOMIC_RELAXED);
	return 1;
}

static inline struct m2m_socket *m2m_socket_new(uint64_t cookie)
{
	struct m2m_socket *socket = m2m_table.unused;

	if (socket)
		m2m_table.unused = socket->next;
	else
		socket = malloc(sizeof(*socket));
	if (socket) {
		memset(socket, 0, sizeof(*socket));
		socket->cookie = cookie;
		socket->forks = m2m_table.forks;
	}
	return socket;
}

static inline int m2m_socket_is_used(const struct m2m_socket *socket)
{
	return socket->descriptors || socket->outgoing;
}

static inline void m2m_relay_drop(struct m2m_socket *socket)
{
	if (socket->relay)
		m2m_relay_gone(socket->relay);
	socket->relay = NULL;
}

static inline void m2m_socket_free(struct m2m_socket *socket)
{
	m2m_relay_drop(socket);
	socket->cookie = 0;
	socket->next = m2m_table.unused;
	m2m_table.unused = socket;
}

/* It has a descriptor, or a socket that continues it, less. */
static inline void m2m_socket_release(struct m2m_socket *socket)
{
	struct m2m_socket *of = socket->of;

	if (m2m_socket_is_used(socket) || socket->token)
		return;
	m2m_socket_free(socket);
	if (of) {
		of->outgoing--;
		m2m_socket_release(of);
	}
}

/* The descriptor is closed, or is going to be another socket's. */
static inline void m2m_table_drop(int fd)
{
	struct m2m_socket *socket = m2m_table_at(fd);

	if (!socket)
		return;
	m2m_table_set(fd, NULL);
	socket->descriptors--;
	if (!socket->descriptors)
		m2m_relay_drop(socket); /* its record may be kept, for its token */
	m2m_socket_release(socket);
}

/* fd has become a descriptor of this socket; 0: there is no room, and a new record is gone. */
static inline int m2m_table_put(int fd, struct m2m_socket *socket)
{
	socket->descriptors++; /* first: fd may be one of its descriptors already */
	m2m_table_drop(fd);
	if (m2m_table_set(fd, socket))
		return 1;
	socket->descriptors--;
	m2m_socket_release(socket);
	return 0;
}

/* A connection was accepted; NULL: there is no room. */
static inline struct m2m_socket *m2m_table_accept(int fd, uint64_t cookie, const struct m2m_flow *flow)
{
	struct m2m_socket *socket = m2m_socket_new(cookie);

	if (!socket)
		return NULL;
	socket->flow = *flow;
	return m2m_table_put(fd, socket) ? socket : NULL;
}

/* fd is a socket that continues an accepted one. */
static inline struct m2m_socket *m2m_table_continue(int fd, uint64_t cookie, struct m2m_socket *of,
					     uint64_t session, const struct m2m_flow *flow)
{
	struct m2m_socket *socket = m2m_socket_new(cookie);

	if (!socket)
		return NULL;
	socket->of = of;
	of->outgoing++;
	socket->session = session;
	socket->flow = *flow;
	return m2m_table_put(fd, socket) ? socket : NULL;
}

static inline int m2m_token_is(const struct m2m_socket *socket, const uint8_t *addr)
{
	return !memcmp(socket->flow.dst, addr, sizeof(socket->flow.dst));
}

/* The accepted connection that this destination is a token of. */
static inline struct m2m_socket *m2m_token_find(const uint8_t *addr, uint16_t port)
{
	unsigned int number = ntohs(port);
	struct m2m_socket *socket;

	if (number < M2M_TOKEN_FIRST || number >= M2M_TOKEN_FIRST + M2M_TOKENS)
		return NULL;
	socket = m2m_table.tokens[number - M2M_TOKEN_FIRST];
	while (socket && !m2m_token_is(socket, addr))
		socket = socket->next;
	return socket;
}

/* Whether this port can be a token for that address. What is over with that port is forgotten. */
static inline int m2m_token_is_free(struct m2m_socket **first, const uint8_t *addr)
{
	struct m2m_socket **link = first;
	int is_free = 1;

	while (*link) {
		struct m2m_socket *socket = *link;

		if (m2m_socket_is_used(socket)) {
			is_free &= !m2m_token_is(socket, addr);
			link = &socket->next;
		} else {
			*link = socket->next;
			m2m_socket_free(socket);
		}
	}
	return is_free;
}

/* Give the connection a token, if it has none; 0: none is free for its destination. */
static inline int m2m_token_give(struct m2m_socket *socket)
{
	unsigned int tries;

	for (tries = 0; !socket->token && tries < M2M_TOKENS; tries++) {
		uint32_t at = m2m_table.next_token++ % M2M_TOKENS;
		uint16_t port = htons((uint16_t)(M2M_TOKEN_FIRST + at));

		if (port == socket->flow.dport ||
		    !m2m_token_is_free(&m2m_table.tokens[at], socket->flow.dst))
			continue;
		socket->token = port;
		socket->next = m2m_table.tokens[at];
		m2m_table.tokens[at] = socket;
		m2m_table.given++;
	}
	return socket->token != 0;
}

#endif /* M2M_SOCKETS_TABLE_H */
