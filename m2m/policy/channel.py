"""Framed TCP between agents, policy server and ``m2m-policy load``, authenticated both ways.

Each side opens with a greeting, then proves that it holds the domain key, then sends frames::

    greeting   "M2P"  version (1 byte)  nonce (32 bytes, random)
    frame      length of the payload (u32, network order)  payload  MAC (16 bytes)

A direction's key is derived from the domain key, both nonces and the sending side, so frames of
another connection or of the other direction do not fit. The MAC covers the frame's number (u64,
from 0, never sent), its length and its payload: a frame that is changed, repeated, dropped or
swapped breaks the channel. The first frame of a side, with an empty payload, is its proof; until
it has come no longer frame is taken, so a stranger cannot make anybody buffer. Frames are not
secret: a policy can be read on the way, not changed.

:class:`Codec` does this without I/O; :class:`Channel` is a Trio stream around it.
"""

from __future__ import annotations

import secrets
import socket
import struct
from enum import Enum, StrEnum
from typing import Any, Generic, TypeVar

import msgspec
import trio
import trio.abc

from m2m.auth import MAC_SIZE, DomainKey
from m2m.errors import M2MError
from m2m.protocol.flow import Address, parse_address

__all__ = ["MAX_PAYLOAD", "Channel", "ChannelError", "Codec", "Fault", "Side", "errors_in"]

MAX_PAYLOAD = 16 << 20
"""Bytes of the largest message: some 80 000 rules."""

HANDSHAKE_TIMEOUT = 5.0
"""Seconds within which both sides have proved that they hold the key."""

_MAGIC = b"M2P\x01"
_NONCE = 32
_GREETING = len(_MAGIC) + _NONCE
_LENGTH = struct.Struct("!I")
_NUMBER = struct.Struct("!Q")
_READ = 65536

Message = TypeVar("Message")


class Fault(StrEnum):
    """Why a channel was given up (the names of its counters)."""

    NOT_M2M = "not-m2m"
    VERSION = "version"
    NO_PROOF = "no-proof"
    BAD_MAC = "bad-mac"
    OVERSIZE = "oversize"
    TRUNCATED = "truncated"
    MALFORMED = "malformed"
    TIMEOUT = "timeout"
    LOST = "lost"


class ChannelError(M2MError):
    """The other side broke the channel's rules, or does not hold the domain key."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


def errors_in(group: BaseExceptionGroup[ChannelError]) -> list[ChannelError]:
    """The errors that a nursery has wrapped, however deep."""
    found: list[ChannelError] = []
    for error in group.exceptions:
        found += errors_in(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


class Side(Enum):
    """Who connected and who listened."""

    CLIENT = b"client"
    SERVER = b"server"

    @property
    def other(self) -> Side:
        """The one at the other end."""
        return Side.SERVER if self is Side.CLIENT else Side.CLIENT


class Codec:
    """One end of a channel, without I/O.

    Send what :meth:`take` gives and :meth:`feed` what arrives until :meth:`shake_hands` is done;
    then :meth:`seal` payloads, and ask :meth:`next_payload` until it has none. After a
    :exc:`ChannelError` the codec is of no more use.
    """

    def __init__(self, key: DomainKey, side: Side, *, limit: int = MAX_PAYLOAD) -> None:
        self._domain_key = key
        self._side = side
        self._limit = limit
        self._nonce = secrets.token_bytes(_NONCE)
        self._out = _MAGIC + self._nonce
        self._in = bytearray()
        self._send_key: DomainKey | None = None
        self._receive_key: DomainKey | None = None
        self._sent = 0
        self._received = 0

    @property
    def ready(self) -> bool:
        """Whether the other side has proved that it holds the domain key."""
        return self._received > 0

    def take(self) -> bytes:
        """What is to be sent now for the handshake's sake; empty when nothing is."""
        out, self._out = self._out, b""
        return out

    def feed(self, data: bytes) -> None:
        """Bytes have arrived."""
        self._in += data

    def seal(self, payload: bytes) -> bytes:
        """The frame to send for *payload*. Raises :exc:`ChannelError` when it is too long."""
        assert self._send_key is not None, "nothing can be sent before the other side's greeting"
        if len(payload) > self._limit:
            raise ChannelError(
                Fault.OVERSIZE,
                f"a message of {len(payload)} bytes is longer than the {self._limit} that a "
                "frame may have: split the policy file's rules over fewer predicates",
            )
        length = _LENGTH.pack(len(payload))
        number = _NUMBER.pack(self._sent)
        self._sent += 1
        return length + payload + self._send_key.mac(number + length + payload)

    def next_payload(self) -> bytes | None:
        """The next whole payload that has arrived; None when more bytes are needed.

        Raises :exc:`ChannelError` when what arrived is not what the other side sent.
        """
        return self._open_frame(self._limit) if self.shake_hands() else None

    def shake_hands(self) -> bool:
        """Take the greeting and the proof from what has arrived; whether both are there.

        Raises :exc:`ChannelError` as :meth:`next_payload` does.
        """
        if self._receive_key is None and not self._greet():
            return False
        return self.ready or self._open_frame(0) is not None

    def end(self) -> None:
        """The other side has closed. Raises :exc:`ChannelError` unless between two frames."""
        if not self.ready:
            raise ChannelError(
                Fault.NO_PROOF,
                "the other side closed before it proved that it holds the domain key: is the key "
                "file the same on both hosts?",
            )
        if self._in:
            raise ChannelError(
                Fault.TRUNCATED, f"the channel ended within a frame, after {len(self._in)} bytes"
            )

    def _greet(self) -> bool:
        head = bytes(self._in[: len(_MAGIC)])
        if head[:3] != _MAGIC[: len(head[:3])]:
            raise ChannelError(
                Fault.NOT_M2M,
                f"the other side does not speak the policy channel (it began with {head!r}): "
                "check the address and the port",
            )
        if len(head) == len(_MAGIC) and head != _MAGIC:
            raise ChannelError(
                Fault.VERSION,
                f"the other side speaks version {head[3]} of the policy channel, this one "
                f"version {_MAGIC[3]}: install the same M2M on both hosts",
            )
        if len(self._in) < _GREETING:
            return False
        other = bytes(self._in[len(_MAGIC) : _GREETING])
        del self._in[:_GREETING]
        client, server = (self._nonce, other) if self._side is Side.CLIENT else (other, self._nonce)
        self._send_key, self._receive_key = (
            self._domain_key.derive(b"policy channel", client, server, side.value)
            for side in (self._side, self._side.other)
        )
        self._out += self.seal(b"")
        return True

    def _open_frame(self, limit: int) -> bytes | None:
        if len(self._in) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._in)
        if length > limit:
            raise ChannelError(
                Fault.OVERSIZE if self.ready else Fault.NO_PROOF,
                f"the other side announces a frame of {length} bytes where {limit} are allowed",
            )
        end = _LENGTH.size + length
        if len(self._in) < end + MAC_SIZE:
            return None
        framed = bytes(self._in[:end])
        assert self._receive_key is not None
        if not self._receive_key.verify(
            _NUMBER.pack(self._received) + framed, bytes(self._in[end : end + MAC_SIZE])
        ):
            raise ChannelError(
                Fault.BAD_MAC,
                "a frame is not authentic: "
                + ("it was changed, repeated or lost on the way" if self.ready else
                   "the two hosts do not have the same key file"),
            )  # fmt: skip
        del self._in[: end + MAC_SIZE]
        self._received += 1
        return framed[_LENGTH.size :]


