/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How the sockets of a program that knows nothing of M2M are told apart: which connection it
 * accepted is continued by the one that it begins. Two ways:
 *
 * token: the program asks for the original destination (SO_ORIGINAL_DST), as all do that
 *   serve redirected connections. It is given the true address and a port that is this connection's
 *   alone (table.h), and connects to that; connect() puts the true port in its place.
 * last accepted: a process or a thread that was made for one connection continues that one. It is the
 *   last that its maker had accepted by then. Never where tokens are given: such a program makes
 *   processes and threads for other reasons. With M2M_SOCKETS_LAST=1 it is also the last
 *   that the thread itself has accepted, for programs that serve one connection after the other.
 *
 * A wrong answer would give one client's connection to another, so no answer is the rule where there
 * is doubt: an accepted connection counts only as long as it is open, and is continued by one
 * connection at a time, nor ever over the loopback.
 */
#ifndef M2M_SOCKETS_STITCH_H
#define M2M_SOCKETS_STITCH_H

#include "address.h"
#include "ask.h"
#include "leave.h"
#include "lock.h"
#include "table.h"

/* A record that may be another socket's by now: good as long as the cookie is the same. */
struct m2m_accepted {
	struct m2m_socket *socket;
	uint64_t cookie;
};

static __thread __attribute__((tls_model("initial-exec"))) struct {
	struct m2m_accepted accepted;
	int inherited; /* by the process or the thread, from its maker */
} m2m_last;

static int m2m_last_always;

static inline void m2m_stitch_in_child(void)
{
	m2m_ask_forget();
	m2m_table.forks++;
	m2m_last.inherited = m2m_last.accepted.socket != NULL;
}

static inline void m2m_stitch_begin(void)
{
	const char *last = getenv("M2M_SOCKETS_LAST");

	m2m_last_always = last && *last == '1';
	m2m_leave_begin();
	m2m_ask_begin();
	if (m2m_agent.path.sun_family)
		m2m_lock_begin(m2m_stitch_in_child);
}

/* Whether this process is served: it has an agent, and is not another's half copy. */
static inline int m2m_is_served(void)
{
	return m2m_owner && m2m_owner == getpid();
}

/* -- accepted ----------------------------------------------------------------------------- */

static inline void m2m_took(int fd)
{
	struct m2m_accepted accepted = {0};
	int saved = errno;
	struct m2m_flow flow;
	sigset_t before;

	if (m2m_accepted_flow(fd, &flow))
		accepted.cookie = m2m_cookie(fd);
	m2m_enter(&before);
	if (accepted.cookie)
		accepted.socket = m2m_table_accept(fd, accepted.cookie, &flow);
	else
		m2m_table_drop(fd); /* what had this number was closed unseen */
	if (accepted.socket) {
		m2m_last.accepted = accepted;
		m2m_last.inherited = 0;
	}
	m2m_leave(&before);
	errno = saved;
}

/* What is known of a connection, to be read without the lock; 0: it is gone. */
static inline int m2m_look(const struct m2m_accepted *accepted, struct m2m_socket *copy)
{
	sigset_t before;
	int same;

	m2m_enter(&before);
	same = accepted->socket->cookie == accepted->cookie;
	if (same)
		*copy = *accepted->socket;
	m2m_leave(&before);
	return same;
}

/* Ask the agent which session the connection is of, unless it has said; copy: see m2m_look(). */
static inline void m2m_identify(const struct m2m_accepted *accepted, struct m2m_socket *copy)
{
	struct m2m_say say = {.kind = M2M_SAY_ACCEPTED, .flow = copy->flow};
	sigset_t before;

	if (copy->asked || !m2m_ask(&say))
		return;
	copy->asked = 1;
	if (say.kind == M2M_SAY_FOUND) {
		copy->session = say.session;
		memcpy(copy->flow.dst, say.flow.dst, sizeof(copy->flow.dst));
		copy->flow.dport = say.flow.dport;
	}
	m2m_enter(&before);
	if (accepted->socket->cookie == accepted->cookie && !accepted->socket->asked) {
		accepted->socket->asked = 1;
		accepted->socket->session = copy->session;
		accepted->socket->flow = copy->flow;
	}
	m2m_leave(&before);
}

