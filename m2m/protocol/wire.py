"""The control messages and their bytes (``docs/wire-format.md`` draws the layout).

A datagram is a fixed header, a payload that depends on the message's type, and a MAC. This file
knows the first two; :mod:`m2m.protocol.association` adds and checks the MAC, the epochs and the
sequence number. What payloads are made of stands in :mod:`m2m.protocol.codec`; the messages that
change a live chain in :mod:`m2m.protocol.update`. Decoding takes exactly what the layout allows
and nothing beside it: every length is checked, every reserved bit must be zero, and whatever is
wrong is a :exc:`WireError` with a reason that can be counted.

Every message between neighbours names the *subsession* it is about, and not the session alone: a
host that came back with other ports must not take an answer to its former self for its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias, cast

import msgspec

from m2m.identity import ANONYMOUS
from m2m.protocol import rebind, update_wire
from m2m.protocol.codec import (
    FLOW_SIZE,
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
    at_least,
    bounded,
    check_mtu,
    check_name,
    clip,
    exactly,
    flow_in,
    pack_hop,
    text_in,
    unpack_hop,
)
from m2m.protocol.flow import Address, Flow
from m2m.protocol.translation import Position
from m2m.protocol.update import Request, Update, UpdateSyn

__all__ = [
    "HEADER_SIZE", "MAC_SIZE", "MAGIC", "MAX_CHAIN", "MAX_DATAGRAM", "MAX_NAME", "MAX_REPORT",
    "MAX_TEXT", "MIN_MTU", "NO_ADDRESS", "VERSION", "Ack", "Cause", "Challenge", "Envelope", "Fin",
    "FinAck", "Hop", "Malformed", "Message", "PathRep", "PathReq", "Rst", "Syn", "SynAck",
    "WireError", "check_chain", "clip", "decode", "encode", "next_host",
]  # fmt: skip

MAGIC: Final = b"M2"
VERSION: Final = 2


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


def check_chain(chain: tuple[Hop, ...]) -> None:
    """Raise :exc:`WireError` if *chain* is not one that a SYN can carry."""
    if not 1 <= len(chain) <= MAX_CHAIN:
        reason = Malformed.OVERSIZED if chain else Malformed.VALUE
        raise WireError(reason, f"a chain of {len(chain)} hops, allowed are 1 to {MAX_CHAIN}")
    last, server = chain[-1], Position.SERVER
    for hop in chain:
        if (hop.kind is server) != (hop is last):
            text = "a server stands at the end of a chain and only there"
            raise WireError(Malformed.VALUE, text)
        check_name(hop)


def next_host(message: Message) -> Address | None:
    """To which host the receiver will have to find a way, if any."""
    if isinstance(message, Syn):
        return message.chain[1].address if len(message.chain) > 1 else None
    if isinstance(message, UpdateSyn) and message.hops:
        return message.hops[1].address if len(message.hops) > 1 else message.right
    if isinstance(message, Request):
        return message.hops[0].address if message.hops else message.right
    return None


def encode(envelope: Envelope) -> bytes:
    """Header and payload, without MAC. Raises :exc:`WireError` if the message breaks a bound."""
    message = envelope.message
    code, pack = _ENCODERS[type(message)]
    payload = pack(message)
    session = getattr(message, "session", 0)
    return (
        _HEADER.pack(
            MAGIC, VERSION, code, 0, len(payload),
            envelope.sender, envelope.receiver, envelope.seq, session, envelope.device,
        )
        + payload
    )  # fmt: skip


def decode(data: bytes) -> Envelope:
    """The inverse of :func:`encode`. Raises :exc:`WireError` and nothing else."""
    if len(data) < HEADER_SIZE:
        raise WireError(
            Malformed.TRUNCATED, f"{len(data)} bytes, the header alone has {HEADER_SIZE}"
        )
    magic, version, code, flags, length, sender, receiver, seq, session, device = (
        _HEADER.unpack_from(data)
    )
    if magic != MAGIC:
        raise WireError(Malformed.MAGIC, f"starts with {magic!r} instead of {MAGIC!r}")
    if version != VERSION:
        raise WireError(Malformed.VERSION, f"version {version}, this agent speaks {VERSION}")
    if code not in _DECODERS:
        raise WireError(Malformed.TYPE, f"unknown message type {code}")
    payload = data[HEADER_SIZE:]
    exactly(payload, length, "payload")
    if flags:
        raise WireError(Malformed.VALUE, f"reserved flags are {flags:#06x} instead of 0")
    if sender == 0 or seq == 0:
        raise WireError(Malformed.VALUE, "sender epoch and sequence number must not be 0")
    if (session == 0) != (code == _CHALLENGE):
        raise WireError(Malformed.VALUE, f"session {session:016x} in a message of type {code}")
    return Envelope(sender, receiver, seq, _DECODERS[code](session, payload), device)


# --- payloads ---------------------------------------------------------------------------------

_HEADER = struct.Struct("!2sBBHHQQQQ32s")
# Two flows, the client's device, policy, generation, MTU, patience, number of hops.
_SYN = struct.Struct("!40s40s32sIIHHBx")
_SYNACK = struct.Struct("!40sH32s")
_RST = struct.Struct("!40s16sBB")  # subsession, blame, cause, length of the text that follows
_SEQ = struct.Struct("!Q")


def _pack_syn(syn: Syn) -> bytes:
    check_chain(syn.chain)
    parts = [
        _SYN.pack(
            syn.subsession.pack(), syn.supersession.pack(), syn.client,
            syn.policy, syn.generation, syn.mtu, syn.patience, len(syn.chain),
        )
    ]  # fmt: skip
    parts.extend(map(pack_hop, syn.chain))
    return b"".join(parts)


def _unpack_syn(session: int, data: bytes) -> Syn:
    at_least(data, _SYN.size, "SYN")
    left, supersession, client, policy, generation, mtu, patience, count = _SYN.unpack_from(data)
    if data[_SYN.size - 1]:
        raise WireError(Malformed.VALUE, "padding of a SYN is not zero")
    if count > MAX_CHAIN:
        raise WireError(Malformed.OVERSIZED, f"a chain of {count} hops, at most {MAX_CHAIN}")
    at, chain = _SYN.size, []
    for _ in range(count):
        hop, at = unpack_hop(data, at, "SYN")
        chain.append(hop)
    exactly(data, at, "SYN")
    hops = tuple(chain)
    check_chain(hops)
    check_mtu(mtu)
    return Syn(
        session, flow_in(left), flow_in(supersession), hops, mtu, policy, generation, patience,
        client,
    )  # fmt: skip


def _pack_synack(synack: SynAck) -> bytes:
    return _SYNACK.pack(synack.subsession.pack(), synack.mtu, synack.server)


def _unpack_synack(session: int, data: bytes) -> SynAck:
    exactly(data, _SYNACK.size, "SYNACK")
    flow, mtu, server = _SYNACK.unpack(data)
    check_mtu(mtu)
    return SynAck(session, flow_in(flow), mtu, server)


def _pack_leg(message: Ack | Fin | FinAck) -> bytes:
    return message.subsession.pack()


def _unpack_leg(kind: type[Ack | Fin | FinAck]) -> Callable[[int, bytes], Message]:
    def unpack(session: int, data: bytes) -> Message:
        exactly(data, FLOW_SIZE, kind.__name__.upper())
        return kind(session, flow_in(data))

    return unpack


def _pack_rst(rst: Rst) -> bytes:
    text = bounded(rst.text.encode(), MAX_TEXT, "text of an RST")
    return _RST.pack(rst.subsession.pack(), rst.blame or NO_ADDRESS, rst.cause, len(text)) + text


def _unpack_rst(session: int, data: bytes) -> Rst:
    at_least(data, _RST.size, "RST")
    flow, blame, cause, length = _RST.unpack_from(data)
    if length > MAX_TEXT:
        raise WireError(Malformed.OVERSIZED, f"text of {length} bytes, at most {MAX_TEXT}")
    exactly(data, _RST.size + length, "RST")
    if cause not in Cause._value2member_map_:
        raise WireError(Malformed.VALUE, f"RST of unknown cause {cause}")
    text = text_in(data[_RST.size :], "text of an RST")
    return Rst(session, flow_in(flow), Cause(cause), text, None if blame == NO_ADDRESS else blame)


def _pack_challenge(challenge: Challenge) -> bytes:
    return _SEQ.pack(challenge.seq)


def _unpack_challenge(_session: int, data: bytes) -> Challenge:
    exactly(data, _SEQ.size, "CHALLENGE")
    return Challenge(*_SEQ.unpack(data))


def _pack_pathreq(_message: PathReq) -> bytes:
    return b""


def _unpack_pathreq(session: int, data: bytes) -> PathReq:
    exactly(data, 0, "PATHREQ")
    return PathReq(session)


def _pack_pathrep(message: PathRep) -> bytes:
    return bounded(message.report, MAX_REPORT, "report")


def _unpack_pathrep(session: int, data: bytes) -> PathRep:
    return PathRep(session, bounded(data, MAX_REPORT, "report"))


_CHALLENGE = 7

_CODES: Final[tuple[tuple[int, type[Any], Any, Callable[[int, bytes], Message]], ...]] = (
    (1, Syn, _pack_syn, _unpack_syn),
    (2, SynAck, _pack_synack, _unpack_synack),
    (3, Ack, _pack_leg, _unpack_leg(Ack)),
    (4, Fin, _pack_leg, _unpack_leg(Fin)),
    (5, FinAck, _pack_leg, _unpack_leg(FinAck)),
    (6, Rst, _pack_rst, _unpack_rst),
    (_CHALLENGE, Challenge, _pack_challenge, _unpack_challenge),
    (8, PathReq, _pack_pathreq, _unpack_pathreq),
    (9, PathRep, _pack_pathrep, _unpack_pathrep),
    *update_wire.CODES,
    *rebind.CODES,
)
_ENCODERS: Final = {
    kind: (code, cast(Callable[[Any], bytes], pack)) for code, kind, pack, _ in _CODES
}
_DECODERS: Final = {code: unpack for code, _, _, unpack in _CODES}
