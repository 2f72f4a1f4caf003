// SPDX-License-Identifier: GPL-2.0
/*
 * The preload library: the calls of a proxy that knows nothing of M2M, as far as they concern
 * sockets. What is done about them is in stitch.h.
 *
 * Built as libm2m-sockets.so, and loaded by LD_PRELOAD (m2m-nf run).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <unistd.h>

static struct {
	int (*accept)(int, struct sockaddr *, socklen_t *);
	int (*accept4)(int, struct sockaddr *, socklen_t *, int);
	int (*connect)(int, const struct sockaddr *, socklen_t);
	int (*getsockopt)(int, int, int, void *, socklen_t *);
	int (*close)(int);
	ssize_t (*read)(int, void *, size_t);
	ssize_t (*write)(int, const void *, size_t);
	ssize_t (*recv)(int, void *, size_t, int);
	ssize_t (*send)(int, const void *, size_t, int);
	int (*shutdown)(int, int);
	int (*close_range)(unsigned int, unsigned int, int);
	void (*closefrom)(int);
	int (*dup)(int);
	int (*dup2)(int, int);
	int (*dup3)(int, int, int);
	int (*fcntl)(int, int, ...);
	int (*pthread_create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
} m2m_real;

#define m2m_libc(name) m2m_real.name

#include "stitch.h"

#define M2M_HOOK __attribute__((visibility("default")))

#define FIND(name) (*(void **)&m2m_real.name = dlsym(RTLD_NEXT, #name))

static void m2m_find_all(void)
{
	FIND(accept);
	FIND(accept4);
	FIND(connect);
	FIND(getsockopt);
	FIND(read);
	FIND(write);
	FIND(recv);
	FIND(send);
	FIND(shutdown);
	FIND(close_range); /* these two came with glibc 2.34 */
	FIND(closefrom);
	FIND(dup);
	FIND(dup2);
	FIND(dup3);
	FIND(fcntl);
	FIND(pthread_create);
	FIND(close);
}

/* Other libraries may begin before this one, and call what is found here. */
static void m2m_found(void)
{
	if (!__atomic_load_n(&m2m_real.close, __ATOMIC_ACQUIRE))
		m2m_find_all();
}

__attribute__((constructor)) static void m2m_begin(void)
{
	m2m_found();
	m2m_stitch_begin();
}

/* The program says itself what it continues (m2m_nf.h). */
M2M_HOOK void m2m_sockets_stand_back(void);
M2M_HOOK void m2m_sockets_stand_back(void)
{
	m2m_owner = 0;
}

M2M_HOOK int accept(int fd, __SOCKADDR_ARG address, socklen_t *restrict length)
{
	int got;

	m2m_found();
	got = m2m_real.accept(fd, address.__sockaddr__, length);
	if (got >= 0 && m2m_is_served())
		m2m_took(got);
	return got;
}

M2M_HOOK int accept4(int fd, __SOCKADDR_ARG address, socklen_t *restrict length, int flags)
{
	int got;

	m2m_found();
	got = m2m_real.accept4(fd, address.__sockaddr__, length, flags);
	if (got >= 0 && m2m_is_served())
		m2m_took(got);
	return got;
}

M2M_HOOK int getsockopt(int fd, int level, int name, void *restrict value,
			socklen_t *restrict length)
{
	socklen_t room = length ? *length : 0;
	int done;

	m2m_found();
	done = m2m_real.getsockopt(fd, level, name, value, length);
	if (name == M2M_ORIGINAL_DST && (level == SOL_IP || level == SOL_IPV6) && value && length &&
	    m2m_is_served()) {
		int saved = errno;

		if (m2m_original_dst(fd, level, value, &room)) {
			*length = room;
			return 0;
		}
		errno = saved;
	}
	return done;
}

M2M_HOOK int connect(int fd, __CONST_SOCKADDR_ARG address, socklen_t length)
{
	union m2m_sockaddr to;
	socklen_t to_length;
	int done = 0;

	m2m_found();
	if (m2m_is_served())
		done = m2m_stitch(fd, address.__sockaddr__, length, &to, &to_length);
	if (!done)
		return m2m_real.connect(fd, address.__sockaddr__, length);
	if (done < 0) {
		errno = ECONNREFUSED;
		return -1;
	}
	done = m2m_real.connect(fd, &to.any, to_length);
	if (done) {
		int error = errno;

		m2m_stitched(fd, error);
		errno = error;
	}
	return done;
}

M2M_HOOK int close(int fd)
{
	struct m2m_flow flow;
	uint64_t session;
	int done, given_up;

	m2m_found();
	given_up = m2m_table_at(fd) && m2m_is_served() && m2m_close(fd, &session, &flow);
	done = m2m_real.close(fd);
	if (given_up)
		m2m_revoke(session, &flow);
	return done;
}

static int m2m_is_relayed(int fd)
{
	m2m_found();
	return m2m_leave_after && m2m_table_at(fd) && m2m_is_served();
}

M2M_HOOK ssize_t read(int fd, void *buffer, size_t size)
{
	if (!m2m_is_relayed(fd))
		return m2m_real.read(fd, buffer, size);
	return m2m_relayed_read(fd, buffer, size, M2M_NO_FLAGS);
}

