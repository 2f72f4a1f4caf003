# cython: language_level=3
"""A netfilter queue in the calling thread's network namespace, over libmnl.

Thin on purpose: which packet may go when is decided in :mod:`m2m.datapath.hold`. What shapes it:

- Only headers are copied here; the packet itself waits in the kernel.
- ``NFQA_CFG_F_GSO``: without it the kernel would cut a large packet into segments and fill in
  their checksums, only to hold it.
- A verdict re-injects before ``send`` returns: when :meth:`NfQueue.verdict` is back the packets
  have left the host, in the order of their ids.
- A flow's packets are seldom neighbours in a queue that several flows share. So its verdicts
  travel as many messages in one system call, not as one NFQNL_MSG_VERDICT_BATCH, which would let
  everything older go as well.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset
from posix.types cimport time_t

import os

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_DONTWAIT
    enum: SOL_SOCKET
    enum: SO_RCVBUFFORCE
    enum: SOCK_CLOEXEC
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    cdef struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    cdef struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    cdef struct timespec:
        time_t tv_sec
    int recvmmsg(int fd, mmsghdr *vec, unsigned int vlen, int flags, timespec *timeout)
    int setsockopt(int fd, int level, int name, const void *value, unsigned int length)

cdef extern from "<arpa/inet.h>" nogil:
    uint32_t htonl(uint32_t)
    uint32_t ntohl(uint32_t)
    uint16_t htons(uint16_t)

cdef extern from "<linux/netlink.h>" nogil:
    enum: NETLINK_NETFILTER
    enum: NETLINK_NO_ENOBUFS
    enum: NLM_F_REQUEST
    enum: NLM_F_ACK
    enum: NLMSG_ERROR
    cdef struct nlmsghdr:
        uint32_t nlmsg_len
        uint16_t nlmsg_type
        uint16_t nlmsg_flags
        uint32_t nlmsg_seq
    cdef struct nlmsgerr:
        int error
    cdef struct nlattr:
        pass

cdef extern from "<linux/netfilter.h>" nogil:
    enum: NF_ACCEPT
    enum: NF_DROP
    enum: NF_REPEAT

cdef extern from "<linux/netfilter/nfnetlink.h>" nogil:
    enum: NFNL_SUBSYS_QUEUE
    enum: NFNETLINK_V0
    cdef struct nfgenmsg:
        uint8_t nfgen_family
        uint8_t version
        uint16_t res_id

cdef extern from "<linux/netfilter/nfnetlink_queue.h>" nogil:
    enum:
        NFQNL_MSG_PACKET
        NFQNL_MSG_VERDICT
        NFQNL_MSG_CONFIG
        NFQNL_CFG_CMD_BIND
        NFQNL_COPY_PACKET
        NFQA_CFG_CMD
        NFQA_CFG_PARAMS
        NFQA_CFG_QUEUE_MAXLEN
        NFQA_CFG_MASK
        NFQA_CFG_FLAGS
        NFQA_CFG_F_GSO
        NFQA_CFG_F_MAX
        NFQA_PACKET_HDR
        NFQA_VERDICT_HDR
        NFQA_PAYLOAD
    cdef struct nfqnl_msg_config_cmd:
        uint8_t command
    cdef struct nfqnl_msg_config_params:
        uint32_t copy_range
        uint8_t copy_mode
    cdef struct nfqnl_msg_packet_hdr:
        uint32_t packet_id
    cdef struct nfqnl_msg_verdict_hdr:
        uint32_t verdict
        uint32_t id

cdef extern from "<libmnl/libmnl.h>" nogil:
    cdef struct mnl_socket:
        pass
    mnl_socket *mnl_socket_open2(int bus, int flags)
    int mnl_socket_bind(mnl_socket *nl, unsigned int groups, int pid)
    int mnl_socket_get_fd(const mnl_socket *nl)
    int mnl_socket_setsockopt(const mnl_socket *nl, int type, void *buf, unsigned int len)
    ssize_t mnl_socket_sendto(const mnl_socket *nl, const void *req, size_t size)
    ssize_t mnl_socket_recvfrom(const mnl_socket *nl, void *buf, size_t size)
    int mnl_socket_close(mnl_socket *nl)
    nlmsghdr *mnl_nlmsg_put_header(void *buf)
    void *mnl_nlmsg_put_extra_header(nlmsghdr *nlh, size_t size)
    void *mnl_nlmsg_get_payload(const nlmsghdr *nlh)
    void *mnl_nlmsg_get_payload_tail(const nlmsghdr *nlh)
    void *mnl_nlmsg_get_payload_offset(const nlmsghdr *nlh, size_t offset)
    bint mnl_nlmsg_ok(const nlmsghdr *nlh, int len)
    void mnl_attr_put(nlmsghdr *nlh, uint16_t type, size_t len, const void *data)
    bint mnl_attr_ok(const nlattr *attr, int len)
    nlattr *mnl_attr_next(const nlattr *attr)
    uint16_t mnl_attr_get_type(const nlattr *attr)
    uint16_t mnl_attr_get_payload_len(const nlattr *attr)
    void *mnl_attr_get_payload(const nlattr *attr)


cdef enum:
    PACKETS = 64  # per system call
    SLOT = 512  # octets of one message: its attributes and the copied headers
    COPY = 128  # octets of a packet copied: an IPv4 header with options, and the ports
    VERDICT_SIZE = 32  # netlink header, nfgenmsg, verdict attribute
    VERDICTS = 1024  # verdicts per system call
    FLOW = 40  # sizeof(struct m2m_tuple)

ACCEPT = NF_ACCEPT
DROP = NF_DROP
REPEAT = NF_REPEAT  # judge again by the rule that queued it
BATCH = PACKETS


cdef bint read_flow(const uint8_t *packet, size_t size, uint8_t *flow) noexcept nogil:
    """Write the packet's ``struct m2m_tuple``; false when it is no whole IPv4 TCP/UDP header."""
    if size < 20 or packet[0] >> 4 != 4:
        return False
    cdef size_t ports = (packet[0] & 15) * 4
    if ports < 20 or size < ports + 4:
        return False
    memset(flow, 0, FLOW)
    flow[10] = flow[11] = flow[26] = flow[27] = 0xFF
    memcpy(flow + 12, packet + 12, 4)
    memcpy(flow + 28, packet + 16, 4)
    memcpy(flow + 32, packet + ports, 4)
    flow[36] = packet[9]
    return True


