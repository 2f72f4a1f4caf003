/* SPDX-License-Identifier: GPL-2.0 */
/*
 * For proxies that say themselves which connection they continue:
 *
 *	struct m2m_nf_session session;
 *	struct m2m_nf_connection connection;
 *
 *	client = accept(listener, NULL, NULL);
 *	if (m2m_nf_accepted(client, &session)) {
 *		server = socket(AF_INET, SOCK_STREAM, 0);
 *		to = session.destination, or one of the proxy's choice
 *		m2m_nf_connecting(&session, server, to, size, &connection);
 *	}
 *	if (connect(server, to, size) is or becomes an error)
 *		m2m_nf_failed(&connection);
 *
 * Each returns 1, or 0 where there is nothing to say: no session of ours, or no agent. The
 * proxy goes on in the same way then. m2m_nf_connecting() returns -1 where it must not connect: the
 * rest of the chain cannot be had, and the policy fails closed.
 *
 * Each waits for the agent, for two seconds at most; any thread may call them. The agent is the one that M2M_SOCKETS names (m2m-nf run sets it), or the only one of the host.
 * The preload library stands back in a program that calls these.
 */
#ifndef M2M_NF_H
#define M2M_NF_H

#include "address.h"
#include "ask.h"

struct m2m_nf_session {
	uint64_t id; /* 0: none */
	struct sockaddr_storage client;
	struct sockaddr_storage destination; /* where the client meant to go */
};

struct m2m_nf_connection {
	uint64_t session; /* 0: it was not announced */
	struct m2m_flow flow;
};

/* A session that the proxy would leave (docs/splicing.md). */
struct m2m_nf_leaving {
	struct m2m_line line;
	char why[M2M_SAY_TEXT]; /* not */
};

enum m2m_nf_left { M2M_NF_STAYS = 0, M2M_NF_LEFT = 1, M2M_NF_MORE = 2 };

/* The preload library's, where it is loaded. */
extern void m2m_sockets_stand_back(void) __attribute__((weak));

static inline void m2m_nf_begin_once(void)
{
	if (m2m_sockets_stand_back)
		m2m_sockets_stand_back();
	m2m_ask_begin();
	m2m_lock_begin(m2m_ask_forget);
}

static inline void m2m_nf_begin(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, m2m_nf_begin_once);
}

static inline void m2m_nf_address(struct sockaddr_storage *to, const uint8_t *addr, uint16_t port)
{
	int is_v4 = !memcmp(addr, m2m_v4_prefix, sizeof(m2m_v4_prefix));
	union m2m_sockaddr address;

	m2m_address_write(&address, is_v4 ? AF_INET : AF_INET6, addr, port);
	memset(to, 0, sizeof(*to));
	memcpy(to, &address, sizeof(address));
}

/* Which session an accepted connection is of. */
static inline int m2m_nf_accepted(int fd, struct m2m_nf_session *session)
{
	struct m2m_say say = {.kind = M2M_SAY_ACCEPTED};

	memset(session, 0, sizeof(*session));
	m2m_nf_begin();
	if (!m2m_accepted_flow(fd, &say.flow) || !m2m_ask(&say) || say.kind != M2M_SAY_FOUND)
		return 0;
	session->id = say.session;
	m2m_nf_address(&session->client, say.flow.src, say.flow.sport);
	m2m_nf_address(&session->destination, say.flow.dst, say.flow.dport);
	return 1;
}

/*
 * A socket is about to continue the session: it is bound, unless it was, and the next hosts are
 * ready for it on return.
 */
static inline int m2m_nf_connecting(const struct m2m_nf_session *session, int fd,
				    const struct sockaddr *to, socklen_t length,
				    struct m2m_nf_connection *connection)
{
	struct m2m_say say = {.kind = M2M_SAY_CONNECTING, .session = session->id};

	memset(connection, 0, sizeof(*connection));
	say.flow.proto = IPPROTO_TCP;
	m2m_nf_begin();
	if (!session->id || !m2m_address_read(to, length, say.flow.dst, &say.flow.dport) ||
	    !m2m_bind_outgoing(fd, &say.flow))
		return 0;
	connection->flow = say.flow;
	if (!m2m_ask(&say) || (say.kind != M2M_SAY_READY && say.kind != M2M_SAY_REFUSED))
		return 0;
	if (say.kind == M2M_SAY_REFUSED)
		return -1;
	connection->session = session->id;
	return 1;
}

/* The connection that was announced has failed, or was given up before it stood. */
static inline int m2m_nf_failed(struct m2m_nf_connection *connection)
{
	struct m2m_say say = {.kind = M2M_SAY_REVOKED, .session = connection->session};

	say.flow = connection->flow;
	connection->session = 0;
	return say.session && m2m_ask(&say);
}

/* What was asked on the line of a session that is being left. */
static inline int m2m_nf_ask_leaving(struct m2m_nf_leaving *leaving, struct m2m_say *say)
{
	struct m2m_say answer = {0};
	sigset_t before;

	m2m_enter(&before);
	say->magic = M2M_SAY_MAGIC;
	say->number = ++m2m_agent.number;
	m2m_leave(&before);
	if (m2m_line_ask(&leaving->line, say, &answer, NULL) != M2M_HEARD)
		return 0;
	*say = answer;
	return 1;
}

/*
 * The proxy only copies between these two connections of a session from now on, and would leave: 1 if
 * what comes is held now. It reads on and passes on what there is, and calls m2m_nf_passed() when it
 * has nothing in its hands. 0: it stays, and leaving->why says why.
 */
static inline int m2m_nf_leave(int client, int server, struct m2m_nf_leaving *leaving)
{
	struct m2m_say say = {.kind = M2M_SAY_LEAVE};
	int beside[M2M_ASK_BESIDE] = {client, server};

	memset(leaving, 0, sizeof(*leaving));
	m2m_nf_begin();
	if (!m2m_ask_on(&leaving->line, &say, beside)) {
		strcpy(leaving->why, "the agent is away");
		return 0;
	}
	if (say.kind == M2M_SAY_LEAVING)
		return 1;
	memcpy(leaving->why, say.text, sizeof(leaving->why));
	m2m_line_keep(&leaving->line);
	return 0;
}

/*
 * All has been passed on. M2M_NF_LEFT: both connections are gone, and are to be closed. M2M_NF_MORE:
 * there is something to be read again. M2M_NF_STAYS: the proxy goes on as before. The two are not
 * touched meanwhile.
 */
static inline enum m2m_nf_left m2m_nf_passed(struct m2m_nf_leaving *leaving)
{
	struct m2m_say say = {.kind = M2M_SAY_PASSED};

	if (!m2m_nf_ask_leaving(leaving, &say)) {
		strcpy(leaving->why, "the agent is away");
		m2m_libc(close)(leaving->line.fd);
		return M2M_NF_STAYS;
	}
	if (say.kind == M2M_SAY_MORE)
		return M2M_NF_MORE;
	memcpy(leaving->why, say.text, sizeof(leaving->why));
	m2m_line_keep(&leaving->line);
	return say.kind == M2M_SAY_LEFT ? M2M_NF_LEFT : M2M_NF_STAYS;
}

/* Instead: it has thought better of it, and stays. */
static inline void m2m_nf_stay(struct m2m_nf_leaving *leaving)
{
	m2m_libc(close)(leaving->line.fd);
}

#endif /* M2M_NF_H */