/* The accepted connection of this descriptor, also one that another process has accepted. */
static inline int m2m_accepted_at(int fd, struct m2m_accepted *accepted)
{
	sigset_t before;

	accepted->cookie = m2m_cookie(fd);
	if (!accepted->cookie)
		return 0;
	m2m_enter(&before);
	accepted->socket = m2m_table_at(fd);
	if (accepted->socket && accepted->socket->cookie != accepted->cookie)
		accepted->socket = NULL;
	m2m_leave(&before);
	if (!accepted->socket) {
		struct m2m_flow flow;

		if (!m2m_accepted_flow(fd, &flow))
			return 0;
		m2m_enter(&before);
		accepted->socket = m2m_table_accept(fd, accepted->cookie, &flow);
		m2m_leave(&before);
	}
	return accepted->socket && !accepted->socket->of;
}

/* Answer SO_ORIGINAL_DST for a connection of ours; 0: it is none. */
static inline int m2m_original_dst(int fd, int level, void *value, socklen_t *length)
{
	struct m2m_accepted accepted;
	struct m2m_socket copy;
	union m2m_sockaddr answer;
	sigset_t before;
	socklen_t size;

	if (!m2m_accepted_at(fd, &accepted) || !m2m_look(&accepted, &copy))
		return 0;
	m2m_identify(&accepted, &copy);
	if (!copy.session)
		return 0;
	m2m_enter(&before);
	if (accepted.socket->cookie == accepted.cookie && m2m_token_give(accepted.socket))
		copy.flow.dport = accepted.socket->token;
	m2m_leave(&before);
	size = m2m_address_write(&answer, level == SOL_IPV6 ? AF_INET6 : AF_INET, copy.flow.dst,
				 copy.flow.dport);
	if (!size || *length < size)
		return 0;
	memcpy(value, &answer, size);
	*length = size;
	return 1;
}

/* -- outgoing ----------------------------------------------------------------------------- */

/* The connection that this process or thread serves. Under the lock. */
static inline int m2m_last_accepted(struct m2m_accepted *accepted)
{
	const struct m2m_socket *socket = m2m_last.accepted.socket;

	*accepted = m2m_last.accepted;
	return socket && socket->cookie == m2m_last.accepted.cookie && socket->descriptors &&
	       !socket->outgoing && (m2m_last_always || (m2m_last.inherited && !m2m_table.given));
}

/* Announce the connection and wait for leave to begin it: READY, REFUSED, or as without M2M. */
static inline enum m2m_say_kind m2m_announce(int fd, uint64_t session, struct m2m_flow *flow)
{
	struct m2m_say say = {.kind = M2M_SAY_CONNECTING, .session = session};

	if (!session || !m2m_is_unconnected(fd) || !m2m_bind_outgoing(fd, flow))
		return M2M_SAY_UNKNOWN;
	say.flow = *flow;
	return m2m_ask(&say) ? say.kind : M2M_SAY_UNKNOWN;
}

static inline void m2m_revoke(uint64_t session, const struct m2m_flow *flow)
{
	struct m2m_say say = {.kind = M2M_SAY_REVOKED, .session = session, .flow = *flow};
	int saved = errno;

	m2m_ask(&say);
	errno = saved;
}

/* What m2m_stitch() has to go by: the accepted connection, and where fd is to connect to. */
static inline int m2m_to_stitch(int fd, const struct sockaddr *address, socklen_t length,
			 struct m2m_accepted *accepted, struct m2m_flow *flow, int *is_token)
{
	struct m2m_socket *again;
	sigset_t before;
	int found;

	memset(accepted, 0, sizeof(*accepted));
	memset(flow, 0, sizeof(*flow));
	flow->proto = IPPROTO_TCP;
	if (!m2m_address_read(address, length, flow->dst, &flow->dport))
		return 0;
	m2m_enter(&before);
	accepted->socket = m2m_token_find(flow->dst, flow->dport);
	*is_token = accepted->socket != NULL;
	if (*is_token)
		accepted->cookie = accepted->socket->cookie;
	found = *is_token || (!m2m_address_is_loopback(flow->dst) && m2m_last_accepted(accepted));
	again = m2m_table_at(fd);
	if (again && again->of && again->cookie == m2m_cookie(fd)) {
		/* A program may learn by another connect() how the first went; an error clears all. */
		if (m2m_has_stood(fd))
			again->session = 0;
		*flow = again->flow;
		accepted->socket = NULL;
		found = 1;
	}
	m2m_leave(&before);
	return found && m2m_is_tcp(fd);
}

