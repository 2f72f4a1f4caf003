"""Live TCP connections as data: taken out of one host's kernel, and made again in another's.

In repair mode (Linux, ``TCP_REPAIR``; the calling process needs CAP_NET_ADMIN) a socket tells and
takes what TCP itself would find out: sequence numbers, both queues, options, window. Closing it is
not told to the peer. What comes to it is dropped before TCP sees it, since nothing may be
acknowledged that is not in the image. Once the socket is gone the host's kernel would refuse what
comes: to have packets go nowhere, or elsewhere, is left to whoever moves the connection.

    freeze(sock)            # the process reads and writes no more
    ...                     # from here on no packet comes to the host, or leaves it
    image = take_out(sock)  # closed, in silence
    ...                     # on another host, which has the connection's own address
    sock = put_in(image)
    ...                     # packets come here
    thaw(sock, image)
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
import termios
from typing import Final

import msgspec

__all__ = ["Image", "NotMovable", "freeze", "put_in", "take_out", "thaw"]

# linux/tcp.h
_REPAIR, _QUEUE, _QUEUE_SEQ, _OPTIONS, _TIMESTAMP, _WINDOW = 19, 20, 21, 22, 24, 29
_OFF, _ON = 0, 1
_NO_QUEUE, _RECEIVED, _SENT = 0, 1, 2
_OPTION = struct.Struct("=II")  # struct tcp_repair_opt: code, value
_MSS, _SCALES, _SACK, _TIMESTAMPS = 2, 3, 4, 8  # TCPOPT_*
_WINDOW_SIZE: Final = 20  # struct tcp_repair_window
_INFO = struct.Struct("=BBBBBBB")  # the beginning of struct tcp_info
_ESTABLISHED: Final = 1
_HAS_TIMESTAMPS, _HAS_SACK, _HAS_SCALES = 1, 2, 4  # TCPI_OPT_*
_SNDBUFFORCE, _RCVBUFFORCE = 32, 33  # SO_*
_PLAIN = {_SNDBUFFORCE: socket.SO_SNDBUF, _RCVBUFFORCE: socket.SO_RCVBUF}
_ATTACH_FILTER, _DETACH_FILTER = 26, 27  # SO_*
_FPROG = struct.Struct("@HP")  # struct sock_fprog: length, address of the program
_FILTER = struct.Struct("=HBBI")  # struct sock_filter
_RET: Final = 0x06  # BPF_RET | BPF_K: keep as many bytes, none
_UNSENT: Final = 0x894B  # SIOCOUTQNSD
_PIECE: Final = 1 << 16  # bytes put into a queue at once


class NotMovable(Exception):
    """The connection is not in a state that can be moved."""


class Queue(msgspec.Struct, frozen=True):
    """Bytes that wait in one direction, and the sequence number behind the last one."""

    seq: int
    data: bytes


class Image(msgspec.Struct, frozen=True):
    """A connection, as :func:`put_in` makes it again."""

    local: tuple[str, int]
    remote: tuple[str, int]
    mss: int
    scales: tuple[int, int] | None  # of windows, what is sent and what comes; None: not scaled
    sack: bool
    timestamp: int | None  # None: without timestamps
    window: bytes  # struct tcp_repair_window
    received: Queue  # not read yet
    sent: Queue  # not acknowledged yet
    unsent: bytes


def freeze(sock: socket.socket) -> None:
    """Have the connection stay as it is, deaf.

    Raises :exc:`NotMovable` when it is not established in both directions.
    """
    state = _INFO.unpack_from(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size))[0]
    if state != _ESTABLISHED:
        raise NotMovable(
            f"{sock} is in TCP state {state}; only connections that are open in both directions "
            "(state 1) can be moved"
        )
    program = ctypes.create_string_buffer(_FILTER.pack(_RET, 0, 0, 0))
    sock.setsockopt(
        socket.SOL_SOCKET, _ATTACH_FILTER, _FPROG.pack(1, ctypes.addressof(program))
    )  # fmt: skip
    _set(sock, _REPAIR, _ON)


def thaw(sock: socket.socket, image: Image | None = None) -> None:
    """Go on: here after all, or, with the *image* that it was made of, elsewhere."""
    if image is None:
        sock.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)
    _set(sock, _REPAIR, _OFF)  # asks the peer how far it is
    if image is not None:
        sock.setblocking(True)
        sock.sendall(image.unsent)  # the buffer has room for it


def take_out(sock: socket.socket) -> Image:
    """Everything about a frozen connection, which is closed without a word."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    _, _, _, _, _, options, scales = _INFO.unpack(info)
    sent = _read_queue(sock, _SENT, _queued(sock, termios.TIOCOUTQ))
    flying = len(sent.data) - _queued(sock, _UNSENT)
    image = Image(
        local=sock.getsockname(),
        remote=sock.getpeername(),
        mss=sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG),
        scales=(scales & 15, scales >> 4) if options & _HAS_SCALES else None,
        sack=bool(options & _HAS_SACK),
        timestamp=_get(sock, _TIMESTAMP) if options & _HAS_TIMESTAMPS else None,
        window=sock.getsockopt(socket.IPPROTO_TCP, _WINDOW, _WINDOW_SIZE),
        received=_read_queue(sock, _RECEIVED, _queued(sock, termios.FIONREAD)),
        sent=Queue(sent.seq - len(sent.data) + flying, sent.data[:flying]),
        unsent=sent.data[flying:],
    )
    sock.close()
    return image


