"""The two sockets of a proxy that is about to leave, looked at and ended (``docs/splicing.md``).

They are another process's, which waits meanwhile. What is asked of them leaves no trace in their
connections, and they end unheard.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct

from m2m.datapath.tcp_sockets import State, TcpSocket
from m2m.errors import M2MError
from m2m.protocol.flow import Flow, Proto
from m2m.protocol.splice import NotSpliceable, Socket, Splice, splice_of

__all__ = [
    "LITTLE", "Ends", "Kept", "NoConnection", "ask_peer", "clock", "end_unheard", "flow_of",
    "say_now", "splice_ends",
]  # fmt: skip

_ORIGINAL_DST = 80  # SO_ORIGINAL_DST, linux/netfilter_ipv4.h
_ORIGINAL = struct.Struct("!2xH4s8x")
_NETNS_COOKIE = 71  # SO_NETNS_COOKIE
_ULP, _REPAIR, _TIMESTAMP = 31, 19, 24  # linux/tcp.h
LITTLE = 1 << 17
"""Octets that wait in a socket at most, about, before it is left."""
_OFF_QUIETLY = -1  # TCP_REPAIR_OFF_NO_WP
_STAMP_SIZE = 12  # octets of timestamps in each header, which a socket's own MSS leaves out
_AHEAD = 3  # ms: of an ACK that a socket may still say before it ends
_RESTING = frozenset(
    {
        (State.ESTABLISHED, State.ESTABLISHED),
        (State.CLOSE_WAIT, State.FIN_WAIT2),  # the client has ended, and the server knows
        (State.FIN_WAIT2, State.CLOSE_WAIT),
    }
)
_UNDER_WAY = frozenset({State.ESTABLISHED, State.CLOSE_WAIT, State.FIN_WAIT1, State.FIN_WAIT2})


class NoConnection(M2MError):
    """It is no TCP connection that can be spliced; the message says why."""


class Ends:
    """What is known of both, towards the client and towards the server."""

    def __init__(self, left: TcpSocket, right: TcpSocket) -> None:
        self.left = left
        self.right = right

    @property
    def over(self) -> bool:
        """Whether one of them has as good as ended."""
        return not {self.left.state, self.right.state} <= _UNDER_WAY

    @property
    def unread(self) -> bool:
        """Whether there is something that the proxy has not read."""
        return any(end.receives != end.read for end in (self.left, self.right))

    @property
    def backlog(self) -> int:
        """Octets that wait in the two, for the proxy or for an acknowledgement."""
        return sum(
            (end.receives - end.read & 0xFFFFFFFF) + (end.written - end.acked & 0xFFFFFFFF)
            for end in (self.left, self.right)
        )

    @property
    def at_rest(self) -> bool:
        """Whether nothing is under way."""
        states = self.left.state, self.right.state
        return states in _RESTING and self.left.at_rest and self.right.at_rest

    def check(self) -> None:
        """Raise :exc:`~m2m.protocol.splice.NotSpliceable` for what no splice can make up for."""
        if self.left.urgent or self.right.urgent:
            raise NotSpliceable("there is urgent data")
        for end, other, who in (
            (self.left, self.right, "client"),
            (self.right, self.left, "server"),
        ):
            most = end.mss + _STAMP_SIZE * end.stamps
            if most > other.peer_mss:
                raise NotSpliceable(
                    f"the {who} may send {most} octets in a packet, and the other end takes "
                    f"{other.peer_mss}"
                )


def flow_of(sock: socket.socket, *, meant: bool = False) -> Flow:
    """As *sock* sends it; *meant*: as its client does, to the destination that it meant.

    Raises :exc:`NoConnection`.
    """
    try:
        protocol = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or protocol != socket.IPPROTO_TCP:
            raise NoConnection("it is not a socket of TCP")
        if _cookie(sock) != _own_cookie():
            raise NoConnection("it is a socket of another network namespace")
        if sock.getsockopt(socket.IPPROTO_TCP, _ULP, 16).rstrip(b"\0"):
            raise NoConnection("another protocol is on top of TCP in the kernel")
        here, peer = sock.getsockname()[:2], sock.getpeername()[:2]
        if not meant:
            return Flow.of(Proto.TCP, *here, *peer)
        try:
            port, address = _ORIGINAL.unpack(sock.getsockopt(socket.SOL_IP, _ORIGINAL_DST, 16))
            here = socket.inet_ntoa(address), port
        except OSError:
            pass  # nothing has led it elsewhere
        return Flow.of(Proto.TCP, *peer, *here)
    except OSError as error:
        raise NoConnection(f"it is not connected: {error.strerror}") from error


def splice_ends(ends: Ends, left: socket.socket, right: socket.socket) -> Splice:
    """What makes one connection of both, which are at rest. Raises :exc:`NotSpliceable`."""
    ends.check()
    return splice_of(_as_it_rests(ends.left, left), _as_it_rests(ends.right, right))


def _as_it_rests(end: TcpSocket, sock: socket.socket) -> Socket:
    return Socket(
        end.sends, end.receives, (clock(sock) + _AHEAD) & 0xFFFFFFFF if end.stamps else None,
        end.peer_clock if end.stamps else None, end.scale, end.peer_scale, end.peer_window,
        end.sack, end.ecn,
    )  # fmt: skip


def clock(sock: socket.socket) -> int:
    """TSval of what *sock* would send now."""
    return sock.getsockopt(socket.IPPROTO_TCP, _TIMESTAMP) & 0xFFFFFFFF


class Kept:
    """Meanwhile little waits in a socket: its peer is shown a small window, and its program finds
    no room to write much."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._before = {
            option: sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_WINDOW_CLAMP, socket.TCP_NOTSENT_LOWAT)
        }
        for option in self._before:
            sock.setsockopt(socket.IPPROTO_TCP, option, LITTLE)

    def no_longer(self) -> None:
        """It is as before."""
        for option, value in self._before.items():
            self._sock.setsockopt(socket.IPPROTO_TCP, option, value)


def say_now(sock: socket.socket) -> None:
    """What it has kept back of acknowledgements it sends."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def ask_peer(sock: socket.socket) -> None:
    """Have the peer tell at once what it has got, which it may have kept back for a while: when
    repair mode is over, the kernel sends it what it has had already."""
    for mode in (1, 0):
        sock.setsockopt(socket.IPPROTO_TCP, _REPAIR, mode)


def end_unheard(sock: socket.socket) -> None:
    """The connection is no more, and its peer is not told."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, _REPAIR, 1)
        _disconnect(sock.fileno())
        sock.setsockopt(socket.IPPROTO_TCP, _REPAIR, _OFF_QUIETLY)
    except OSError:
        pass  # it has ended by itself, and what it says is not heard any more


def _disconnect(fileno: int) -> None:
    nowhere = struct.pack("=H14x", socket.AF_UNSPEC)
    if _libc.connect(fileno, nowhere, len(nowhere)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_libc = ctypes.CDLL(None, use_errno=True)


def _cookie(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.SOL_SOCKET, _NETNS_COOKIE, 8)


def _own_cookie() -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
        return _cookie(own)