class Channel(Generic[Message]):
    """A Trio stream that carries msgspec structs of the types in *receives*."""

    def __init__(
        self, stream: trio.abc.Stream, codec: Codec, decoder: msgspec.msgpack.Decoder[Message]
    ) -> None:
        self._stream = stream
        self._codec = codec
        self._decoder = decoder
        self._sending = trio.Lock()
        self.local = _local_address(stream)
        """This host's address of the connection; None if it is not one between hosts."""

    @classmethod
    async def open(
        cls,
        stream: trio.abc.Stream,
        key: DomainKey,
        side: Side,
        receives: Any,
        *,
        limit: int = MAX_PAYLOAD,
        timeout: float = HANDSHAKE_TIMEOUT,  # noqa: ASYNC109 - a failure of its own, with a reason
    ) -> Channel[Any]:
        """Shake hands over *stream*; *receives* is the type (or union) that will come.

        Raises :exc:`ChannelError`, the stream being closed then, when the other side does not
        hold the key, is no M2M at all, or takes longer than *timeout* seconds.
        """
        codec = Codec(key, side, limit=limit)
        channel = cls(stream, codec, msgspec.msgpack.Decoder(receives))
        if isinstance(stream, trio.SocketStream):
            _notice_dead_peers(stream)
        try:
            with trio.move_on_after(timeout) as scope:
                await channel._shake_hands()
            if scope.cancelled_caught:
                raise ChannelError(
                    Fault.TIMEOUT,
                    f"the other side did not prove within {timeout:g} s that it holds the domain "
                    "key",
                )
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return channel

    async def send(self, message: msgspec.Struct) -> None:
        """Send *message*. Raises :exc:`ChannelError` when it is too long or the link is lost.

        Cancelled halfway, the channel can only be closed.
        """
        payload = msgspec.msgpack.encode(message)
        async with self._sending:  # frames are numbered in the order they are sent
            await self._send_all(self._codec.seal(payload))

    async def receive(self) -> Message | None:
        """The next message; None when the other side has closed in good order.

        Raises :exc:`ChannelError` when what comes is not authentic, too long, cut short or
        none of the expected types.
        """
        while (payload := self._codec.next_payload()) is None:
            data = await self._receive_some()
            if not data:
                self._codec.end()
                return None
            self._codec.feed(data)
        try:
            return self._decoder.decode(payload)
        except msgspec.DecodeError as error:
            raise ChannelError(
                Fault.MALFORMED,
                f"an authentic message cannot be understood ({error}): install the same M2M on "
                "both hosts",
            ) from error

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()

    async def __aenter__(self) -> Channel[Message]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await trio.aclose_forcefully(self._stream)

    async def _shake_hands(self) -> None:
        await self._send_all(self._codec.take())
        while not self._codec.shake_hands():
            if proof := self._codec.take():
                await self._send_all(proof)
                continue
            data = await self._receive_some()
            if not data:
                self._codec.end()
            self._codec.feed(data)
        await self._send_all(self._codec.take())

    async def _send_all(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self._lost(error) from error

    async def _receive_some(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(_READ))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> ChannelError:
        reason = error.__cause__ or error
        if not self._codec.ready:
            return ChannelError(
                Fault.NO_PROOF,
                f"the connection was lost before the other side proved that it holds the domain "
                f"key ({reason}): is the key file the same on both hosts?",
            )
        return ChannelError(Fault.LOST, f"the connection was lost: {reason}")


def _notice_dead_peers(stream: trio.SocketStream) -> None:
    """Have the kernel give a silent peer up within some 15 s, whether we send or wait."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15_000)


def _local_address(stream: trio.abc.Stream) -> Address | None:
    if not isinstance(stream, trio.SocketStream):
        return None
    name = stream.socket.getsockname()
    return parse_address(name[0]) if stream.socket.family == socket.AF_INET else None
