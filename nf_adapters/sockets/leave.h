/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How a program that knows nothing of M2M leaves a session (docs/splicing.md): Squid, when it passes
 * on a response that may not be cached. M2M_SOCKETS_LEAVE is how many octets of such a response go through it
 * before, and how many must be left to make it worth while; without it nothing of this is done.
 *
 * A relay looks at what the program reads from the server and writes to the client. Headers it
 * makes anew; of bodies with a Content-Length the same octets have to come out, so what it
 * has in hand is the difference of two counts. Only a GET is followed: when it has been written to the server, nothing
 * else was read from the client, and nothing is while the program leaves, nothing of the client's is in hand.
 *
 * The agent is asked, and answers, while the program's other connections wait: for LEAVE a fraction of a
 * millisecond. The answer to PASSED may take long; the program is told of nothing meanwhile
 * (EAGAIN), and learns by an error at both connections that they are gone.
 *
 * For programs in which one thread serves a connection.
 */
#ifndef M2M_SOCKETS_LEAVE_H
#define M2M_SOCKETS_LEAVE_H

#include <stddef.h>

#include "ask.h"
#include "head.h"
#include "table.h"

enum m2m_relay_state {
	M2M_RELAY_WATCHES = 0,
	M2M_RELAY_LEAVES, /* what comes is held; the rest is passed on */
	M2M_RELAY_WAITS,  /* for the answer to PASSED */
	M2M_RELAY_STAYS,  /* until the next request */
	M2M_RELAY_LEFT,
};

struct m2m_relay {
	enum m2m_relay_state state;
	int client, server;	  /* descriptors; -1: not known yet */
	uint64_t server_cookie;
	uint8_t is_get;		  /* the last request */
	uint8_t asked;		  /* something was read from the client since it was written */
	uint64_t read, written;	  /* of bodies */
	struct m2m_head from, to; /* headers: from the server, to the client */
	struct m2m_line line;
};

static uint64_t m2m_leave_after; /* octets; 0: the program never leaves */

/* Think better of it: the agent lets go what it holds. */
static inline void m2m_relay_stay(struct m2m_relay *relay)
{
	if (relay->state == M2M_RELAY_LEAVES || relay->state == M2M_RELAY_WAITS)
		m2m_libc(close)(relay->line.fd);
	if (relay->state != M2M_RELAY_LEFT)
		relay->state = M2M_RELAY_STAYS;
}

static inline void m2m_relay_free(struct m2m_relay *relay)
{
	m2m_relay_stay(relay);
	free(relay);
}

static inline void m2m_leave_begin(void)
{
	const char *after = getenv("M2M_SOCKETS_LEAVE");

	if (after)
		m2m_leave_after = strtoull(after, NULL, 10);
	m2m_relay_gone = m2m_relay_free;
}

/* A request begins: what was counted of the last one's response is over. */
static inline void m2m_relay_begin(struct m2m_relay *relay, int fd, uint64_t cookie)
{
	relay->state = M2M_RELAY_WATCHES;
	relay->server = fd;
	relay->server_cookie = cookie;
	relay->read = relay->written = 0;
	m2m_head_begin(&relay->from);
	m2m_head_begin(&relay->to);
}

/* The relay of a descriptor that is one of a session's, and which side it is; NULL: it has none. */
static inline struct m2m_relay *m2m_relay_of(int fd, int *is_server, uint64_t *cookie)
{
	struct m2m_relay *relay = NULL;
	struct m2m_socket *socket, *accepted;
	sigset_t before;

	m2m_enter(&before);
	socket = m2m_table_at(fd);
	if (socket) {
		*is_server = socket->of != NULL;
		*cookie = socket->cookie;
		accepted = socket->of ? socket->of : socket;
		if (!accepted->relay && socket->of && socket->session) {
			accepted->relay = calloc(1, sizeof(*relay));
			if (accepted->relay)
				accepted->relay->client = accepted->relay->server = -1;
		}
		relay = accepted->relay;
	}
	m2m_leave(&before);
	return relay;
}

static inline int m2m_has_more(int fd)
{
	char octet;

	return recv(fd, &octet, 1, MSG_PEEK | MSG_DONTWAIT) >= 0;
}

/* Whether what comes from now on is no concern of the program's. */
static inline int m2m_relay_may_leave(const struct m2m_relay *relay)
{
	const struct m2m_head *from = &relay->from, *to = &relay->to;

	return relay->state == M2M_RELAY_WATCHES && relay->is_get && !relay->asked &&
	       relay->client >= 0 && relay->server >= 0 && from->whole && !from->wrong &&
	       to->whole && !to->wrong && from->is_uncacheable && from->has_length &&
	       to->has_length && from->length == to->length && !from->is_chunked &&
	       !to->is_chunked && relay->read <= from->length && relay->written <= relay->read &&
	       relay->written >= m2m_leave_after &&
	       from->length - relay->read >= m2m_leave_after;
}

