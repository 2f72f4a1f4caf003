"""The payloads of the messages that change chains: one part after the other (wire-format.md)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

import msgspec

from m2m.protocol.codec import (
    FLOW_SIZE,
    MAX_TEXT,
    NO_ADDRESS,
    Cause,
    Hop,
    Malformed,
    WireError,
    at_least,
    bounded,
    check_mtu,
    check_name,
    exactly,
    flow_in,
    pack_hop,
    text_in,
    unpack_hop,
)
from m2m.protocol.flow import Flow
from m2m.protocol.translation import Position
from m2m.protocol.update import (
    MAX_PART,
    MAX_PARTS,
    MAX_RUN,
    Approve,
    Done,
    Lock,
    Mode,
    Progress,
    Reject,
    Request,
    StateAck,
    StatePart,
    Step,
    Update,
    UpdateAck,
    UpdateAsk,
    UpdateDrain,
    UpdateDrained,
    UpdateEmpty,
    UpdateFin,
    UpdateFinAck,
    UpdateReject,
    UpdateSub,
    UpdateSubAck,
    UpdateSyn,
    UpdateSynAck,
)

__all__ = ["CODES"]


class _Part(NamedTuple):
    """How one field is written, and read at an offset: its value, and where the next begins."""

    pack: Callable[[Any], bytes]
    read: Callable[[bytes, int], tuple[Any, int]]


def _fixed(layout: str, into: Callable[[Any], Any], out: Callable[[Any], Any]) -> _Part:
    form = struct.Struct(layout)

    def read(data: bytes, at: int) -> tuple[Any, int]:
        at_least(data, at + form.size, "message")
        return into(form.unpack_from(data, at)[0]), at + form.size

    def pack(value: Any) -> bytes:
        try:
            return form.pack(out(value))
        except struct.error:
            raise WireError(Malformed.VALUE, f"{value!r} does not fit its field") from None

    return _Part(pack, read)


def _same(value: Any) -> Any:
    return value


def _nonzero(value: int) -> int:
    if not value:
        raise WireError(Malformed.VALUE, "a change without its number")
    return value


def _one_of(kind: type[IntEnum]) -> Callable[[int], IntEnum]:
    def into(value: int) -> IntEnum:
        if value not in kind._value2member_map_:
            raise WireError(Malformed.VALUE, f"unknown {kind.__name__.lower()} {value}")
        return kind(value)

    return into


def _yes_or_no(value: int) -> bool:
    if value > 1:
        raise WireError(Malformed.VALUE, f"{value} is neither yes nor no")
    return bool(value)


def _mtu(value: int) -> int:
    check_mtu(value)
    return value


def _read_flow(data: bytes, at: int) -> tuple[Flow, int]:
    at_least(data, at + FLOW_SIZE, "message")
    return flow_in(data[at : at + FLOW_SIZE]), at + FLOW_SIZE


def _pack_text(text: str) -> bytes:
    data = bounded(text.encode(), MAX_TEXT, "text")
    return bytes([len(data)]) + data


def _read_text(data: bytes, at: int) -> tuple[str, int]:
    at_least(data, at + 1, "text")
    end = at + 1 + data[at]
    bounded(data[at + 1 : end], MAX_TEXT, "text")
    at_least(data, end, "text")
    return text_in(data[at + 1 : end], "text"), end


def _pack_data(data: bytes) -> bytes:
    return struct.pack("!H", len(bounded(data, MAX_PART, "part of a state"))) + data


def _read_data(data: bytes, at: int) -> tuple[bytes, int]:
    at_least(data, at + 2, "part of a state")
    end = at + 2 + int.from_bytes(data[at : at + 2], "big")
    at_least(data, end, "part of a state")
    return bounded(data[at + 2 : end], MAX_PART, "part of a state"), end


def _run(pack: Callable[[Any], bytes], read: Callable[[bytes, int], tuple[Any, int]]) -> _Part:
    """A number of parts of one kind, at most :data:`MAX_RUN`."""

    def pack_all(values: Sequence[Any]) -> bytes:
        _check_run(len(values))
        return bytes([len(values)]) + b"".join(map(pack, values))

    def read_all(data: bytes, at: int) -> tuple[tuple[Any, ...], int]:
        at_least(data, at + 1, "run of hosts")
        count, found = data[at], []
        _check_run(count)
        at += 1
        for _ in range(count):
            value, at = read(data, at)
            found.append(value)
        return tuple(found), at

    return _Part(pack_all, read_all)


def _check_run(count: int) -> None:
    if count > MAX_RUN:
        raise WireError(Malformed.OVERSIZED, f"a run of {count} hosts, at most {MAX_RUN}")


def _pack_middlebox(hop: Hop) -> bytes:
    _check_middlebox(hop)
    check_name(hop)
    return pack_hop(hop)


def _read_middlebox(data: bytes, at: int) -> tuple[Hop, int]:
    hop, at = unpack_hop(data, at, "message")
    _check_middlebox(hop)
    return hop, at


def _check_middlebox(hop: Hop) -> None:
    if hop.kind not in (Position.TAP, Position.INLINE):
        raise WireError(Malformed.VALUE, f"a {hop.kind.name.lower()} in a run of middleboxes")


def _pack_step(step: Step) -> bytes:
    return step.address + (step.heir or NO_ADDRESS)


def _read_step(data: bytes, at: int) -> tuple[Step, int]:
    at_least(data, at + 32, "step")
    address, heir = data[at : at + 16], data[at + 16 : at + 32]
    return Step(address, None if heir == NO_ADDRESS else heir), at + 32


_UNKNOWN = 2**64 - 1

_FLOW = _Part(Flow.pack, _read_flow)
_CHANGE = _fixed("!Q", _nonzero, _nonzero)
_ANY_CHANGE = _fixed("!Q", _same, _same)
_COUNT = _fixed(
    "!Q", lambda n: None if n == _UNKNOWN else n, lambda n: _UNKNOWN if n is None else n
)
_ADDRESS = _fixed("!16s", _same, _same)
_BLAME = _fixed("!16s", lambda a: None if a == NO_ADDRESS else a, lambda a: a or NO_ADDRESS)
_MODE = _fixed("!B", _one_of(Mode), int)
_CAUSE = _fixed("!B", _one_of(Cause), int)
_PROGRESS = _fixed("!B", _one_of(Progress), int)
_MTU = _fixed("!H", _mtu, _mtu)
_U8 = _fixed("!B", _same, _same)
_U32 = _fixed("!I", _same, _same)
_DEVICE = _fixed("!32s", _same, _same)
_YES_OR_NO = _fixed("!B", _yes_or_no, int)
_TEXT = _Part(_pack_text, _read_text)
_DATA = _Part(_pack_data, _read_data)
_HOPS = _run(_pack_middlebox, _read_middlebox)
_STEPS = _run(_pack_step, _read_step)

_LAYOUTS: Final[tuple[tuple[int, type[Any], tuple[_Part, ...]], ...]] = (
    (
        16,
        UpdateSyn,
        (
            _FLOW,
            _CHANGE,
            _MODE,
            _ADDRESS,
            _FLOW,
            _HOPS,
            _ADDRESS,
            _MTU,
            _U32,
            _U32,
            _DEVICE,
            _DEVICE,
        ),
    ),
    (17, UpdateSynAck, (_CHANGE, _MTU)),
    (18, UpdateAck, (_FLOW, _ANY_CHANGE, _U8)),
    (19, UpdateFin, (_FLOW, _ANY_CHANGE, _COUNT)),
    (20, UpdateFinAck, (_FLOW, _ANY_CHANGE, _COUNT, _U32)),
    (21, UpdateAsk, (_FLOW, _ANY_CHANGE)),
    (22, UpdateReject, (_CHANGE, _CAUSE, _TEXT, _BLAME)),
    (23, Lock, (_FLOW, _CHANGE, _MODE, _ADDRESS, _STEPS, _ADDRESS)),
    (24, UpdateSub, (_CHANGE,)),
    (25, UpdateSubAck, (_CHANGE,)),
    (26, UpdateDrain, (_FLOW, _CHANGE, _COUNT)),
    (27, UpdateDrained, (_FLOW, _CHANGE, _COUNT)),
    (28, StatePart, (_CHANGE, _U8, _U8, _DATA)),
    (29, StateAck, (_CHANGE, _U8, _PROGRESS)),
    (30, Request, (_CHANGE, _MODE, _STEPS, _ADDRESS, _HOPS)),
    (31, Approve, (_CHANGE,)),
    (32, Reject, (_CHANGE, _CAUSE, _TEXT, _BLAME)),
    (33, Done, (_CHANGE, _U32, _YES_OR_NO)),
    (34, UpdateEmpty, (_FLOW, _CHANGE)),
)


def _packer(parts: tuple[_Part, ...]) -> Callable[[Any], bytes]:
    def pack(message: Any) -> bytes:
        _check_parts(message)
        values = msgspec.structs.astuple(message)[1:]
        return b"".join(part.pack(value) for part, value in zip(parts, values, strict=True))

    return pack


def _unpacker(kind: type[Any], parts: tuple[_Part, ...]) -> Callable[[int, bytes], Update]:
    def unpack(session: int, data: bytes) -> Update:
        at, values = 0, []
        for part in parts:
            value, at = part.read(data, at)
            values.append(value)
        exactly(data, at, kind.__name__)
        message: Update = kind(session, *values)
        _check_parts(message)
        return message

    return unpack


def _check_parts(message: Any) -> None:
    if isinstance(message, StatePart) and not message.part < message.parts <= MAX_PARTS:
        text = f"part {message.part} of {message.parts} of a state, at most {MAX_PARTS}"
        raise WireError(Malformed.VALUE, text)


CODES: Final = tuple(
    (code, kind, _packer(parts), _unpacker(kind, parts)) for code, kind, parts in _LAYOUTS
)
"""Type, message, how to pack it, and how to unpack it."""
