"""The C layouts of ``kmod/core`` as Python packs them: keys, entries, rules, configuration.

``tests/core`` compares the formats with what the compiler says (:func:`m2m.datapath._core.layout`).
"""

from __future__ import annotations

import struct
import sys
import time
from typing import NamedTuple

from m2m.datapath import Counters, DatapathError, EndReason, Row, _core
from m2m.policy.rules import Fail, PolicySet
from m2m.protocol.flow import V4_PREFIX, Flow, Proto, format_address
from m2m.protocol.splice import Splice
from m2m.protocol.translation import Action, Entry, Hook, NextHop, Position, Toward

VERSION = 8  # M2M_LAYOUT_VERSION
MAX_RULES = 4096  # M2M_MAX_RULES, in each of two sets

KEY4_SIZE = 16
_HOOK_OFFSET = 37

# tag chain ifindex role flags mss mtu addr_diff, the new header, next hop, last_seen max_seq
# max_ack generation, packets bytes session, the supersession
_ENTRY = struct.Struct("=HHIBBHHH12s4sIIIIQQQ12sI")
ENTRY_SIZE = _ENTRY.size
FLAT_SIZE = ENTRY_SIZE + 24  # as a row travels to the module: its splice, and a zero, behind it
_SEEN_FIN, _SEEN_RST, _SEEN_SEQ, _SPLICED = 1, 2, 4, 16
_ROLE_OFFSET, _FLAGS_OFFSET, _LAST_SEEN_OFFSET, _SESSION = 8, 9, 32, slice(64, 72)

_RULE = struct.Struct("=16s16s16s16sHHHHBBBBI")
RULE_SIZE = _RULE.size

# struct m2m_redirect of m2m/bpf/change.h: serial ifindex mss mtu addr_diff chain, the new header,
# next hop, generation tag packets, splice spliced again zero
_REDIRECT = struct.Struct("=IIHHHH12s4sIIQ20sIII")
_NO_SPLICE = bytes(20)
_REWRITE = struct.Struct("=HHI2xHHH12s4s12xI")  # of struct m2m_entry, what a redirect has
_CHANGING = 0x40  # M2M_ROLE_CHANGING
_ROLE = 0x3F  # without marks
_ROLES = tuple(
    (Action(role & 3), Toward(role >> 2 & 1), Position(role >> 3))
    for role in range(len(Position) << 3)
)

_EVENT = struct.Struct("=QII")  # struct m2m_event_record of m2m/bpf/sweep.h
EVENT_OVERFLOW, EVENT_ACKED, EVENT_STRAY, EVENT_COUNTED = 16, 17, 18, 19
_END_REASONS = {1: EndReason.FIN, 2: EndReason.RST, 3: EndReason.IDLE}

_TICK_SHIFT = 20
_TICK = (1 << _TICK_SHIFT) / 1e9  # s
_REFUSAL_TICKS = int(1e9) >> _TICK_SHIFT
_CLOCK_MONOTONIC_COARSE = 6  # the clock of entries; linux/time.h


class Field(NamedTuple):
    """Where a field of ``struct m2m_config`` lies, and its :mod:`struct` format."""

    offset: int
    format: str


CONFIG_SIZE = 72
HEARTBEAT = Field(0, "Q")
HEARTBEAT_LIMIT = Field(8, "Q")
CLOCK = Field(16, "Q")
JIFFY = Field(24, "I")
ACTIVE_RULES = Field(28, "I")
RULE_COUNT = (Field(32, "I"), Field(36, "I"))
GENERATION = (Field(40, "I"), Field(44, "I"))
LINGER = Field(48, "I")
TCP_IDLE = Field(52, "I")
UDP_IDLE = Field(56, "I")
PORT_LO = Field(60, "H")
PORT_HI = Field(62, "H")
IN_PORT_LO = Field(64, "H")
IN_PORT_HI = Field(66, "H")
LAYOUT_VERSION = Field(68, "I")


def ticks(seconds: float) -> int:
    """A duration in the unit of entries, 2**20 ns; at most what 31 bits hold, 26 days."""
    return min(int(seconds * 1e9) >> _TICK_SHIFT, 0x7FFFFFFF)