static inline void m2m_relay_leave(struct m2m_relay *relay)
{
	struct m2m_say say = {.kind = M2M_SAY_LEAVE};
	int beside[M2M_ASK_BESIDE] = {relay->client, relay->server};

	relay->state = M2M_RELAY_STAYS;
	if (!m2m_ask_on(&relay->line, &say, beside))
		return;
	if (say.kind == M2M_SAY_LEAVING)
		relay->state = M2M_RELAY_LEAVES;
	else
		m2m_line_keep(&relay->line);
}

/* If all is passed on, say so. */
static inline void m2m_relay_pass(struct m2m_relay *relay)
{
	struct m2m_say say = {.magic = M2M_SAY_MAGIC, .kind = M2M_SAY_PASSED};

	if (relay->state != M2M_RELAY_LEAVES || relay->read != relay->written ||
	    m2m_has_more(relay->server))
		return;
	if (relay->asked || m2m_has_more(relay->client) || !m2m_line_say(&relay->line, &say, NULL))
		m2m_relay_stay(relay);
	else
		relay->state = M2M_RELAY_WAITS;
}

/* Whether the program may go on with these connections. */
static inline int m2m_relay_goes_on(struct m2m_relay *relay)
{
	struct m2m_say answer;
	ssize_t got;

	if (relay->state != M2M_RELAY_WAITS)
		return 1;
	got = recv(relay->line.fd, &answer, sizeof(answer), MSG_DONTWAIT);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (got != sizeof(answer) || answer.magic != M2M_SAY_MAGIC) {
		m2m_relay_stay(relay);
	} else if (answer.kind == M2M_SAY_MORE) {
		relay->state = M2M_RELAY_LEAVES;
	} else {
		relay->state = answer.kind == M2M_SAY_LEFT ? M2M_RELAY_LEFT : M2M_RELAY_STAYS;
		m2m_line_keep(&relay->line);
	}
	return 1;
}

/* The program has read so much from the server, or the client; nothing, or an error. */
static inline void m2m_relay_has_read(struct m2m_relay *relay, int is_server, uint64_t cookie,
				      const char *data, ssize_t size)
{
	size_t head;

	if (!is_server) {
		relay->asked |= size >= 0;
		if (size >= 0 && relay->state == M2M_RELAY_LEAVES)
			m2m_relay_stay(relay);
	} else if (size > 0 && cookie == relay->server_cookie) {
		head = m2m_head_feed(&relay->from, data, (size_t)size);
		relay->read += (size_t)size - head;
	} else if (!size || cookie != relay->server_cookie) {
		m2m_relay_stay(relay);
	} else {
		m2m_relay_pass(relay);
	}
}

static inline void m2m_relay_has_written(struct m2m_relay *relay, int fd, int is_server,
					 uint64_t cookie, const char *data, size_t size)
{
	size_t head;

	if (is_server) {
		if (relay->state == M2M_RELAY_LEAVES)
			m2m_relay_stay(relay);
		if (relay->server < 0 || relay->server_cookie != cookie || relay->from.size) {
			m2m_relay_begin(relay, fd, cookie);
			relay->is_get = size > 4 && !memcmp(data, "GET ", 4);
		}
		relay->asked = 0;
		return;
	}
	relay->client = fd;
	head = m2m_head_feed(&relay->to, data, size);
	relay->written += size - head;
	if (m2m_relay_may_leave(relay))
		m2m_relay_leave(relay);
	m2m_relay_pass(relay);
}

static inline ssize_t m2m_relayed_read(int fd, void *buffer, size_t size,
				       ssize_t (*real)(int, void *, size_t))
{
	struct m2m_relay *relay;
	uint64_t cookie = 0;
	int is_server = 0, error;
	ssize_t got;

	relay = m2m_relay_of(fd, &is_server, &cookie);
	if (relay && !m2m_relay_goes_on(relay)) {
		errno = EAGAIN;
		return -1;
	}
	got = real(fd, buffer, size);
	if (relay && size) {
		error = errno;
		m2m_relay_has_read(relay, is_server, cookie, buffer, got);
		errno = error;
	}
	return got;
}

static inline ssize_t m2m_relayed_write(int fd, const void *buffer, size_t size,
					ssize_t (*real)(int, const void *, size_t))
{
	struct m2m_relay *relay;
	uint64_t cookie = 0;
	int is_server = 0, error;
	ssize_t done;

	relay = m2m_relay_of(fd, &is_server, &cookie);
	if (relay && !m2m_relay_goes_on(relay)) {
		errno = EAGAIN;
		return -1;
	}
	done = real(fd, buffer, size);
	if (relay && done > 0) {
		error = errno;
		m2m_relay_has_written(relay, fd, is_server, cookie, buffer, (size_t)done);
		errno = error;
	}
	return done;
}

#endif /* M2M_SOCKETS_LEAVE_H */
