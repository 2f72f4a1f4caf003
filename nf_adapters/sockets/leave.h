/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How a program that knows nothing of M2M leaves a session (docs/splicing.md): its calls that read,
 * write and end are looked at (relay.h says for what), and the agent is asked in its stead.
 * M2M_SOCKETS_LEAVE is how many octets go through it before; without it nothing of this is done. With
 * M2M_SOCKETS_TUNNEL=1 it copies from the first one on.
 *
 * The agent is asked, and answers, while the program's other connections wait: for LEAVE a fraction of a
 * millisecond. The answer to PASSED may take long: the program finds nothing to be read meanwhile
 * (EAGAIN), which is true. What comes all the same may not be touched before the answer, which is about
 * to come then: for that it waits. It learns by an error at both connections that they are gone.
 *
 * For programs in which one thread serves a connection.
 */
#ifndef M2M_SOCKETS_LEAVE_H
#define M2M_SOCKETS_LEAVE_H

#include "ask.h"
#include "relay.h"
#include "table.h"

struct m2m_relay {
	enum m2m_relay_state state;
	int client, server; /* descriptors; -1: not known yet */
	uint64_t server_cookie;
	uint64_t due; /* octets of a tunnel, before it is tried */
	struct m2m_streams streams;
	struct m2m_line line;
};

static uint64_t m2m_leave_after; /* octets; 0: the program never leaves */
static int m2m_leave_tunnels;

/* Think better of it: the agent lets go what it holds. */
static inline void m2m_relay_stay(struct m2m_relay *relay)
{
	if (relay->state == M2M_RELAY_LEAVES || relay->state == M2M_RELAY_WAITS)
		m2m_libc(close)(relay->line.fd);
	if (relay->state != M2M_RELAY_LEFT)
		relay->state = M2M_RELAY_STAYS;
	relay->due = 2 * m2m_streams_copied(&relay->streams);
}

static inline void m2m_relay_free(struct m2m_relay *relay)
{
	m2m_relay_stay(relay);
	free(relay);
}

static inline void m2m_leave_begin(void)
{
	const char *after = getenv("M2M_SOCKETS_LEAVE"), *tunnels = getenv("M2M_SOCKETS_TUNNEL");

	if (after)
		m2m_leave_after = strtoull(after, NULL, 10);
	m2m_leave_tunnels = tunnels && *tunnels == '1';
	m2m_relay_gone = m2m_relay_free;
}

static inline struct m2m_relay *m2m_relay_new(void)
{
	struct m2m_relay *relay = calloc(1, sizeof(*relay));

	if (relay) {
		relay->client = relay->server = -1;
		relay->due = m2m_leave_after;
		m2m_streams_init(&relay->streams, m2m_leave_tunnels);
	}
	return relay;
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
		if (!accepted->relay)
			accepted->relay = m2m_relay_new();
		relay = accepted->relay;
	}
	m2m_leave(&before);
	return relay;
}

static inline void m2m_relay_leave(struct m2m_relay *relay)
{
	struct m2m_say say = {.kind = M2M_SAY_LEAVE};
	int beside[M2M_ASK_BESIDE] = {relay->client, relay->server};
	struct m2m_counts client, server;

	if (relay->client < 0 || relay->server < 0 || !m2m_count(relay->client, 1, &client) ||
	    !m2m_count(relay->server, 0, &server))
		return;
	m2m_relay_stay(relay);
	if (!m2m_streams_agree(&relay->streams, &client, &server) ||
	    !m2m_ask_on(&relay->line, &say, beside))
		return;
	if (say.kind == M2M_SAY_LEAVING)
		relay->state = M2M_RELAY_LEAVES;
	else
		m2m_line_keep(&relay->line);
}

/* If all is passed on, ends too, say so. */
static inline void m2m_relay_pass(struct m2m_relay *relay)
{
	struct m2m_say say = {.magic = M2M_SAY_MAGIC, .kind = M2M_SAY_PASSED};
	struct m2m_counts client, server;

	if (m2m_streams_are_off(&relay->streams)) {
		m2m_relay_stay(relay);
		return;
	}
	if (!m2m_streams_are_even(&relay->streams) || !m2m_count(relay->client, 1, &client) ||
	    !m2m_count(relay->server, 0, &server) || client.unread || server.unread ||
	    client.ended != server.ends || server.ended != client.ends)
		return; /* there is more to be done */
	if (!m2m_streams_agree(&relay->streams, &client, &server) ||
	    !m2m_line_say(&relay->line, &say, NULL))
		m2m_relay_stay(relay);
	else
		relay->state = M2M_RELAY_WAITS;
}

static inline void m2m_relay_go_on(struct m2m_relay *relay)
{
	int is_again = relay->state == M2M_RELAY_STAYS &&
		       m2m_streams_copy(&relay->streams) == M2M_COPIES_TUNNEL;

	if ((relay->state == M2M_RELAY_WATCHES || is_again) &&
	    m2m_streams_are_due(&relay->streams, is_again ? relay->due : m2m_leave_after))
		m2m_relay_leave(relay);
	if (relay->state == M2M_RELAY_LEAVES)
		m2m_relay_pass(relay);
}

