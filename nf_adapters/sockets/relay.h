/* SPDX-License-Identifier: GPL-2.0 */
/*
 * When a program that knows nothing of M2M may leave a session (docs/splicing.md), by what it reads
 * and writes at its two connections. Two such moments:
 *
 * response: in the middle of the body of a response that may not be cached, when the same octets
 *   come out that went in: a Content-Length, the same on both sides. Headers the program makes anew.
 * tunnel: all octets are copied, both ways; from the first one on where the program's user has said
 *   so, else from the header of a response 101 (Switching Protocols), or of one to CONNECT, for which
 *   a connection of its own is begun.
 *
 * What the program has in hand is the difference of two counts. They are right if it has used no
 * calls but those that are seen: so the kernel has to agree.
 */
#ifndef M2M_SOCKETS_RELAY_H
#define M2M_SOCKETS_RELAY_H

#include "counts.h"
#include "http.h"

enum m2m_relay_state {
	M2M_RELAY_WATCHES = 0,
	M2M_RELAY_LEAVES, /* what comes is held; the rest is passed on */
	M2M_RELAY_WAITS,  /* for the answer to PASSED */
	M2M_RELAY_STAYS,  /* until the next request; in a tunnel, until twice as much has passed */
	M2M_RELAY_LEFT,
};

struct m2m_streams {
	struct m2m_http asks, sent; /* from the client; to the server */
	struct m2m_http from, to;   /* from the server; to the client */
	uint32_t request; /* the client's, during which the last to the server, or its connection, began */
};

enum m2m_copies { M2M_COPIES_NOTHING, M2M_COPIES_RESPONSE, M2M_COPIES_TUNNEL };

/* The server's connection is another one. */
static inline void m2m_streams_begin(struct m2m_streams *all, int is_tunnel)
{
	memset(&all->sent, 0, sizeof(all->sent));
	memset(&all->from, 0, sizeof(all->from));
	all->request = all->asks.begun;
	all->sent.is_request = 1;
	all->sent.state = all->from.state = is_tunnel ? M2M_HTTP_COPIED : M2M_HTTP_START;
}

/* The client's is; is_tunnel: all is copied, from the first octet on. */
static inline void m2m_streams_init(struct m2m_streams *all, int is_tunnel)
{
	memset(all, 0, sizeof(*all));
	all->asks.is_request = 1;
	all->asks.state = all->to.state = is_tunnel ? M2M_HTTP_COPIED : M2M_HTTP_START;
	m2m_streams_begin(all, is_tunnel);
}

/* Whether of what the client has asked nothing is open but the last, and that has been sent. */
static inline int m2m_streams_await(const struct m2m_streams *all)
{
	return m2m_http_is_between(&all->asks) && m2m_http_is_between(&all->sent) &&
	       all->request == all->asks.begun && all->to.begun == all->asks.begun &&
	       all->from.begun == all->sent.begun;
}

static inline void m2m_streams_feed(struct m2m_streams *all, int is_server, int is_read,
				    const char *data, size_t size)
{
	uint32_t before = all->sent.begins;

	if (is_server)
		m2m_http_feed(is_read ? &all->from : &all->sent, data, size);
	else
		m2m_http_feed(is_read ? &all->asks : &all->to, data, size);
	if (all->sent.begins != before)
		all->request = all->asks.begun;
	if (all->to.status == 101 && all->from.status == 101 && m2m_streams_await(all)) {
		all->asks.state = all->sent.state = M2M_HTTP_COPIED;
		all->asks.body = all->sent.body = 0;
	}
}

/* Whether the client has asked for a tunnel, and been told that it stands. */
static inline int m2m_streams_connect(const struct m2m_streams *all)
{
	return all->asks.is_connect && all->asks.state == M2M_HTTP_COPIED &&
	       all->to.state == M2M_HTTP_REST && all->to.status == 200 &&
	       all->to.begun == all->asks.begun && all->request == all->asks.begun;
}

static inline enum m2m_copies m2m_streams_copy(const struct m2m_streams *all)
{
	const struct m2m_http *from = &all->from, *to = &all->to;

	if (m2m_streams_connect(all) ||
	    (all->asks.state == M2M_HTTP_COPIED && all->sent.state == M2M_HTTP_COPIED &&
	     from->state == M2M_HTTP_COPIED && to->state == M2M_HTTP_COPIED))
		return M2M_COPIES_TUNNEL;
	if (m2m_streams_await(all) && all->asks.is_get && !all->asks.has_length &&
	    !all->asks.is_chunked && all->sent.is_get && from->state == M2M_HTTP_BODY &&
	    to->state == M2M_HTTP_BODY && (from->status == 200 || from->status == 206) &&
	    to->status == from->status && from->is_uncacheable && from->length == to->length &&
	    to->body <= from->body)
		return M2M_COPIES_RESPONSE;
	return M2M_COPIES_NOTHING;
}

/* Octets that have been copied. */
static inline uint64_t m2m_streams_copied(const struct m2m_streams *all)
{
	return all->to.body + (m2m_streams_connect(all) ? all->sent.fed : all->sent.body);
}

/* Whether leaving is worth while: so much has been copied and, of a response, as much is left. */
static inline int m2m_streams_are_due(const struct m2m_streams *all, uint64_t after)
{
	enum m2m_copies what = m2m_streams_copy(all);

	return what != M2M_COPIES_NOTHING && m2m_streams_copied(all) >= after &&
	       (what == M2M_COPIES_TUNNEL || all->from.left >= after);
}

/* Whether something else goes on than what was to be left. */
static inline int m2m_streams_are_off(const struct m2m_streams *all)
{
	return m2m_streams_copy(all) != M2M_COPIES_TUNNEL &&
	       (!m2m_streams_await(all) || all->from.state == M2M_HTTP_LOST ||
		all->to.state == M2M_HTTP_LOST);
}

/* Whether the program has nothing in hand. */
static inline int m2m_streams_are_even(const struct m2m_streams *all)
{
	if (m2m_streams_connect(all)) /* to the server nothing else is said */
		return all->to.body == all->from.fed && all->sent.fed == all->asks.body;
	return all->to.body == all->from.body && all->sent.body == all->asks.body;
}

/* Whether all that the program has read and written was seen. */
static inline int m2m_streams_agree(const struct m2m_streams *all, const struct m2m_counts *client,
				    const struct m2m_counts *server)
{
	return all->asks.fed == client->read && all->to.fed == client->written &&
	       all->from.fed == server->read && all->sent.fed == server->written;
}

#endif /* M2M_SOCKETS_RELAY_H */
