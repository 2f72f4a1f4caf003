"""Control messages between agents over UDP: a thin shell round the association.

One socket serves all peers. A wakeup handles what has come, up to a bound, and each message goes
straight to the agent from the receive loop: set-up latency is counted in task switches. Nothing
is resent here; the protocol does that, and a datagram that cannot be sent counts as lost.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeAlias, get_args

import structlog
import trio

from m2m.errors import ConfigError
from m2m.protocol.association import Association
from m2m.protocol.flow import V4_PREFIX, Address, Flow, format_address
from m2m.protocol.rebind import Rebind, Rebound
from m2m.protocol.wire import MAX_DATAGRAM, Message, PathReq, WireError

__all__ = ["Receive", "Transport"]

Receive: TypeAlias = Callable[[Address, Message, Address | None, bytes], Awaitable[None]]
"""Takes a message's sender, the message, for a question our address that it was sent to, and the
sender's device."""

_log = structlog.get_logger()

_BURST = 64  # datagrams handled before other tasks get their turn
_QUEUE_BYTES = 4 << 20  # of the socket: a thousand chains at once
_NEIGHBOURS = 1024  # of which is remembered how to send to them
_CS6 = 48 << 2  # network control (RFC 4594 3.2)
_INTERACTIVE = 6  # TC_PRIO_INTERACTIVE
_SO_RCVBUFFORCE = 33
_IP_PKTINFO = 8
_PKTINFO = struct.Struct("=i4s4s")  # interface, local address, destination in the header
_PKTINFO_SPACE = socket.CMSG_SPACE(_PKTINFO.size)
_NAMES = {kind: kind.__name__.lower() for kind in get_args(Message)}


class Transport:
    """The agent's UDP socket."""

    def __init__(
        self,
        association: Association,
        port: int,
        is_here: Callable[[Address], bool],
        source_to: Callable[[Address], Address | None] = lambda _: None,
    ) -> None:
        """Bind to *port* on all addresses. *is_here*: whether an interface has an address;
        *source_to*: from which one to send to a host, None for the route's own choice.

        Raises :exc:`~m2m.errors.ConfigError`.
        """
        self.association = association
        self._is_here = is_here
        self._source_to = source_to
        self.port = port
        self._sent: Counter[type[Message]] = Counter()
        self._received: Counter[type[Message]] = Counter()
        self._unsent: Counter[str] = Counter()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        with contextlib.suppress(PermissionError):  # only bursts need it
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _QUEUE_BYTES)
        self._socket.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        # Sessions wait for these messages: they go before what has queued up, here (second) and
        # where the network looks at it (first). In this order, since the first sets the second.
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _CS6)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _INTERACTIVE)
        try:
            self._socket.bind(("", port))
        except OSError as error:
            self._socket.close()
            raise ConfigError(
                f"cannot listen on UDP port {port}: {error.strerror}; is another agent running "
                "here? Give one of them another --port"
            ) from None

    def counters(self) -> dict[str, int]:
        """Messages sent and received by type, and datagrams not sent or refused by reason."""
        refused = self.association.rejected
        return {
            **{f"sent.{_NAMES[kind]}": count for kind, count in self._sent.items()},
            **{f"received.{_NAMES[kind]}": count for kind, count in self._received.items()},
            **{f"unsent.{name.lower()}": count for name, count in self._unsent.items()},
            **{f"dropped.{reason.value}": count for reason, count in refused.items()},
            "challenged": self.association.challenged,
        }

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def send(self, peer: Address, message: Message, source: Address | None = None) -> None:
        """Send *message* to the agent at *peer*, now or never.

        A message about a subsession leaves from our end of it, the address by which the peer
        knows us, whatever the route prefers; others from *source*, if given. An address that we
        have moved away from is left to who has it now.
        """
        leg: Flow | None = getattr(message, "subsession", None)
        if leg is not None:
            source = leg.src if leg.dst == peer else leg.dst
        elif isinstance(message, Rebind):
            source = message.new
        elif isinstance(message, Rebound):
            source = message.hop
        if source is None or not self._is_here(source):
            source = self._source_to(peer)
        self._sent[type(message)] += 1
        self._send(peer, self.association.seal(peer, message), source)

    async def run(self, receive: Receive) -> None:
        """Hand every authentic, new message to *receive*, one after the other."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            for _ in range(_BURST):
                try:
                    datagram, extra, _, (host, port) = self._socket.recvmsg(
                        MAX_DATAGRAM + 1, _PKTINFO_SPACE
                    )
                except BlockingIOError:
                    break
                peer = V4_PREFIX + socket.inet_aton(host)
                try:
                    message, reply, device = self.association.open(peer, datagram)
                except WireError as error:
                    _log.debug("datagram refused", peer=host, reason=error.reason, why=str(error))
                    continue
                if reply is not None:
                    self._send(peer, reply, _local_address(extra), port)
                if message is not None:
                    self._received[type(message)] += 1
                    at = _local_address(extra) if isinstance(message, PathReq) else None
                    await receive(peer, message, at, device)

    def _send(
        self, peer: Address, datagram: bytes, source: Address | None, port: int | None = None
    ) -> None:
        to = (_text(peer), port or self.port)
        try:
            self._socket.sendmsg((datagram,), _leaving_from(source), 0, to)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "unknown")
            self._unsent[name] += 1
            _log.debug("datagram not sent", peer=to[0], error=name)


# The same few neighbours again and again, on the way of every set-up.
_text = functools.lru_cache(_NEIGHBOURS)(format_address)


@functools.lru_cache(_NEIGHBOURS)
def _leaving_from(source: Address | None) -> tuple[tuple[int, int, bytes], ...]:
    """What tells sendmsg from which of our addresses a datagram leaves."""
    if source is None:
        return ()
    return ((socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO.pack(0, source[12:], b"\0\0\0\0")),)


def _local_address(extra: list[tuple[int, int, bytes]]) -> Address | None:
    for level, kind, data in extra:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            address: bytes = _PKTINFO.unpack_from(data)[1]
            return V4_PREFIX + address
    return None
