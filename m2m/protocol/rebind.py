"""The two messages by which a leg gets another name (``docs/mobility.md``), and their bytes.

A batch holds legs between the same two hosts that move together: from one address of the mover to
another. Each entry is about one session and proved by that session's key.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

import msgspec

from m2m.identity import PROOF_SIZE
from m2m.protocol.codec import Malformed, WireError, at_least, exactly
from m2m.protocol.flow import Address, Flow, Proto

__all__ = ["CODES", "MAX_LEGS", "Bound", "End", "Leg", "Rebind", "Rebound", "Result"]

MAX_LEGS: Final = 24
"""Entries of one batch."""


class End(IntEnum):
    """Which end of the session the mover is."""

    CLIENT = 0
    SERVER = 1


class Result(IntEnum):
    """What the hop has done about an entry."""

    DONE = 0
    UNKNOWN = 1  # no such session here: the mover's is over
    UNPROVEN = 2  # the proof does not fit
    OLD = 3  # a later move has been seen
    FAILED = 4  # not possible now; it may come again


class Leg(NamedTuple):
    """One leg that moves: its ports, as named so far and as proposed, client to server."""

    session: int
    end: End
    proto: int
    number: int  # of this move of the session's end; larger than all before
    old_ports: tuple[int, int]
    ports: tuple[int, int]
    proof: bytes = bytes(PROOF_SIZE)


class Bound(NamedTuple):
    """The answer to one entry; *ports* are those that the leg has now when it is DONE."""

    session: int
    end: End
    number: int
    result: Result
    ports: tuple[int, int]
    proof: bytes = bytes(PROOF_SIZE)


class Rebind(msgspec.Struct, frozen=True):
    """Mover to hop: these legs lead to *new* from now on, and belong to *device*."""

    session: int  # of the first leg
    old: Address  # the mover's
    new: Address
    hop: Address  # the receiver's end of all these legs
    device: bytes
    legs: tuple[Leg, ...]

    def flows(self, leg: Leg) -> tuple[Flow, Flow]:
        """The leg's name so far and the proposed one."""
        return (
            flow_of(leg.end, leg.proto, self.old, self.hop, leg.old_ports),
            flow_of(leg.end, leg.proto, self.new, self.hop, leg.ports),
        )

    def content(self, leg: Leg) -> bytes:
        """What is proved by an entry."""
        _, end, proto, number, old_ports, ports, _ = leg
        old, new, hop = self.old, self.new, self.hop
        if end is End.CLIENT:
            names = old, hop, *old_ports, proto, new, hop, *ports, proto
        else:
            names = hop, old, *old_ports, proto, hop, new, *ports, proto
        return _ASKED.pack(b"rebind", end, number, *names, self.device)


class Rebound(msgspec.Struct, frozen=True):
    """Hop to mover: what has become of them."""

    session: int
    new: Address
    hop: Address
    legs: tuple[Bound, ...]

    def content(self, leg: Bound) -> bytes:
        """What is proved by an answer."""
        return _ANSWERED.pack(
            b"rebound", leg.end, leg.number, leg.result, *leg.ports, self.new, self.hop
        )


def flow_of(end: End, proto: int, mover: Address, hop: Address, ports: tuple[int, int]) -> Flow:
    """The leg between a mover and a hop, in the direction client to server."""
    sport, dport = ports
    if end is End.CLIENT:
        return Flow(proto, mover, sport, hop, dport)
    return Flow(proto, hop, sport, mover, dport)


# What is proved. Flows are packed as :meth:`Flow.pack` does.
_ASKED = struct.Struct("!6sBI16s16sHHB3x16s16sHHB3x32s")
_ANSWERED = struct.Struct("!7sBIBHH16s16s")
_REBIND = struct.Struct("!16s16s16s32sB")
_REBOUND = struct.Struct("!16s16sB")
_LEG = struct.Struct(f"!QBBIHHHH{PROOF_SIZE}s")
_BOUND = struct.Struct(f"!QBIBHH{PROOF_SIZE}s")
_PROTOS = frozenset(map(int, Proto))


def _pack_rebind(message: Rebind) -> bytes:
    _check(message.session, [leg.session for leg in message.legs])
    head = _REBIND.pack(message.old, message.new, message.hop, message.device, len(message.legs))
    return head + b"".join(
        _LEG.pack(
            leg.session, leg.end, leg.proto, leg.number, *leg.old_ports, *leg.ports, leg.proof
        )
        for leg in message.legs
    )


def _unpack_rebind(session: int, data: bytes) -> Rebind:
    at_least(data, _REBIND.size, "REBIND")
    old, new, hop, device, count = _REBIND.unpack_from(data)
    legs = []
    for start in _starts(data, _REBIND.size, count, _LEG.size, "REBIND"):
        number, end, proto, move, a, b, c, d, proof = _LEG.unpack_from(data, start)
        if proto not in _PROTOS:
            raise WireError(Malformed.VALUE, f"leg of protocol {proto}, neither TCP nor UDP")
        legs.append(Leg(number, _end(end), proto, move, (a, b), (c, d), proof))
    _check(session, [leg.session for leg in legs])
    return Rebind(session, old, new, hop, device, tuple(legs))


def _pack_rebound(message: Rebound) -> bytes:
    _check(message.session, [leg.session for leg in message.legs])
    head = _REBOUND.pack(message.new, message.hop, len(message.legs))
    return head + b"".join(
        _BOUND.pack(leg.session, leg.end, leg.number, leg.result, *leg.ports, leg.proof)
        for leg in message.legs
    )


def _unpack_rebound(session: int, data: bytes) -> Rebound:
    at_least(data, _REBOUND.size, "REBOUND")
    new, hop, count = _REBOUND.unpack_from(data)
    legs = []
    for start in _starts(data, _REBOUND.size, count, _BOUND.size, "REBOUND"):
        number, end, move, result, a, b, proof = _BOUND.unpack_from(data, start)
        if result not in Result._value2member_map_:
            raise WireError(Malformed.VALUE, f"unknown result {result} of a move")
        legs.append(Bound(number, _end(end), move, Result(result), (a, b), proof))
    _check(session, [leg.session for leg in legs])
    return Rebound(session, new, hop, tuple(legs))


def _starts(data: bytes, head: int, count: int, size: int, what: str) -> range:
    if not 1 <= count <= MAX_LEGS:
        reason = Malformed.OVERSIZED if count else Malformed.VALUE
        raise WireError(reason, f"a {what} of {count} legs, allowed are 1 to {MAX_LEGS}")
    exactly(data, head + count * size, what)
    return range(head, len(data), size)


def _end(value: int) -> End:
    if value not in End._value2member_map_:
        raise WireError(Malformed.VALUE, f"unknown end {value} of a session")
    return End(value)


def _check(session: int, legs: list[int]) -> None:
    if not 1 <= len(legs) <= MAX_LEGS:
        raise WireError(Malformed.OVERSIZED, f"{len(legs)} legs, allowed are 1 to {MAX_LEGS}")
    if legs[0] != session or not all(legs):
        raise WireError(Malformed.VALUE, "the header's session is not that of the first leg")


CODES: Final = (
    (48, Rebind, _pack_rebind, _unpack_rebind),
    (49, Rebound, _pack_rebound, _unpack_rebound),
)
"""Type, message, how to pack it, and how to unpack it."""
