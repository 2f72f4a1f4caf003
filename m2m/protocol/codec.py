"""What all control messages are made of: bounds, errors, and the parts of a payload.

:mod:`m2m.protocol.wire` has the header and the messages that set sessions up,
:mod:`m2m.protocol.update` those that change a chain. Decoding takes exactly what the layout
allows and nothing beside it: whatever is wrong is a :exc:`WireError` whose reason is counted.
"""

from __future__ import annotations

import struct
from enum import IntEnum, StrEnum
from typing import Final

import msgspec

from m2m.errors import M2MError
from m2m.protocol.flow import Address, Flow, Proto
from m2m.protocol.translation import Position

__all__ = [
    "FLOW_SIZE", "HEADER_SIZE", "KINDS", "MAC_SIZE", "MAX_CHAIN", "MAX_DATAGRAM", "MAX_NAME",
    "MAX_REPORT", "MAX_TEXT", "MIN_MTU", "NO_ADDRESS", "Cause", "Hop", "Malformed", "WireError",
    "at_least", "bounded", "check_mtu", "check_name", "clip", "exactly", "flow_in", "pack_hop",
    "text_in", "unpack_hop",
]  # fmt: skip

HEADER_SIZE: Final = 72
MAC_SIZE: Final = 16
MAX_CHAIN: Final = 16  # hops in a SYN, the server included
MAX_NAME: Final = 15  # bytes of an NF's name
MAX_TEXT: Final = 200  # bytes of an RST's text
MAX_REPORT: Final = 1024  # bytes of a PATHREP's report
MIN_MTU: Final = 68  # of any IPv4 link (RFC 791 §3.2)
MAX_DATAGRAM: Final = HEADER_SIZE + MAX_REPORT + MAC_SIZE  # below IPv6's smallest MTU, 1280
FLOW_SIZE: Final = 40

NO_ADDRESS: Final[Address] = bytes(16)


class Malformed(StrEnum):
    """Why a datagram was refused. Each has a counter in the association."""

    TRUNCATED = "truncated"  # ends before its layout does
    OVERSIZED = "oversized"  # goes on after its layout ends, or a part is longer than allowed
    BAD_MAC = "bad-mac"  # not from a holder of the domain key, or changed on the way
    MAGIC = "magic"  # not an M2M message at all
    VERSION = "version"
    TYPE = "type"
    VALUE = "value"  # a field holds what it must not
    REPLAYED = "replayed"  # seen before, or too old to tell