def jiffy() -> int:
    """Nanoseconds between two timer interrupts of this kernel."""
    return round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e9)


def now_ticks() -> int:
    """The time that a program would stamp into an entry now."""
    return (time.clock_gettime_ns(_CLOCK_MONOTONIC_COARSE) >> _TICK_SHIFT) & 0xFFFFFFFF


def pack_key(hook: Hook, flow: Flow) -> bytes:
    """``struct m2m_key``, 40 bytes."""
    return _core.pack_key(hook, flow)


def narrow(key: bytes) -> bytes:
    """``struct m2m_key4``, 16 bytes, of a key or a packed flow.

    Raises :exc:`DatapathError` unless both addresses are IPv4's.
    """
    narrowed = _core.narrow(key)
    if narrowed is None:
        ends = f"{format_address(key[:16])} and {format_address(key[16:32])}"
        raise DatapathError(f"flows between {ends} cannot be steered: so far only IPv4 can be")
    return narrowed


def widen(narrowed: bytes) -> bytes:
    """The inverse of :func:`narrow`."""
    return V4_PREFIX + narrowed[:4] + V4_PREFIX + narrowed[4:]


def pack_entry(entry: Entry, now: int) -> tuple[bytes, bytes]:
    """Key and ``struct m2m_entry`` (88 bytes), the latter fresh at *now* (ticks).

    Raises :exc:`DatapathError` for flows that are not IPv4's, and for splices of others than TCP's.
    """
    if entry.splice is not None and entry.match.proto != Proto.TCP:
        raise DatapathError(f"the row for {entry.match} cannot have a splice: only TCP's can")
    packed = _core.pack_entry(entry, now)
    if packed is None:
        for flow in (entry.match, entry.rewrite, entry.supersession):
            narrow(flow.pack())  # tells which it is
        raise AssertionError(f"all flows of {entry} are IPv4's")
    return packed


def unpack_row(key: bytes, value: bytes, now: int, splice: bytes | None = None) -> Row:
    """The entry and its counters at *now* (ticks), with its packed splice if it has one."""
    (
        _, chain, ifindex, role, flags, mss, mtu, _, new, gateway, last_seen, max_seq, _,
        generation, packets, octets, session, old, _,
    ) = _ENTRY.unpack(value)  # fmt: skip
    match = Flow.unpack(key)
    tail = key[36:]
    action = Action(role & 3)
    entry = Entry(
        session=session,
        hook=Hook(key[_HOOK_OFFSET]),
        match=match,
        rewrite=Flow.unpack(widen(new + tail)),
        action=action,
        toward=Toward(role >> 2 & 1),
        position=Position(role >> 3 & 7),
        supersession=Flow.unpack(widen(old + tail)),
        mss=mss,
        chain=chain,
        generation=generation,
        hop=NextHop(ifindex, V4_PREFIX + gateway, mtu) if ifindex else None,
        splice=None if splice is None else Splice.unpack(splice),
    )
    counters = Counters(
        packets=packets,
        bytes=octets,
        max_seq=max_seq if match.proto == Proto.TCP and flags & _SEEN_SEQ else None,
        idle=_since(last_seen, now) * _TICK,
        fin=bool(flags & _SEEN_FIN),
        rst=bool(flags & _SEEN_RST),
    )
    return Row(entry, counters)


def session_of(value: bytes) -> int:
    """The session of a packed entry; 0 for flows that are passed or refused."""
    return int.from_bytes(value[_SESSION], sys.byteorder)


def fixed_of(value: bytes) -> tuple[int, Action, Toward, Position]:
    """What of a packed entry stays as it is for as long as the entry is there."""
    return session_of(value), *_ROLES[value[_ROLE_OFFSET] & _ROLE]


def have_same_fixed(value: bytes, other: bytes) -> bool:
    """Whether two packed entries do not differ in that."""
    return (
        value[_SESSION] == other[_SESSION]
        and not (value[_ROLE_OFFSET] ^ other[_ROLE_OFFSET]) & _ROLE
    )


