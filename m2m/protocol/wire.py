"""The control messages and their bytes (``docs/wire-format.md`` draws the layout).

A datagram is a fixed header, a payload that depends on the message's type, and a MAC. This file
knows the first two; :mod:`m2m.protocol.association` adds and checks the MAC, the epochs and the
sequence number. Decoding takes exactly what the layout allows and nothing beside it: every
length is checked, every reserved bit must be zero, and whatever is wrong is a :exc:`WireError`
with a reason that can be counted.

Every message about a session names the *subsession* it is about, and not the session alone: a
host that came back with other ports must not take an answer to its former self for its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum, StrEnum
from typing import Any, Final, NamedTuple, TypeAlias, cast

import msgspec

from m2m.errors import M2MError
from m2m.protocol.flow import Address, Flow, Proto
from m2m.protocol.translation import Position

MAGIC: Final = b"M2"
VERSION: Final = 1
HEADER_SIZE: Final = 40
MAC_SIZE: Final = 16
MAX_CHAIN: Final = 16  # hops in a SYN, the server included
MAX_NAME: Final = 15  # bytes of an NF's name
MAX_TEXT: Final = 200  # bytes of an RST's text
MAX_REPORT: Final = 1024  # bytes of a PATHREP's report
MIN_MTU: Final = 68  # of any IPv4 link (RFC 791 §3.2)
MAX_DATAGRAM: Final = HEADER_SIZE + MAX_REPORT + MAC_SIZE  # below IPv6's smallest MTU, 1280

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
    """Why a session was refused or ended by RST."""

    UNKNOWN_SESSION = 0  # the sender has no such session (any more)
    NO_ROUTE = 1  # no route to the next host
    NO_PORTS = 2  # no subsession ports left towards the next host
    LOOP = 3  # the chain visits one host twice
    INSTALL_FAILED = 4  # the datapath could not take the entries
    TIMEOUT = 5  # the next host does not answer
    REPLACED = 6  # a newer session has the same flow
    NOT_MINE = 7  # the chain does not fit the host it was sent to
    ABANDONED = 8  # the client gave up, or the session ended while it was being set up


class Hop(msgspec.Struct, frozen=True, gc=False):
    """One host of a chain: where it is, what it will be there, and which NF it runs.

    *kind* is :data:`Position.TAP`, :data:`~Position.INLINE` or, for the last one,
    :data:`~Position.SERVER`, whose *nf* is empty.
    """

    address: Address
    kind: Position
    nf: str = ""


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


class SynAck(msgspec.Struct, frozen=True):
    """Everything from here to the server stands. *mtu* is the smallest of the whole path."""

    session: int
    subsession: Flow
    mtu: int


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


Message: TypeAlias = Syn | SynAck | Ack | Fin | FinAck | Rst | Challenge | PathReq | PathRep


class Envelope(NamedTuple):
    """A message with what the header says about its sender and receiver."""

    sender: int  # the sender's epoch
    receiver: int  # the receiver's epoch as the sender knows it, 0 if it does not
    seq: int  # counts up from 1 within the sender's epoch
    message: Message


def clip(text: str) -> str:
    """*text* as it may travel in an RST: printable, at most :data:`MAX_TEXT` bytes of UTF-8."""
    printable = "".join(char if char.isprintable() else "?" for char in text)
    return printable.encode("utf-8", "replace")[:MAX_TEXT].decode("utf-8", "ignore")


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
        size = len(hop.nf.encode())
        if size > MAX_NAME:
            text = f"NF name {hop.nf} has {size} bytes, at most {MAX_NAME}"
            raise WireError(Malformed.OVERSIZED, text)


def encode(envelope: Envelope) -> bytes:
    """Header and payload, without MAC. Raises :exc:`WireError` if the message breaks a bound."""
    message = envelope.message
    code, pack = _ENCODERS[type(message)]
    payload = pack(message)
    session = getattr(message, "session", 0)
    return (
        _HEADER.pack(
            MAGIC, VERSION, code, 0, len(payload),
            envelope.sender, envelope.receiver, envelope.seq, session,
        )
        + payload
    )  # fmt: skip


def decode(data: bytes) -> Envelope:
    """The inverse of :func:`encode`. Raises :exc:`WireError` and nothing else."""
    if len(data) < HEADER_SIZE:
        raise WireError(Malformed.TRUNCATED, f"{len(data)} bytes, the header alone has 40")
    magic, version, code, flags, length, sender, receiver, seq, session = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise WireError(Malformed.MAGIC, f"starts with {magic!r} instead of {MAGIC!r}")
    if version != VERSION:
        raise WireError(Malformed.VERSION, f"version {version}, this agent speaks {VERSION}")
    if code not in _DECODERS:
        raise WireError(Malformed.TYPE, f"unknown message type {code}")
    payload = data[HEADER_SIZE:]
    _exactly(payload, length, "payload")
    if flags:
        raise WireError(Malformed.VALUE, f"reserved flags are {flags:#06x} instead of 0")
    if sender == 0 or seq == 0:
        raise WireError(Malformed.VALUE, "sender epoch and sequence number must not be 0")
    if (session == 0) != (code == _CHALLENGE):
        raise WireError(Malformed.VALUE, f"session {session:016x} in a message of type {code}")
    return Envelope(sender, receiver, seq, _DECODERS[code](session, payload))


# --- payloads ---------------------------------------------------------------------------------

_HEADER = struct.Struct("!2sBBHHQQQQ")
_SYN = struct.Struct("!40s40sIIHHBx")  # two flows, policy, generation, mtu, patience, hops
_HOP = struct.Struct("!16sBB")  # address, kind, length of the name that follows
_SYNACK = struct.Struct("!40sH")
_RST = struct.Struct("!40s16sBB")  # subsession, blame, cause, length of the text that follows
_SEQ = struct.Struct("!Q")
_FLOW_SIZE = 40

_KINDS = {int(kind): kind for kind in (Position.TAP, Position.INLINE, Position.SERVER)}
_PROTOS = frozenset(map(int, Proto))


def _exactly(data: bytes, size: int, what: str) -> None:
    if len(data) < size:
        raise WireError(Malformed.TRUNCATED, f"{what} has {len(data)} bytes instead of {size}")
    if len(data) > size:
        raise WireError(Malformed.OVERSIZED, f"{what} has {len(data)} bytes instead of {size}")


def _at_least(data: bytes, size: int, what: str) -> None:
    if len(data) < size:
        raise WireError(Malformed.TRUNCATED, f"{what} ends after {len(data)} of {size} bytes")


def _flow(data: bytes) -> Flow:
    if data[37:] != b"\0\0\0":
        raise WireError(Malformed.VALUE, "padding of a flow is not zero")
    if data[36] not in _PROTOS:
        raise WireError(Malformed.VALUE, f"flow of protocol {data[36]}, neither TCP nor UDP")
    return Flow.unpack(data)


def _text(data: bytes, what: str) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise WireError(Malformed.VALUE, f"{what} is not UTF-8: {data!r}") from None
    if not text.isprintable():  # it ends up in logs and on terminals
        raise WireError(Malformed.VALUE, f"{what} holds control characters: {text!r}")
    return text


def _bounded(data: bytes, limit: int, what: str) -> bytes:
    if len(data) > limit:
        raise WireError(Malformed.OVERSIZED, f"{what} has {len(data)} bytes, at most {limit}")
    return data


def _check_mtu(mtu: int) -> None:
    if mtu < MIN_MTU:
        raise WireError(Malformed.VALUE, f"an MTU of {mtu}, IPv4 needs {MIN_MTU}")


def _pack_syn(syn: Syn) -> bytes:
    check_chain(syn.chain)
    parts = [
        _SYN.pack(
            syn.subsession.pack(), syn.supersession.pack(),
            syn.policy, syn.generation, syn.mtu, syn.patience, len(syn.chain),
        )
    ]  # fmt: skip
    for hop in syn.chain:
        name = hop.nf.encode()
        parts.append(_HOP.pack(hop.address, hop.kind, len(name)))
        parts.append(name)
    return b"".join(parts)


def _unpack_syn(session: int, data: bytes) -> Syn:
    _at_least(data, _SYN.size, "SYN")
    left, supersession, policy, generation, mtu, patience, count = _SYN.unpack_from(data)
    if data[_SYN.size - 1]:
        raise WireError(Malformed.VALUE, "padding of a SYN is not zero")
    if count > MAX_CHAIN:
        raise WireError(Malformed.OVERSIZED, f"a chain of {count} hops, at most {MAX_CHAIN}")
    at, chain = _SYN.size, []
    for _ in range(count):
        _at_least(data, at + _HOP.size, "SYN")
        address, kind, length = _HOP.unpack_from(data, at)
        at += _HOP.size
        if kind not in _KINDS:
            raise WireError(Malformed.VALUE, f"hop of unknown kind {kind}")
        if length > MAX_NAME:
            raise WireError(Malformed.OVERSIZED, f"NF name of {length} bytes, at most {MAX_NAME}")
        _at_least(data, at + length, "SYN")
        chain.append(Hop(address, _KINDS[kind], _text(data[at : at + length], "NF name")))
        at += length
    _exactly(data, at, "SYN")
    hops = tuple(chain)
    check_chain(hops)
    _check_mtu(mtu)
    return Syn(
        session, _flow(left), _flow(supersession), hops, mtu, policy, generation, patience
    )  # fmt: skip


def _pack_synack(synack: SynAck) -> bytes:
    return _SYNACK.pack(synack.subsession.pack(), synack.mtu)


def _unpack_synack(session: int, data: bytes) -> SynAck:
    _exactly(data, _SYNACK.size, "SYNACK")
    flow, mtu = _SYNACK.unpack(data)
    _check_mtu(mtu)
    return SynAck(session, _flow(flow), mtu)


def _pack_leg(message: Ack | Fin | FinAck) -> bytes:
    return message.subsession.pack()


def _unpack_leg(kind: type[Ack | Fin | FinAck]) -> Callable[[int, bytes], Message]:
    def unpack(session: int, data: bytes) -> Message:
        _exactly(data, _FLOW_SIZE, kind.__name__.upper())
        return kind(session, _flow(data))

    return unpack


def _pack_rst(rst: Rst) -> bytes:
    text = _bounded(rst.text.encode(), MAX_TEXT, "text of an RST")
    return _RST.pack(rst.subsession.pack(), rst.blame or NO_ADDRESS, rst.cause, len(text)) + text


def _unpack_rst(session: int, data: bytes) -> Rst:
    _at_least(data, _RST.size, "RST")
    flow, blame, cause, length = _RST.unpack_from(data)
    if length > MAX_TEXT:
        raise WireError(Malformed.OVERSIZED, f"text of {length} bytes, at most {MAX_TEXT}")
    _exactly(data, _RST.size + length, "RST")
    if cause not in Cause._value2member_map_:
        raise WireError(Malformed.VALUE, f"RST of unknown cause {cause}")
    text = _text(data[_RST.size :], "text of an RST")
    return Rst(session, _flow(flow), Cause(cause), text, None if blame == NO_ADDRESS else blame)


def _pack_challenge(challenge: Challenge) -> bytes:
    return _SEQ.pack(challenge.seq)


def _unpack_challenge(_session: int, data: bytes) -> Challenge:
    _exactly(data, _SEQ.size, "CHALLENGE")
    return Challenge(*_SEQ.unpack(data))


def _pack_pathreq(_message: PathReq) -> bytes:
    return b""


def _unpack_pathreq(session: int, data: bytes) -> PathReq:
    _exactly(data, 0, "PATHREQ")
    return PathReq(session)


def _pack_pathrep(message: PathRep) -> bytes:
    return _bounded(message.report, MAX_REPORT, "report")


def _unpack_pathrep(session: int, data: bytes) -> PathRep:
    return PathRep(session, _bounded(data, MAX_REPORT, "report"))


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
)
_ENCODERS: Final = {
    kind: (code, cast(Callable[[Any], bytes], pack)) for code, kind, pack, _ in _CODES
}
_DECODERS: Final = {code: unpack for code, _, _, unpack in _CODES}
