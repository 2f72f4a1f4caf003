"""What moves of a conntrack entry, and its bytes.

    [kind, version, entry]      msgpack; the entry a map, of :class:`Entry`'s fields

Decoding takes nothing that this version would not have written: every number has its bounds, an
unknown field is an error, and the session must be the one that is to be moved.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta
from pyroute2.netlink.nfnetlink.nfctsocket import (
    IP_CT_TCP_FLAG_CLOSE_INIT,
    IP_CT_TCP_FLAG_SACK_PERM,
    IP_CT_TCP_FLAG_WINDOW_SCALE,
    IPS_ASSURED,
    IPS_CONFIRMED,
    IPS_FIXED_TIMEOUT,
    IPS_SEEN_REPLY,
)

from m2m.protocol.flow import Flow, Proto
from nf_adapters.state import BadState

KIND: Final = "conntrack"
VERSION: Final = 1
MAX_SIZE: Final = 512  # bytes of any entry's encoding, so that it fits one control message

STATUS: Final[int] = IPS_SEEN_REPLY | IPS_ASSURED | IPS_CONFIRMED | IPS_FIXED_TIMEOUT
"""The bits of an entry's status that move; all others are about the host it is on."""

TCP_FLAGS: Final[int] = (
    IP_CT_TCP_FLAG_WINDOW_SCALE | IP_CT_TCP_FLAG_SACK_PERM | IP_CT_TCP_FLAG_CLOSE_INIT
)
"""The flags of a TCP direction that move. DATA_UNACKNOWLEDGED and MAXACK_SET do not: they speak of
sequence numbers, which ctnetlink neither tells nor takes. An entry that claims to know the largest
ACK number, while that is 0, has the kernel refuse half of all RSTs."""

_LONGEST_NAME: Final = 15  # NF_CT_HELPER_NAME_LEN is 16

_U16: TypeAlias = Annotated[int, Meta(ge=0, le=0xFFFF)]
_U32: TypeAlias = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]


class TcpSide(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One direction of a TCP connection."""

    scale: Annotated[int, Meta(ge=0, le=14)]  # of its windows (RFC 7323)
    flags: Annotated[int, Meta(ge=0, le=TCP_FLAGS)]


class Tcp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A TCP connection. *original* is the direction of the entry's first packet."""

    state: Annotated[int, Meta(ge=1, le=9)]  # SYN_SENT to SYN_SENT2
    original: TcpSide
    reply: TcpSide


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A connection as conntrack knows it."""

    flow: Flow  # in the direction of its first packet
    status: Annotated[int, Meta(ge=0, le=STATUS)]
    timeout: Annotated[int, Meta(ge=1, le=0x7FFFFFFF)]  # s left
    tcp: Tcp | None = None
    mark: _U32 = 0
    labels: Annotated[bytes, Meta(max_length=16)] = b""  # little-endian; empty: none is set
    zone: _U16 = 0
    helper: Annotated[str, Meta(max_length=_LONGEST_NAME, pattern="^[!-~]*$")] = ""


class _Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    kind: str
    version: int
    entry: msgspec.Raw


_envelope = msgspec.msgpack.Decoder(_Envelope)
_entry = msgspec.msgpack.Decoder(Entry)


def encode(entry: Entry) -> bytes:
    """The bytes that :func:`decode` takes; never more than :data:`MAX_SIZE`."""
    return msgspec.msgpack.encode(
        _Envelope(KIND, VERSION, msgspec.Raw(msgspec.msgpack.encode(entry)))
    )


def decode(state: bytes, flow: Flow) -> Entry:
    """The entry of the connection *flow*. Raises :exc:`BadState`."""
    try:
        if len(state) > MAX_SIZE:
            raise ValueError(f"{len(state)} bytes, and more than {MAX_SIZE} are never exported")
        envelope = _envelope.decode(state)
        if envelope.kind != KIND:
            raise ValueError(f"it is of kind {envelope.kind!r}, and this function's is {KIND!r}")
        if envelope.version != VERSION:
            raise ValueError(
                f"it is of version {envelope.version}, and only version {VERSION} is known here;"
                " run the same release on both hosts"
            )
        entry = _entry.decode(envelope.entry)
        _check(entry, flow)
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadState(f"the state of {flow} cannot be imported: {error}") from None
    return entry


def _check(entry: Entry, flow: Flow) -> None:
    """What the types do not say."""
    if entry.flow not in (flow, flow.reverse()):
        raise ValueError("it is of another session")
    if (entry.tcp is not None) != (flow.proto == Proto.TCP):
        raise ValueError("a TCP state belongs to TCP, and to nothing else")
    sides = (entry.tcp.original, entry.tcp.reply) if entry.tcp is not None else ()
    bits = [("status", entry.status, STATUS), *(("flags", s.flags, TCP_FLAGS) for s in sides)]
    for name, value, known in bits:
        if value & ~known:
            raise ValueError(f"{name} {value:#x} has bits that are never moved")
    if not entry.status & IPS_CONFIRMED:
        raise ValueError(f"status {entry.status:#x} is that of an entry in the making")
