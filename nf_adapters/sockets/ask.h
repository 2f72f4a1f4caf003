/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Asking the host's agent. A question takes a connection of its own for as long as it lasts, so
 * threads do not wait for each other; connections are kept for later questions.
 *
 * An agent that is away costs a failed connect(). One that does not answer costs M2M_SAY_PATIENCE_MS;
 * if a question that is put after that is not answered either, it is left alone for a second, then for
 * two, and so on up to a minute. Questions that wait at the same time are one silence, not many.
 */
#ifndef M2M_SOCKETS_ASK_H
#define M2M_SOCKETS_ASK_H

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include "lock.h"
#include "wire.h"

/* The preload library has functions of these names itself: it says where the real ones are. */
#ifndef m2m_libc
#define m2m_libc(name) name
#endif

#define M2M_ASK_KEPT 16       /* connections */
#define M2M_ASK_USUAL "/run/m2m/*.proxy"

struct m2m_line {
	int fd;
	ino_t inode; /* of the socket: the program may have closed it, and opened something else */
};

static struct {
	struct sockaddr_un path; /* empty: there is no agent to ask */
	struct m2m_line kept[M2M_ASK_KEPT];
	unsigned int count;
	uint32_t number;
	unsigned int silences; /* one after the other, since the last answer */
	int64_t silent_since;  /* ms; when the last one was noticed */
	int64_t silent_until;  /* ms */
} m2m_agent; /* under the lock, but for the path, which does not change */

static inline int64_t m2m_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/*
 * The environment of a set-uid program is anybody's: only a socket that is root's is believed
 * there. (The workers of Squid are such programs for the loader.)
 */
static inline int m2m_may_trust(const char *path)
{
	struct stat about;

	return !getauxval(AT_SECURE) || (!lstat(path, &about) && !about.st_uid);
}

/* Find the agent: where M2M_SOCKETS says, or the only one of this host. */
static inline void m2m_ask_begin(void)
{
	const char *path = getenv("M2M_SOCKETS");
	glob_t found = {0};

	if (!path && !glob(M2M_ASK_USUAL, 0, NULL, &found) && found.gl_pathc == 1)
		path = found.gl_pathv[0];
	if (path && strlen(path) < sizeof(m2m_agent.path.sun_path) && m2m_may_trust(path)) {
		m2m_agent.path.sun_family = AF_UNIX;
		strcpy(m2m_agent.path.sun_path, path);
	}
	globfree(&found);
}

static inline int m2m_line_is_ours(const struct m2m_line *line)
{
	struct stat about;

	return !fstat(line->fd, &about) && S_ISSOCK(about.st_mode) && about.st_ino == line->inode;
}

/* In a child of fork(), under the lock: the parent's conversations are not the child's. */
static inline void m2m_ask_forget(void)
{
	while (m2m_agent.count) {
		const struct m2m_line *line = &m2m_agent.kept[--m2m_agent.count];

		if (m2m_line_is_ours(line))
			m2m_libc(close)(line->fd);
	}
}

/* A connection that was kept; 0: there is none. */
static inline int m2m_line_take(struct m2m_line *line)
{
	sigset_t before;
	int got = 0;

	m2m_enter(&before);
	while (!got && m2m_agent.count) {
		*line = m2m_agent.kept[--m2m_agent.count];
		got = m2m_line_is_ours(line);
	}
	m2m_leave(&before);
	return got;
}

static inline void m2m_line_keep(const struct m2m_line *line)
{
	sigset_t before;
	int kept = 0;

	m2m_enter(&before);
	if (m2m_agent.count < M2M_ASK_KEPT) {
		m2m_agent.kept[m2m_agent.count++] = *line;
		kept = 1;
	}
	m2m_leave(&before);
	if (!kept)
		m2m_libc(close)(line->fd);
}

static inline int m2m_line_open(struct m2m_line *line)
{
	struct timeval patience = {.tv_sec = M2M_SAY_PATIENCE_MS / 1000};
	struct stat about;
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd >= 0 && fd <= STDERR_FILENO) { /* these numbers are not ours, though they are free */
		int other = m2m_libc(fcntl)(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);

		m2m_libc(close)(fd);
		fd = other;
	}
	if (fd < 0)
		return 0;
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)); /* of connect() */
	if (m2m_libc(connect)(fd, (struct sockaddr *)&m2m_agent.path, sizeof(m2m_agent.path)) ||
	    fstat(fd, &about)) {
		m2m_libc(close)(fd);
		return 0;
	}
	*line = (struct m2m_line){.fd = fd, .inode = about.st_ino};
	return 1;
}