cdef class NfQueue:
    """Queue *number*, bound; *limit* packets wait in it at most, later ones are dropped.

    Raises :exc:`OSError`: EPERM without CAP_NET_ADMIN, EBUSY when another process has the number.
    """

    cdef mnl_socket *_socket
    cdef readonly int number
    cdef readonly int fd
    cdef readonly unsigned long long gone
    cdef uint32_t _sequence
    cdef mmsghdr _messages[PACKETS]
    cdef iovec _places[PACKETS]
    cdef uint8_t _received[PACKETS * SLOT]
    cdef uint8_t _verdicts[VERDICTS * VERDICT_SIZE]
    cdef list _early

    def __cinit__(self, int number, int limit):
        cdef int on = 1
        cdef int room = (limit + PACKETS) * 2048  # what the kernel charges for a small message
        self._early = []
        self.number = number
        self._socket = mnl_socket_open2(NETLINK_NETFILTER, SOCK_CLOEXEC)
        if self._socket is NULL:
            raise OSError(errno, f"netfilter netlink socket: {os.strerror(errno)}")
        self.fd = mnl_socket_get_fd(self._socket)
        for i in range(PACKETS):
            self._places[i].iov_base = &self._received[i * SLOT]
            self._places[i].iov_len = SLOT
            self._messages[i].msg_hdr.msg_iov = &self._places[i]
            self._messages[i].msg_hdr.msg_iovlen = 1
        if mnl_socket_bind(self._socket, 0, 0) < 0:
            raise OSError(errno, f"netfilter netlink socket: {os.strerror(errno)}")
        setsockopt(self.fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room))
        # A message that finds no room is counted by the kernel in /proc (see hold.py); an error
        # at the next receive would say no more.
        mnl_socket_setsockopt(self._socket, NETLINK_NO_ENOBUFS, &on, sizeof(on))
        self._configure_bind()
        self._configure_queue(limit)

    def __dealloc__(self):
        self.close()

    def fileno(self):
        return self.fd

    def close(self):
        """Let the queue go; the kernel drops what still waits in it."""
        if self._socket is not NULL:
            mnl_socket_close(self._socket)
            self._socket = NULL
            self.fd = -1

    cdef nlmsghdr *_put(self, void *where, int kind, int flags) noexcept:
        cdef nlmsghdr *header = mnl_nlmsg_put_header(where)
        header.nlmsg_type = (NFNL_SUBSYS_QUEUE << 8) | kind
        header.nlmsg_flags = NLM_F_REQUEST | flags
        cdef nfgenmsg *family = <nfgenmsg *>mnl_nlmsg_put_extra_header(header, sizeof(nfgenmsg))
        family.nfgen_family = 0
        family.version = NFNETLINK_V0
        family.res_id = htons(self.number)
        return header

    cdef _configure_bind(self):
        cdef nlmsghdr *header = self._put(self._verdicts, NFQNL_MSG_CONFIG, NLM_F_ACK)
        cdef nfqnl_msg_config_cmd command
        memset(&command, 0, sizeof(command))
        command.command = NFQNL_CFG_CMD_BIND
        mnl_attr_put(header, NFQA_CFG_CMD, sizeof(command), &command)
        self._confirm(header)

    cdef _configure_queue(self, int limit):
        cdef nlmsghdr *header = self._put(self._verdicts, NFQNL_MSG_CONFIG, NLM_F_ACK)
        cdef nfqnl_msg_config_params params
        cdef uint32_t length = htonl(limit)
        cdef uint32_t flags = htonl(NFQA_CFG_F_GSO)
        cdef uint32_t mask = htonl(NFQA_CFG_F_MAX - 1)
        memset(&params, 0, sizeof(params))
        params.copy_range = htonl(COPY)
        params.copy_mode = NFQNL_COPY_PACKET
        mnl_attr_put(header, NFQA_CFG_FLAGS, 4, &flags)
        mnl_attr_put(header, NFQA_CFG_MASK, 4, &mask)
        mnl_attr_put(header, NFQA_CFG_QUEUE_MAXLEN, 4, &length)
        mnl_attr_put(header, NFQA_CFG_PARAMS, sizeof(params), &params)
        self._confirm(header)

    cdef _confirm(self, nlmsghdr *request):
        """Send a configuration and wait for the kernel's yes; it answers before send returns."""
        cdef nlmsghdr *answer = <nlmsghdr *>self._received
        cdef nlmsgerr *verdict
        cdef ssize_t size
        self._sequence += 1
        request.nlmsg_seq = self._sequence
        if mnl_socket_sendto(self._socket, request, request.nlmsg_len) < 0:
            raise OSError(errno, f"netfilter queue {self.number}: {os.strerror(errno)}")
        while True:
            size = mnl_socket_recvfrom(self._socket, answer, SLOT)
            if size < 0:
                raise OSError(errno, f"netfilter queue {self.number}: {os.strerror(errno)}")
            if answer.nlmsg_type != NLMSG_ERROR:
                self._take(answer, size, self._early)  # a rule fed this queue already
            elif answer.nlmsg_seq == self._sequence:
                break
        verdict = <nlmsgerr *>mnl_nlmsg_get_payload(answer)
        if verdict.error != 0:
            raise OSError(
                -verdict.error, f"netfilter queue {self.number}: {os.strerror(-verdict.error)}"
            )

    cdef int _take(self, nlmsghdr *message, ssize_t size, list found) except -1:
        """Append what *message* says of a packet to *found*."""
        cdef uint8_t flow[FLOW]
        cdef const uint8_t *packet = NULL
        cdef size_t length = 0
        cdef uint32_t number = 0
        cdef nlattr *attribute
        if not mnl_nlmsg_ok(message, <int>size):
            return 0
        if message.nlmsg_type == NLMSG_ERROR:
            self.gone += 1  # a verdict on a packet that the kernel had flushed
            return 0
        if message.nlmsg_type != ((NFNL_SUBSYS_QUEUE << 8) | NFQNL_MSG_PACKET):
            return 0
        attribute = <nlattr *>mnl_nlmsg_get_payload_offset(message, sizeof(nfgenmsg))
        while mnl_attr_ok(
            attribute, <int>(<char *>mnl_nlmsg_get_payload_tail(message) - <char *>attribute)
        ):
            if mnl_attr_get_type(attribute) == NFQA_PACKET_HDR:
                number = ntohl(
                    (<nfqnl_msg_packet_hdr *>mnl_attr_get_payload(attribute)).packet_id
                )
            elif mnl_attr_get_type(attribute) == NFQA_PAYLOAD:
                packet = <const uint8_t *>mnl_attr_get_payload(attribute)
                length = mnl_attr_get_payload_len(attribute)
            attribute = mnl_attr_next(attribute)
        if packet is not NULL and read_flow(packet, length, flow):
            found.append((number, flow[:FLOW]))
        else:
            found.append((number, b""))
        return 0

    def receive(self):
        """What has been queued since: a list of (packet id, packed flow), in the queue's order.

        Never waits; at most BATCH at a time, and fewer only when there are no more. The flow is
        empty when the packet is not IPv4 TCP or UDP.
        """
        cdef int count
        cdef int i
        cdef list found = self._early
        self._early = []
        while True:
            count = recvmmsg(self.fd, self._messages, PACKETS, MSG_DONTWAIT, NULL)
            if count >= 0 or errno != EINTR:
                break
        if count < 0:
            if errno != EAGAIN:
                raise OSError(errno, f"netfilter queue {self.number}: {os.strerror(errno)}")
            return found
        for i in range(count):
            self._take(
                <nlmsghdr *>self._places[i].iov_base, self._messages[i].msg_len, found
            )
        return found

    cdef int _send(self, size_t size) except -1:
        if mnl_socket_sendto(self._socket, self._verdicts, size) < 0:
            raise OSError(errno, f"netfilter queue {self.number}: {os.strerror(errno)}")
        return 0

    cdef void _put_verdict(self, size_t place, uint32_t packet, int verdict) noexcept:
        cdef nfqnl_msg_verdict_hdr decision
        cdef nlmsghdr *header = self._put(
            &self._verdicts[place * VERDICT_SIZE], NFQNL_MSG_VERDICT, 0
        )
        decision.verdict = htonl(verdict)
        decision.id = htonl(packet)
        mnl_attr_put(header, NFQA_VERDICT_HDR, sizeof(decision), &decision)

    def verdict(self, packets, int verdict):
        """Give these packets (ids) the verdict, in this order; they have left when it returns."""
        cdef size_t count = 0
        for packet in packets:
            self._put_verdict(count, packet, verdict)
            count += 1
            if count == VERDICTS:
                self._send(count * VERDICT_SIZE)
                count = 0
        if count:
            self._send(count * VERDICT_SIZE)