/*
 * Before connect(): 1 if it is to go to the address in to, of that length; 0: as asked; -1: not at
 * all, as the policy wants it.
 */
static inline int m2m_stitch(int fd, const struct sockaddr *address, socklen_t length,
		      union m2m_sockaddr *to, socklen_t *to_length)
{
	struct m2m_accepted accepted;
	struct m2m_socket copy;
	struct m2m_flow flow;
	sigset_t before;
	int is_token, is_kept = 0;
	enum m2m_say_kind said;

	if (!m2m_to_stitch(fd, address, length, &accepted, &flow, &is_token))
		return 0;
	if (accepted.socket) {
		if (!m2m_look(&accepted, &copy))
			return 0;
		m2m_identify(&accepted, &copy);
		if (is_token) {
			memcpy(flow.dst, copy.flow.dst, sizeof(flow.dst));
			flow.dport = copy.flow.dport;
		}
		said = m2m_announce(fd, copy.session, &flow);
		if (said == M2M_SAY_REFUSED)
			return -1;
		if (said != M2M_SAY_READY) {
			copy.session = 0;
			if (!is_token)
				return 0;
		}
		m2m_enter(&before);
		if (accepted.socket->cookie == accepted.cookie)
			is_kept = m2m_table_continue(fd, m2m_cookie(fd), accepted.socket,
						     copy.session, &flow) != NULL;
		m2m_leave(&before);
		if (copy.session && !is_kept)
			m2m_revoke(copy.session, &flow);
	}
	*to_length = m2m_address_write(to, address->sa_family, flow.dst, flow.dport);
	return *to_length != 0;
}

/* After connect() of a socket that m2m_stitch() has prepared has returned this error. */
static inline void m2m_stitched(int fd, int error)
{
	struct m2m_flow flow;
	struct m2m_socket *socket;
	uint64_t session = 0;
	sigset_t before;

	if (error == EINPROGRESS || error == EALREADY || error == EISCONN || error == EINTR)
		return;
	m2m_enter(&before);
	socket = m2m_table_at(fd);
	if (socket && socket->of) {
		session = socket->session;
		flow = socket->flow;
		socket->session = 0;
		m2m_table_drop(fd);
	}
	m2m_leave(&before);
	if (session)
		m2m_revoke(session, &flow);
}

/* -- descriptors --------------------------------------------------------------------------- */

/* fd is going to be closed; 1 if that gives up a connection that never stood: to be revoked. */
static inline int m2m_close(int fd, uint64_t *session, struct m2m_flow *flow)
{
	struct m2m_socket *socket;
	int given_up = 0;
	sigset_t before;

	m2m_enter(&before);
	socket = m2m_table_at(fd);
	if (socket && socket->of && socket->of->relay && socket->descriptors == 1)
		m2m_relay_stay(socket->of->relay);
	if (socket && socket->of && socket->session && socket->descriptors == 1 &&
	    socket->forks == m2m_table.forks && socket->cookie == m2m_cookie(fd) &&
	    !m2m_has_stood(fd)) {
		given_up = 1;
		*session = socket->session;
		*flow = socket->flow;
	}
	m2m_table_drop(fd);
	m2m_leave(&before);
	return given_up;
}

/* fresh is another descriptor of what old is one of. */
static inline void m2m_duplicate(int old, int fresh)
{
	struct m2m_socket *socket;
	sigset_t before;

	if (old == fresh || (!m2m_table_at(old) && !m2m_table_at(fresh)))
		return;
	m2m_enter(&before);
	socket = m2m_table_at(old);
	if (socket)
		m2m_table_put(fresh, socket);
	else
		m2m_table_drop(fresh);
	m2m_leave(&before);
}

#endif /* M2M_SOCKETS_STITCH_H */