enum m2m_heard { M2M_HEARD, M2M_BROKEN, M2M_SILENT };

#define M2M_ASK_BESIDE 2 /* descriptors */

/* Put a question on its way, with the descriptors in beside, if there are any. */
static inline int m2m_line_say(const struct m2m_line *line, const struct m2m_say *question,
			       const int *beside)
{
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(M2M_ASK_BESIDE * sizeof(int))];
	} control = {0};
	struct iovec said = {.iov_base = (void *)question, .iov_len = sizeof(*question)};
	struct msghdr message = {.msg_iov = &said, .msg_iovlen = 1};
	struct cmsghdr *header;

	if (beside) {
		message.msg_control = control.room;
		message.msg_controllen = sizeof(control.room);
		header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(M2M_ASK_BESIDE * sizeof(int));
		memcpy(CMSG_DATA(header), beside, M2M_ASK_BESIDE * sizeof(int));
	}
	return sendmsg(line->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0;
}

static inline enum m2m_heard m2m_line_ask(const struct m2m_line *line, const struct m2m_say *question,
				   struct m2m_say *answer, const int *beside)
{
	int64_t end = m2m_now() + M2M_SAY_PATIENCE_MS;
	struct pollfd ready = {.fd = line->fd, .events = POLLIN};

	if (!m2m_line_say(line, question, beside))
		return M2M_BROKEN;
	for (;;) {
		int64_t left = end - m2m_now();
		ssize_t got;

		if (left <= 0)
			return M2M_SILENT;
		if (poll(&ready, 1, (int)left) < 0 && errno != EINTR)
			return M2M_BROKEN;
		got = m2m_libc(recv)(line->fd, answer, sizeof(*answer), MSG_DONTWAIT);
		if (got < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (got != sizeof(*answer) || answer->magic != M2M_SAY_MAGIC ||
		    answer->number != question->number)
			return M2M_BROKEN;
		answer->text[sizeof(answer->text) - 1] = 0;
		return M2M_HEARD;
	}
}

/*
 * Put a question, of which kind, session and flow are set; 1: answered, 0: the agent is away. The line
 * on which it was answered is the caller's then.
 */
static inline int m2m_ask_on(struct m2m_line *used, struct m2m_say *say, const int *beside)
{
	enum m2m_heard heard = M2M_SILENT;
	struct m2m_say answer;
	struct m2m_line line;
	sigset_t before;
	int kept, left_alone;
	int64_t began;

	if (!m2m_agent.path.sun_family)
		return 0;
	m2m_enter(&before);
	say->magic = M2M_SAY_MAGIC;
	say->number = ++m2m_agent.number;
	began = m2m_now();
	left_alone = m2m_agent.silent_until && began < m2m_agent.silent_until;
	m2m_leave(&before);
	if (left_alone)
		return 0;
	do { /* one that was kept may be of an agent that has gone since */
		kept = m2m_line_take(&line);
		if (!kept && !m2m_line_open(&line))
			return 0;
		heard = m2m_line_ask(&line, say, &answer, beside);
		if (heard != M2M_HEARD)
			m2m_libc(close)(line.fd);
	} while (heard == M2M_BROKEN && kept);
	if (heard == M2M_HEARD) {
		*used = line;
		*say = answer;
	}
	m2m_enter(&before);
	if (heard == M2M_HEARD) {
		m2m_agent.silences = 0;
		m2m_agent.silent_until = 0;
	} else if (heard == M2M_SILENT && began >= m2m_agent.silent_since) {
		m2m_agent.silent_since = m2m_now();
		if (m2m_agent.silences++) {
			unsigned int doubled = m2m_agent.silences > 8 ? 6 : m2m_agent.silences - 2;

			m2m_agent.silent_until = m2m_agent.silent_since + (1000u << doubled);
		}
	}
	m2m_leave(&before);
	return heard == M2M_HEARD;
}

static inline int m2m_ask(struct m2m_say *say)
{
	struct m2m_line line;

	if (!m2m_ask_on(&line, say, NULL))
		return 0;
	m2m_line_keep(&line);
	return 1;
}

#endif /* M2M_SOCKETS_ASK_H */