def idle(values: list[bytes | None], now: int) -> list[float | None]:
    """Seconds at *now* (ticks) since each of these packed entries has seen a packet; None for one
    that is not there, or of no session."""
    found = _core.idle_ticks(values, now)
    return [None if ticks is None else ticks * _TICK for ticks in found]


def says_nothing(value: bytes, now: int) -> bool:
    """Whether a packed entry is a refusal whose time is over."""
    if value[_ROLE_OFFSET] & 3 != Action.DROP:
        return False
    (last_seen,) = struct.unpack_from("=I", value, _LAST_SEEN_OFFSET)
    return _since(last_seen, now) > _REFUSAL_TICKS


def _since(last_seen: int, now: int) -> int:
    """Ticks from *last_seen* to *now*; a packet may have passed after *now* was read."""
    distance = (now - last_seen) & 0xFFFFFFFF
    return 0 if distance & 0x80000000 else distance


def pack_rules(policy: PolicySet) -> bytes:
    """The policy set's rows of ``struct m2m_rule``, 80 bytes each, in their order."""
    policies = {each.id: each for each in policy.policies}
    rows = []
    for rule in policy.rules:
        decides = policies[rule.policy]
        row = _RULE.pack(
            rule.src_lo, rule.src_hi, rule.dst_lo, rule.dst_hi,
            rule.sport_lo, rule.sport_hi, rule.dport_lo, rule.dport_hi,
            rule.proto_lo, rule.proto_hi,
            decides.fail is Fail.CLOSED, not decides.chain, rule.policy,
        )  # fmt: skip
        rows.append(row)
    return b"".join(rows)


def unpack_event(record: bytes) -> tuple[int, int, int, int]:
    """What a program has to say: about which session, what, in which direction of it, and about
    which of the agent's wishes."""
    session, kind, toward = _EVENT.unpack(record)
    return session, kind, toward & 1, toward >> 1


def end_reason(kind: int) -> EndReason | None:
    """Why a session is over, if that is what was said."""
    return _END_REASONS.get(kind)


def action_of(value: bytes) -> Action:
    """What a packed entry does."""
    return Action(value[_ROLE_OFFSET] & 3)


def is_changing(value: bytes) -> bool:
    """Whether there may be a redirect that counts instead of the rewrite in a packed entry."""
    return bool(value[_ROLE_OFFSET] & _CHANGING)


def is_spliced(value: bytes) -> bool:
    """Whether there is a splice beside a packed entry."""
    return bool(value[_FLAGS_OFFSET] & _SPLICED)


def pack_redirect(value: bytes, serial: int, splice: Splice | None = None) -> bytes:
    """``struct m2m_redirect`` (80 bytes) to what a packed entry says."""
    tag, chain, ifindex, mss, mtu, difference, new, gateway, generation = _REWRITE.unpack_from(
        value
    )
    return _REDIRECT.pack(
        serial, ifindex, mss, mtu, difference, chain, new, gateway, generation, tag, 0,
        _NO_SPLICE if splice is None else splice.pack(), splice is not None, serial, 0,
    )  # fmt: skip


def redirected(value: bytes, redirect: bytes) -> bytes:
    """A packed entry as packets find it that take its redirect into account."""
    (
        _, ifindex, mss, mtu, difference, chain, new, gateway, generation, _, _, _, spliced, _, _,
    ) = _REDIRECT.unpack(redirect)  # fmt: skip
    (
        tag, _, _, role, flags, _, _, _, _, _, last_seen, max_seq, max_ack, _,
        packets, octets, session, old, zero,
    ) = _ENTRY.unpack(value)  # fmt: skip
    flags = flags & ~_SPLICED | spliced * _SPLICED
    return _ENTRY.pack(
        tag, chain, ifindex, role, flags, mss, mtu, difference, new, gateway, last_seen, max_seq,
        max_ack, generation, packets, octets, session, old, zero,
    )  # fmt: skip


def redirected_splice(redirect: bytes) -> bytes | None:
    """The packed splice of a redirect, if it has one."""
    *_, splice, spliced, _, _ = _REDIRECT.unpack(redirect)
    return splice if spliced else None
