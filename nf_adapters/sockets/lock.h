/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The one lock over all that is known of this process's sockets. It is held for moments, never
 * while anything is waited for.
 *
 * A signal handler may call close() or fork(), which come here: so no signal is taken while the lock
 * is held. A child of fork() has one thread, and gets the lock free and what it guards whole.
 */
#ifndef M2M_SOCKETS_LOCK_H
#define M2M_SOCKETS_LOCK_H

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

static pthread_mutex_t m2m_mutex = PTHREAD_MUTEX_INITIALIZER;
static sigset_t m2m_before_fork; /* under the lock */
static void (*m2m_in_child)(void);

/*
 * Whose knowledge this is. What vfork() or clone() have made has another number but not
 * its own copy, or not a whole one: it goes on as without M2M.
 */
static pid_t m2m_owner; /* 0: nobody's */

static inline void m2m_enter(sigset_t *before)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, before);
	pthread_mutex_lock(&m2m_mutex);
}

static inline void m2m_leave(const sigset_t *before)
{
	pthread_mutex_unlock(&m2m_mutex);
	pthread_sigmask(SIG_SETMASK, before, NULL);
}

static inline void m2m_fork_prepare(void)
{
	sigset_t before;

	m2m_enter(&before);
	m2m_before_fork = before;
}

static inline void m2m_fork_parent(void)
{
	sigset_t before = m2m_before_fork;

	m2m_leave(&before);
}

static inline void m2m_fork_child(void)
{
	if (m2m_owner) {
		m2m_owner = getpid();
		m2m_in_child();
	}
	m2m_fork_parent();
}

/* Once per process; in_child: what else a child of fork() does, under the lock. */
static inline void m2m_lock_begin(void (*in_child)(void))
{
	m2m_owner = getpid();
	m2m_in_child = in_child;
	pthread_atfork(m2m_fork_prepare, m2m_fork_parent, m2m_fork_child);
}

#endif /* M2M_SOCKETS_LOCK_H */