static inline void m2m_relay_saw(struct m2m_relay *relay, int fd, uint64_t cookie, int is_server,
				 int is_read, const char *data, size_t size)
{
	uint32_t before;

	if (!is_server) {
		relay->client = fd;
	} else if (cookie != relay->server_cookie) {
		if (is_read && relay->server >= 0)
			return; /* of a request before */
		if (relay->state == M2M_RELAY_LEAVES)
			m2m_relay_stay(relay);
		m2m_streams_begin(&relay->streams, m2m_leave_tunnels);
		relay->server = fd;
		relay->server_cookie = cookie;
	}
	before = relay->streams.sent.begins;
	m2m_streams_feed(&relay->streams, is_server, is_read, data, size);
	if (relay->streams.sent.begins != before && relay->state == M2M_RELAY_STAYS)
		relay->state = M2M_RELAY_WATCHES;
}

/* -- calls ----------------------------------------------------------------------------------- */

static inline int m2m_waits(int fd, int flags)
{
	return !(flags & MSG_DONTWAIT) && !(m2m_libc(fcntl)(fd, F_GETFL) & O_NONBLOCK);
}

/* Wait for the answer to PASSED as long as the call has to; 0: it is not there, and nothing to be read. */
static inline int m2m_relay_wait(const struct m2m_relay *relay, int fd, int flags, int is_read)
{
	struct pollfd ready[2] = {{.fd = relay->line.fd, .events = POLLIN},
				  {.fd = fd, .events = POLLIN}};

	if (is_read && poll(ready, 2, 0) <= 0 &&
	    (!m2m_waits(fd, flags) || poll(ready, 2, -1) <= 0))
		return 0;
	poll(ready, 1, M2M_SAY_PATIENCE_MS);
	return 1;
}

/* Whether the program may go on with these connections; else the call has failed. */
static inline int m2m_relay_lets(struct m2m_relay *relay, int fd, int flags, int is_read)
{
	struct m2m_say answer;
	ssize_t got;

	if (relay->state != M2M_RELAY_WAITS)
		return 1;
	errno = EAGAIN;
	if (!m2m_relay_wait(relay, fd, flags, is_read))
		return 0;
	got = m2m_libc(recv)(relay->line.fd, &answer, sizeof(answer), MSG_DONTWAIT);
	if (got != sizeof(answer) || answer.magic != M2M_SAY_MAGIC) {
		m2m_relay_stay(relay);
	} else if (answer.kind == M2M_SAY_MORE) {
		relay->state = M2M_RELAY_LEAVES;
	} else {
		m2m_line_keep(&relay->line);
		relay->state = M2M_RELAY_STAYS;
		relay->due = 2 * m2m_streams_copied(&relay->streams);
		if (answer.kind == M2M_SAY_LEFT)
			relay->state = M2M_RELAY_LEFT;
	}
	return 1;
}

#define M2M_NO_FLAGS (-1) /* read() and write() have none */
#define M2M_LOOKS (MSG_PEEK | MSG_TRUNC | MSG_OOB | MSG_ERRQUEUE)

static inline ssize_t m2m_relayed_read(int fd, void *buffer, size_t size, int flags)
{
	int is_server = 0, given = flags == M2M_NO_FLAGS ? 0 : flags;
	uint64_t cookie = 0;
	struct m2m_relay *relay = m2m_relay_of(fd, &is_server, &cookie);
	ssize_t got;
	int error;

	if (relay && !m2m_relay_lets(relay, fd, given, 1))
		return -1;
	got = flags == M2M_NO_FLAGS ? m2m_libc(read)(fd, buffer, size) :
				      m2m_libc(recv)(fd, buffer, size, flags);
	if (relay && !(given & M2M_LOOKS)) {
		error = errno;
		if (got > 0)
			m2m_relay_saw(relay, fd, cookie, is_server, 1, buffer, (size_t)got);
		m2m_relay_go_on(relay);
		errno = error;
	}
	return got;
}

static inline ssize_t m2m_relayed_write(int fd, const void *buffer, size_t size, int flags)
{
	int is_server = 0, given = flags == M2M_NO_FLAGS ? 0 : flags;
	uint64_t cookie = 0;
	struct m2m_relay *relay = m2m_relay_of(fd, &is_server, &cookie);
	ssize_t done;
	int error;

	if (relay && !m2m_relay_lets(relay, fd, given, 0))
		return -1;
	done = flags == M2M_NO_FLAGS ? m2m_libc(write)(fd, buffer, size) :
				       m2m_libc(send)(fd, buffer, size, flags);
	if (relay && done > 0 && !(given & M2M_LOOKS)) {
		error = errno;
		m2m_relay_saw(relay, fd, cookie, is_server, 0, buffer, (size_t)done);
		m2m_relay_go_on(relay);
		errno = error;
	}
	return done;
}

static inline int m2m_relayed_shutdown(int fd, int how)
{
	int is_server = 0, done, error;
	uint64_t cookie = 0;
	struct m2m_relay *relay = m2m_relay_of(fd, &is_server, &cookie);

	if (relay)
		m2m_relay_lets(relay, fd, MSG_DONTWAIT, 0);
	done = m2m_libc(shutdown)(fd, how);
	if (relay && !done) {
		error = errno;
		m2m_relay_go_on(relay);
		errno = error;
	}
	return done;
}

#endif /* M2M_SOCKETS_LEAVE_H */