M2M_HOOK ssize_t write(int fd, const void *buffer, size_t size)
{
	if (!m2m_is_relayed(fd))
		return m2m_real.write(fd, buffer, size);
	return m2m_relayed_write(fd, buffer, size, M2M_NO_FLAGS);
}

M2M_HOOK ssize_t recv(int fd, void *buffer, size_t size, int flags)
{
	if (!m2m_is_relayed(fd))
		return m2m_real.recv(fd, buffer, size, flags);
	return m2m_relayed_read(fd, buffer, size, flags);
}

M2M_HOOK ssize_t send(int fd, const void *buffer, size_t size, int flags)
{
	if (!m2m_is_relayed(fd))
		return m2m_real.send(fd, buffer, size, flags);
	return m2m_relayed_write(fd, buffer, size, flags);
}

M2M_HOOK int shutdown(int fd, int how)
{
	if (!m2m_is_relayed(fd))
		return m2m_real.shutdown(fd, how);
	return m2m_relayed_shutdown(fd, how);
}

/* Those of a range of descriptors that are known of. */
static void m2m_close_known(unsigned int first, unsigned int last)
{
	unsigned int most = M2M_TABLE_PART * M2M_TABLE_PART - 1;
	unsigned int fd;

	if (!m2m_is_served())
		return;
	for (fd = first; fd <= last && fd <= most; fd++) {
		if (!m2m_table.parts[fd / M2M_TABLE_PART])
			fd |= M2M_TABLE_PART - 1;
		else if (m2m_table_at((int)fd))
			close((int)fd);
	}
}

M2M_HOOK int close_range(unsigned int first, unsigned int last, int flags)
{
	m2m_found();
	if (!(flags & (int)CLOSE_RANGE_CLOEXEC))
		m2m_close_known(first, last);
	return m2m_real.close_range(first, last, flags);
}

M2M_HOOK void closefrom(int first)
{
	m2m_found();
	m2m_close_known(first < 0 ? 0 : (unsigned int)first, ~0u);
	m2m_real.closefrom(first);
}

M2M_HOOK int dup(int fd)
{
	int fresh;

	m2m_found();
	fresh = m2m_real.dup(fd);
	if (fresh >= 0 && m2m_is_served())
		m2m_duplicate(fd, fresh);
	return fresh;
}

/* dup2() and dup3() close what had the number. */
static int m2m_dup_onto(int fd, int fresh, int flags, int is_dup2)
{
	int done, given_up = 0;
	struct m2m_flow flow;
	uint64_t session;

	m2m_found();
	if (fd != fresh && m2m_table_at(fresh) && m2m_is_served() &&
	    m2m_real.fcntl(fd, F_GETFD) >= 0)
		given_up = m2m_close(fresh, &session, &flow);
	done = is_dup2 ? m2m_real.dup2(fd, fresh) : m2m_real.dup3(fd, fresh, flags);
	if (given_up)
		m2m_revoke(session, &flow);
	if (done >= 0 && m2m_is_served())
		m2m_duplicate(fd, fresh);
	return done;
}

M2M_HOOK int dup2(int fd, int fresh)
{
	return m2m_dup_onto(fd, fresh, 0, 1);
}

M2M_HOOK int dup3(int fd, int fresh, int flags)
{
	return m2m_dup_onto(fd, fresh, flags, 0);
}

M2M_HOOK int fcntl(int fd, int command, ...)
{
	void *argument;
	va_list rest;
	int done;

	va_start(rest, command);
	argument = va_arg(rest, void *);
	va_end(rest);
	m2m_found();
	done = m2m_real.fcntl(fd, command, argument);
	if ((command == F_DUPFD || command == F_DUPFD_CLOEXEC) && done >= 0 && m2m_is_served())
		m2m_duplicate(fd, done);
	return done;
}

/* Programs with large files call it so. */
M2M_HOOK int fcntl64(int fd, int command, ...) __attribute__((alias("fcntl")));

struct m2m_thread {
	void *(*start)(void *);
	void *argument;
	struct m2m_accepted accepted;
};

static void *m2m_thread_start(void *given)
{
	struct m2m_thread thread = *(struct m2m_thread *)given;

	free(given);
	m2m_last.accepted = thread.accepted;
	m2m_last.inherited = 1;
	return thread.start(thread.argument);
}

M2M_HOOK int pthread_create(pthread_t *restrict made, const pthread_attr_t *restrict attributes,
			    void *(*start)(void *), void *restrict argument)
{
	struct m2m_thread *thread = NULL;
	int failed;

	m2m_found();
	if (m2m_last.accepted.socket && m2m_is_served())
		thread = malloc(sizeof(*thread));
	if (!thread)
		return m2m_real.pthread_create(made, attributes, start, argument);
	*thread = (struct m2m_thread){start, argument, m2m_last.accepted};
	failed = m2m_real.pthread_create(made, attributes, m2m_thread_start, thread);
	if (failed)
		free(thread);
	return failed;
}
