"""The calls of m2m_nf.h; see ``_nf.pyi``. The interpreter goes on while the agent is waited for."""

import errno

from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy


cdef extern from *:
    """
    #include "m2m_nf.h"
    """
    ctypedef unsigned int socklen_t

    struct sockaddr:
        pass

    struct sockaddr_storage:
        pass

    union m2m_sockaddr:
        sockaddr any

    struct m2m_nf_session:
        uint64_t id
        sockaddr_storage client
        sockaddr_storage destination

    struct m2m_nf_connection:
        uint64_t session

    struct m2m_nf_leaving:
        char why[64]

    int M2M_NF_LEFT, M2M_NF_MORE

    int SO_DOMAIN, SOL_SOCKET
    int getsockopt(int fd, int level, int name, void *value, socklen_t *length) nogil
    uint16_t ntohs(uint16_t number)
    uint16_t htons(uint16_t number)
    int m2m_address_read(const sockaddr *given, socklen_t length, uint8_t *addr, uint16_t *port)
    socklen_t m2m_address_write(m2m_sockaddr *to, int family, const uint8_t *addr, uint16_t port)
    int m2m_nf_accepted(int fd, m2m_nf_session *session) nogil
    int m2m_nf_connecting(const m2m_nf_session *session, int fd, const sockaddr *to,
                          socklen_t length, m2m_nf_connection *connection) nogil
    int m2m_nf_failed(m2m_nf_connection *connection) nogil
    int m2m_nf_leave(int client, int server, m2m_nf_leaving *leaving) nogil
    int m2m_nf_passed(m2m_nf_leaving *leaving) nogil
    void m2m_nf_stay(m2m_nf_leaving *leaving) nogil


cdef tuple _end(sockaddr_storage *end):
    cdef uint8_t addr[16]
    cdef uint16_t port = 0
    m2m_address_read(<sockaddr *>end, sizeof(end[0]), addr, &port)
    return (<const char *>addr)[:16], ntohs(port)


def accepted(int fd):
    cdef m2m_nf_session session
    cdef int found
    with nogil:
        found = m2m_nf_accepted(fd, &session)
    if not found:
        return None
    return session.id, *_end(&session.client), *_end(&session.destination)


def connecting(uint64_t session, int fd, bytes address not None, uint16_t port):
    cdef m2m_nf_session given
    cdef m2m_nf_connection connection
    cdef m2m_sockaddr to
    cdef int family = 0
    cdef socklen_t length = sizeof(family)
    cdef int announced
    if len(address) != 16:
        raise ValueError(f"{len(address)} bytes are no address")
    if getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &length):
        raise ValueError(f"{fd} is no socket")
    length = m2m_address_write(&to, family, <const uint8_t *><const char *>address, htons(port))
    given.id = session
    with nogil:
        announced = m2m_nf_connecting(&given, fd, &to.any, length, &connection)
    if announced < 0:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "the rest of the chain cannot be had")
    return (<const char *>&connection)[:sizeof(connection)] if announced else None


def failed(bytes connection not None):
    cdef m2m_nf_connection given
    if len(connection) != sizeof(given):
        raise ValueError("it is no connection that was announced")
    memcpy(&given, <const char *>connection, sizeof(given))
    with nogil:
        m2m_nf_failed(&given)


cdef class Leaving:
    cdef m2m_nf_leaving leaving
    cdef bint open

    def __init__(self, int client, int server):
        cdef int leaves
        with nogil:
            leaves = m2m_nf_leave(client, server, &self.leaving)
        self.open = leaves
        if not leaves:
            raise ValueError(self.why())

    cdef str why(self):
        return self.leaving.why.decode(errors="replace")

    def passed(self):
        cdef int answer
        if not self.open:
            raise ValueError("it is over")
        with nogil:
            answer = m2m_nf_passed(&self.leaving)
        if answer == M2M_NF_MORE:
            return False
        self.open = False
        if answer != M2M_NF_LEFT:
            raise ValueError(self.why())
        return True

    def stay(self):
        if self.open:
            self.open = False
            m2m_nf_stay(&self.leaving)

    def __dealloc__(self):
        if self.open:
            m2m_nf_stay(&self.leaving)
