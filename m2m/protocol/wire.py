"""The control messages and their bytes (``docs/wire-format.md`` draws the layout).

A datagram is a fixed header, a payload that depends on the message's type, and a MAC. This file
says which parts a payload has, ``_codec.pyx`` makes them bytes; :mod:`m2m.protocol.association`
adds the epochs and the sequence number. Bounds and errors stand in :mod:`m2m.protocol.codec`, the
messages that change a live chain in :mod:`m2m.protocol.update`. Decoding takes exactly what the
layout allows and nothing beside it: every length is checked, every reserved bit must be zero, and
whatever is wrong is a :exc:`WireError` with a reason that can be counted.

Every message between neighbours names the *subsession* it is about, and not the session alone: a
host that came back with other ports must not take an answer to its former self for its own.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from m2m.identity import ANONYMOUS
from m2m.protocol import rebind, update_wire
from m2m.protocol._codec import Codec, check_chain
from m2m.protocol.codec import (
    HEADER_SIZE,
    MAC_SIZE,
    MAX_CHAIN,
    MAX_DATAGRAM,
    MAX_NAME,
    MAX_REPORT,
    MAX_TEXT,
    MIN_MTU,
    NO_ADDRESS,
    Cause,
    Hop,
    Malformed,
    WireError,
    clip,
)
from m2m.protocol.flow import Address, Flow
from m2m.protocol.update import Request, Update, UpdateSyn

__all__ = [
    "CODEC", "HEADER_SIZE", "MAC_SIZE", "MAX_CHAIN", "MAX_DATAGRAM", "MAX_NAME", "MAX_REPORT",
    "MAX_TEXT", "MIN_MTU", "NO_ADDRESS", "Ack", "Cause", "Challenge", "Envelope", "Fin",
    "FinAck", "Hop", "Malformed", "Message", "PathRep", "PathReq", "Rst", "Syn", "SynAck",
    "WireError", "check_chain", "clip", "decode", "encode", "next_host",
]  # fmt: skip


class Syn(msgspec.Struct, frozen=True):
    """Set up a session. ``chain[0]`` is the receiver itself; the last hop is the server."""

    session: int
    subsession: Flow  # between sender and receiver, ports allocated by the sender
    supersession: Flow
    chain: tuple[Hop, ...]
    mtu: int  # smallest on the path so far
    policy: int
    generation: int
    patience: int  # ms the sender waits for a SYNACK; the receiver waits a little less
    client: bytes = ANONYMOUS  # its device


class SynAck(msgspec.Struct, frozen=True):
    """Everything from here to the server stands. *mtu* is the smallest of the whole path."""

    session: int
    subsession: Flow
    mtu: int
    server: bytes = ANONYMOUS  # its device


class Ack(msgspec.Struct, frozen=True):
    """The client has seen the SYNACK: the session is established. Also asks a neighbour, after
    a restart, whether it still has the session (it answers RST if it has not)."""

    session: int
    subsession: Flow


class Fin(msgspec.Struct, frozen=True):
    """The session is over; forget it and tell the next host outward."""

    session: int
    subsession: Flow


class FinAck(msgspec.Struct, frozen=True):
    """The sender has no such session any more."""

    session: int
    subsession: Flow


class Rst(msgspec.Struct, frozen=True):
    """The session is refused or broken. *blame* is the host at fault, when known."""

    session: int
    subsession: Flow
    cause: Cause
    text: str
    blame: Address | None = None


class Challenge(msgspec.Struct, frozen=True):
    """The datagram with this sequence number did not carry my epoch; it is in this header."""

    seq: int


class PathReq(msgspec.Struct, frozen=True):
    """Describe this session, and who is next."""

    session: int


class PathRep(msgspec.Struct, frozen=True):
    """The answer to :class:`PathReq`; the shell encodes and decodes *report*."""

    session: int
    report: bytes


Message: TypeAlias = (
    Syn
    | SynAck
    | Ack
    | Fin
    | FinAck
    | Rst
    | Challenge
    | PathReq
    | PathRep
    | Update
    | rebind.Rebind
    | rebind.Rebound
)


class Envelope(NamedTuple):
    """A message with what the header says about its sender and receiver."""

    sender: int  # the sender's epoch
    receiver: int  # the receiver's epoch as the sender knows it, 0 if it does not
    seq: int  # counts up from 1 within the sender's epoch
    message: Message
    device: bytes = ANONYMOUS  # the sender's


def next_host(message: Message) -> Address | None:
    """To which host the receiver will have to find a way, if any."""
    if isinstance(message, Syn):
        return message.chain[1].address if len(message.chain) > 1 else None
    if isinstance(message, UpdateSyn) and message.hops:
        return message.hops[1].address if len(message.hops) > 1 else message.right
    if isinstance(message, Request):
        return message.hops[0].address if message.hops else message.right
    return None


_LAYOUTS: Final[tuple[tuple[int, type[Any], str], ...]] = (
    (
        1, Syn,
        ("subsession:flow supersession:flow client:device policy:u32 generation:u32 mtu:mtu "
         "patience:u16 chain:chain"),
    ),
    (2, SynAck, "subsession:flow mtu:mtu server:device"),
    (3, Ack, "subsession:flow"),
    (4, Fin, "subsession:flow"),
    (5, FinAck, "subsession:flow"),
    (6, Rst, "subsession:flow blame:blame cause:cause text:text"),
    (7, Challenge, "seq:u64"),
    (8, PathReq, ""),
    (9, PathRep, "report:rest"),
)  # fmt: skip

CODEC: Final = Codec(Envelope, (*_LAYOUTS, *update_wire.LAYOUTS), rebind.CODES)
"""All messages and their bytes."""

encode = CODEC.encode
decode = CODEC.decode