def put_in(image: Image) -> socket.socket:
    """The connection, frozen, on a host that has its local address.

    Raises :exc:`OSError` when the kernel refuses, with nothing left of it.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        _put_in(sock, image)
    except BaseException:
        # Still in repair mode: the peer hears nothing of it, so it can be tried again.
        sock.close()
        raise
    return sock


def _put_in(sock: socket.socket, image: Image) -> None:
    _set(sock, _REPAIR, _ON)
    # Room for all of it at once, whatever the limits of this host are.
    for option, size in (
        (_RCVBUFFORCE, len(image.received.data)),
        (_SNDBUFFORCE, len(image.sent.data) + len(image.unsent)),
    ):
        if size > sock.getsockopt(socket.SOL_SOCKET, _PLAIN[option]) // 2:
            sock.setsockopt(socket.SOL_SOCKET, option, 2 * size)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(image.local)
    for number, queue in ((_RECEIVED, image.received), (_SENT, image.sent)):
        _set(sock, _QUEUE, number)
        _set_seq(sock, queue.seq - len(queue.data))
    sock.connect(image.remote)
    options = [(_MSS, image.mss)]
    if image.scales is not None:
        options.append((_SCALES, image.scales[0] | image.scales[1] << 16))
    if image.sack:
        options.append((_SACK, 0))
    if image.timestamp is not None:
        options.append((_TIMESTAMPS, 0))
    packed = b"".join(_OPTION.pack(*option) for option in options)
    sock.setsockopt(socket.IPPROTO_TCP, _OPTIONS, packed)
    if image.timestamp is not None:
        sock.setsockopt(socket.IPPROTO_TCP, _TIMESTAMP, struct.pack("=I", image.timestamp))
    _fill(sock, _RECEIVED, image.received.data)
    _fill(sock, _SENT, image.sent.data)
    _set(sock, _QUEUE, _NO_QUEUE)
    sock.setsockopt(socket.IPPROTO_TCP, _WINDOW, image.window)


def _read_queue(sock: socket.socket, number: int, size: int) -> Queue:
    _set(sock, _QUEUE, number)
    data = sock.recv(size, socket.MSG_PEEK | socket.MSG_DONTWAIT) if size else b""
    seq = _get(sock, _QUEUE_SEQ)
    if len(data) != size:
        raise NotMovable(f"{sock} has {len(data)} bytes in its queue instead of {size}")
    return Queue(seq, data)


def _fill(sock: socket.socket, number: int, data: bytes) -> None:
    """Put *data* into a queue, which takes as much at a time as it likes."""
    _set(sock, _QUEUE, number)
    rest = memoryview(data)
    piece = _PIECE
    while rest:
        try:
            rest = rest[sock.send(rest[:piece]) :]
        except OSError as error:
            if error.errno != errno.ENOMEM or piece < 2:
                raise
            piece //= 2


def _queued(sock: socket.socket, request: int) -> int:
    (size,) = struct.unpack("=i", fcntl.ioctl(sock, request, bytes(4)))
    return int(size)


def _set(sock: socket.socket, option: int, value: int) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _set_seq(sock: socket.socket, seq: int) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, _QUEUE_SEQ, struct.pack("=I", seq & 0xFFFFFFFF))


def _get(sock: socket.socket, option: int) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, option) & 0xFFFFFFFF
