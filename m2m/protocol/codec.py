"""What all control messages have in common: bounds and errors.

:mod:`m2m.protocol.wire` has the header and the messages that set sessions up,
:mod:`m2m.protocol.update` those that change a chain. Decoding takes exactly what the layout
allows and nothing beside it: whatever is wrong is a :exc:`WireError` whose reason is counted.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final

import msgspec

from m2m.errors import M2MError
from m2m.protocol.flow import Address
from m2m.protocol.translation import Position

__all__ = [
    "FLOW_SIZE", "HEADER_SIZE", "MAC_SIZE", "MAX_CHAIN", "MAX_DATAGRAM", "MAX_NAME", "MAX_REPORT",
    "MAX_TEXT", "MIN_MTU", "NO_ADDRESS", "Cause", "Hop", "Malformed", "WireError", "at_least",
    "clip", "exactly",
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
    :data:`~Position.SERVER`, whose *nf* is empty, or :data:`~Position.PROXY`.
    """

    address: Address
    kind: Position
    nf: str = ""


def clip(text: str) -> str:
    """*text* as it may travel in an RST: printable, at most :data:`MAX_TEXT` bytes of UTF-8."""
    printable = "".join(char if char.isprintable() else "?" for char in text)
    return printable.encode("utf-8", "replace")[:MAX_TEXT].decode("utf-8", "ignore")


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