class WireError(M2MError):
    """A datagram, or a message to be sent, is not what the wire format allows."""

    def __init__(self, reason: Malformed, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Cause(IntEnum):
    """Why a session was refused or ended by RST, or a change of its chain refused or undone."""

    UNKNOWN_SESSION = 0  # the sender has no such session (any more)
    NO_ROUTE = 1  # no route to the next host
    NO_PORTS = 2  # no subsession ports left towards the next host
    LOOP = 3  # the chain visits one host twice
    INSTALL_FAILED = 4  # the datapath could not take the entries
    TIMEOUT = 5  # the next host does not answer
    REPLACED = 6  # a newer session has the same flow
    NOT_MINE = 7  # the chain does not fit the host it was sent to
    ABANDONED = 8  # the client gave up, or the session ended while it was being set up
    BUSY = 9  # too many changes wait for this session already
    MOVED = 10  # the chain is not what the change says it is (any more)
    OVERFLOW = 11  # more packets had to be held than may be
    STATE = 12  # the network function's state could not be moved
    MTU = 13  # the new path takes only smaller packets than the session sends
    MODE = 14  # the session cannot be changed in this mode, or not by this host


class Hop(msgspec.Struct, frozen=True, gc=False):
    """One host of a chain: where it is, what it will be there, and which NF it runs.

    *kind* is :data:`Position.TAP`, :data:`~Position.INLINE` or, for the last one,
    :data:`~Position.SERVER`, whose *nf* is empty.
    """

    address: Address
    kind: Position
    nf: str = ""


def clip(text: str) -> str:
    """*text* as it may travel in an RST: printable, at most :data:`MAX_TEXT` bytes of UTF-8."""
    printable = "".join(char if char.isprintable() else "?" for char in text)
    return printable.encode("utf-8", "replace")[:MAX_TEXT].decode("utf-8", "ignore")


# --- parts of payloads ------------------------------------------------------------------------

_HOP = struct.Struct("!16sBB")  # address, kind, length of the name that follows
_PROTOS = frozenset(map(int, Proto))
KINDS = {int(kind): kind for kind in (Position.TAP, Position.INLINE, Position.SERVER)}


def exactly(data: bytes, size: int, what: str) -> None:
    """Raise :exc:`WireError` unless *data* has *size* bytes."""
    if len(data) < size:
        raise WireError(Malformed.TRUNCATED, f"{what} has {len(data)} bytes instead of {size}")
    if len(data) > size:
        raise WireError(Malformed.OVERSIZED, f"{what} has {len(data)} bytes instead of {size}")


def at_least(data: bytes, size: int, what: str) -> None:
    """Raise :exc:`WireError` if *data* has less than *size* bytes."""
    if len(data) < size:
        raise WireError(Malformed.TRUNCATED, f"{what} ends after {len(data)} of {size} bytes")


def bounded(data: bytes, limit: int, what: str) -> bytes:
    """*data*; raises :exc:`WireError` if it is longer than *limit*."""
    if len(data) > limit:
        raise WireError(Malformed.OVERSIZED, f"{what} has {len(data)} bytes, at most {limit}")
    return data


def flow_in(data: bytes) -> Flow:
    """The flow that these 40 bytes are."""
    if data[37:] != b"\0\0\0":
        raise WireError(Malformed.VALUE, "padding of a flow is not zero")
    if data[36] not in _PROTOS:
        raise WireError(Malformed.VALUE, f"flow of protocol {data[36]}, neither TCP nor UDP")
    return Flow.unpack(data)


def text_in(data: bytes, what: str) -> str:
    """The printable text that these bytes are."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise WireError(Malformed.VALUE, f"{what} is not UTF-8: {data!r}") from None
    if not text.isprintable():  # it ends up in logs and on terminals
        raise WireError(Malformed.VALUE, f"{what} holds control characters: {text!r}")
    return text


def check_mtu(mtu: int) -> None:
    """Raise :exc:`WireError` if no link can have this MTU."""
    if mtu < MIN_MTU:
        raise WireError(Malformed.VALUE, f"an MTU of {mtu}, IPv4 needs {MIN_MTU}")


def check_name(hop: Hop) -> None:
    """Raise :exc:`WireError` if the NF's name is too long to travel."""
    size = len(hop.nf.encode())
    if size > MAX_NAME:
        text = f"NF name {hop.nf} has {size} bytes, at most {MAX_NAME}"
        raise WireError(Malformed.OVERSIZED, text)


def pack_hop(hop: Hop) -> bytes:
    """Address, kind, length of the name, name."""
    name = hop.nf.encode()
    return _HOP.pack(hop.address, hop.kind, len(name)) + name


def unpack_hop(data: bytes, at: int, what: str) -> tuple[Hop, int]:
    """The hop that begins at *at*, and where it ends."""
    at_least(data, at + _HOP.size, what)
    address, kind, length = _HOP.unpack_from(data, at)
    at += _HOP.size
    if kind not in KINDS:
        raise WireError(Malformed.VALUE, f"hop of unknown kind {kind}")
    if length > MAX_NAME:
        raise WireError(Malformed.OVERSIZED, f"NF name of {length} bytes, at most {MAX_NAME}")
    at_least(data, at + length, what)
    return Hop(address, KINDS[kind], text_in(data[at : at + length], "NF name")), at + length
