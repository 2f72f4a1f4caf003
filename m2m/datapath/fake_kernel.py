"""The kernel's part of a datapath in memory: tables, rules, counters, and packets that meet them.

It stays when an agent goes. Time is Trio's, so an autojump clock lets sessions expire at once.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

import trio

from m2m.datapath import (
    ALL_ADDRESSES,
    Acked,
    Counters,
    DatapathError,
    DatapathFull,
    Ended,
    EndReason,
    Event,
    Held,
    Holding,
    HoldOverflow,
    Limits,
    Reached,
    Reason,
    Row,
    Verdict,
    check_redirect,
)
from m2m.datapath._core import RuleTable, seq_after
from m2m.datapath.fake_packets import Packet, Tcp, Waiting
from m2m.policy.rules import EMPTY, Fail, Policy, PolicySet
from m2m.protocol.flow import Address, Flow, Proto
from m2m.protocol.translation import Action, Entry, Hook, NextHop, Position, Toward

__all__ = ["FakeKernel", "Fate", "Outcome"]

ENTRIES_PER_SESSION = 2  # an inline middlebox's have four, and count twice
REFUSAL = 1.0  # s for which a refused flow stays refused
SILENT = 10.0  # s for which what a spliced proxy's sockets send is dropped


class Fate(Enum):
    """What became of a packet."""

    DELIVERED = "delivered"  # rewritten, to the host's own stack
    SENT = "sent"  # rewritten, to the next hop
    UNTOUCHED = "untouched"
    HELD = "held"
    DROPPED = "dropped"


class Outcome(NamedTuple):
    """A packet after the datapath: its fate, the flow its headers now show, and why."""

    fate: Fate
    flow: Flow
    hop: NextHop | None = None
    reason: Reason | None = None
    payload: bytes = b""
    marked: bool = False  # for the proxy that is to have it
    numbers: tuple[int, int] = (0, 0)  # TCP's, of what was rewritten: sequence, acknowledgement


class _Slot:
    """One entry of the table and what it has seen."""

    def __init__(self, entry: Entry, now: float) -> None:
        self.entry = entry
        self.packets = 0
        self.bytes = 0
        self.max_seq: int | None = None
        self.max_ack: int | None = None
        self.seen = now
        self.flags = Tcp(0)
        self.waiting: Waiting | None = None
        self.watched: int | None = None  # the acknowledgement to tell of
        self.awaited: int | None = None  # the number of packets to tell of

    def count(self, packet: Packet, now: float) -> None:
        self.packets += 1
        self.bytes += packet.length
        self.seen = now
        if packet.flow.proto == Proto.TCP:
            if packet.flags & Tcp.SYN and self.flags & (
                Tcp.FIN | Tcp.RST
            ):  # the same ports, reused
                self.flags, self.max_seq, self.max_ack = Tcp(0), None, None
            self.flags |= packet.flags
            if self.max_seq is None or seq_after(packet.end, self.max_seq):
                self.max_seq = packet.end
            news = self.max_ack is None or seq_after(packet.ack, self.max_ack)
            if packet.flags & Tcp.ACK and news:
                self.max_ack = packet.ack

    def has_acked(self, number: int) -> bool:
        return self.max_ack is not None and not seq_after(number, self.max_ack)

    def row(self, now: float) -> Row:
        fin, rst = bool(self.flags & Tcp.FIN), bool(self.flags & Tcp.RST)
        idle = now - self.seen
        return Row(self.entry, Counters(self.packets, self.bytes, self.max_seq, idle, fin, rst))


class _Decided:
    """A flow that is not steered: passed until idle, or refused until a time."""

    def __init__(self, action: Action, until: float) -> None:
        self.action = action
        self.until = until


class FakeKernel:
    """The tables of one host, and the packets that meet them.

    *interfaces* are the indexes that exist: others cannot be attached, and as long as none is
    attached packets are untouched. Without, a test need not think of interfaces. *ports* are the
    subsession ports.
    """

    def __init__(
        self,
        limits: Limits = Limits(),  # noqa: B008 - immutable
        *,
        interfaces: frozenset[int] | None = None,
        ports: range = range(61000, 65536),
    ) -> None:
        self.limits = limits
        self.interfaces = interfaces
        self.ports = ports
        self.released: list[Outcome] = []  # what became of held packets, in order
        self.clear()

    def clear(self) -> None:
        """Be as a kernel that never heard of M2M."""
        self.attached: frozenset[int] = frozenset()
        self.addresses: frozenset[Address] = frozenset()
        self.policy: PolicySet = EMPTY
        self.reasons: Counter[Reason] = Counter()
        self.notes: dict[int, bytes] = {}
        self.agent_present = False
        self._rules = RuleTable(EMPTY)
        self._policies: dict[int | None, Policy] = {}
        self._slots: dict[tuple[Hook, Flow], _Slot] = {}
        self._sessions: dict[int, set[tuple[Hook, Flow]]] = {}
        self._ended: set[int] = set()
        self._deadlines: list[tuple[float, int]] = []
        self._decided: dict[Flow, _Decided] = {}
        self._held: dict[Flow, list[Packet]] = {}
        self._announced: deque[Flow] = deque()
        self._news: deque[Event] = deque()
        self._holding: dict[tuple[Hook, Flow], _Slot] = {}
        self._changed = trio.Event()

    # -- packets ------------------------------------------------------------------------

    def packet(
        self,
        hook: Hook,
        flow: Flow,
        *,
        payload: bytes = b"",
        length: int | None = None,
        seq: int = 0,
        ack: int = 0,
        flags: Tcp = Tcp.ACK,
        ttl: int = 64,
    ) -> Outcome:
        """Let one packet meet *hook*; *length* is its IP total length (default: as it comes).

        The outcome is that of the packet; what a part of it becomes that goes on while the rest
        waits is in ``released``.
        """
        if length is None:
            length = 20 + (20 if flow.proto == Proto.TCP else 8) + len(payload)
        return self._pass(Packet(hook, flow, payload, length, seq, ack, flags, ttl))

    def _pass(self, packet: Packet) -> Outcome:
        if self.interfaces is not None and not self.attached:
            return self._untouched(packet)
        if packet.hook is Hook.OUT and packet.opens and packet.flow in self._held:
            return self._hold(packet)  # entries may stand by now, but others wait before it
        slot = self._slots.get((packet.hook, packet.flow))
        if slot is not None and slot.entry.splice is not None:
            if packet.flags & Tcp.SYN:
                return self._drop(packet, Reason.NOT_SPLICED)
            if slot.entry.toward is Toward.LEFT:  # numbers of the left side are what counts
                packet = packet.carried(slot.entry.splice, Toward.LEFT)
        if slot is not None and slot.waiting is not None:
            return self._wait(packet, slot, slot.waiting)
        if slot is not None:
            return self._translate(packet, slot)
        if packet.hook is Hook.OUT:
            return self._unsteered(packet)
        mine = not self.addresses.isdisjoint((packet.flow.dst, ALL_ADDRESSES))
        subsession = packet.flow.sport in self.ports and packet.flow.dport in self.ports
        if packet.hook is Hook.IN and mine and subsession:
            return self._drop(packet, Reason.NO_ENTRY)
        return self._untouched(packet)

    def _translate(self, packet: Packet, slot: _Slot) -> Outcome:
        entry = slot.entry
        if entry.action is Action.SEND:
            if packet.hook is Hook.IN and packet.ttl <= 1:
                return self._drop(packet, Reason.TTL_EXPIRED)
            if entry.hop is not None and packet.length > entry.hop.mtu:
                return self._drop(packet, Reason.TOO_BIG)
        before = slot.flags
        slot.count(packet, trio.current_time())
        if slot.flags & (Tcp.FIN | Tcp.RST) != before & (Tcp.FIN | Tcp.RST):
            self._watch(entry.session)
        if slot.watched is not None and slot.has_acked(slot.watched):
            self._tell_acked(slot)
        if slot.awaited is not None and slot.packets >= slot.awaited:
            self._tell_reached(slot)
        fate = Fate.SENT if entry.action is Action.SEND else Fate.DELIVERED
        received, opens = packet.hook is Hook.IN, bool(packet.flags & Tcp.SYN)
        marked = opens and received and entry.position is Position.PROXY
        if entry.splice is not None and entry.toward is Toward.RIGHT:
            packet = packet.carried(entry.splice, Toward.RIGHT)
        return Outcome(
            fate, entry.rewrite, entry.hop, payload=packet.payload, marked=marked,
            numbers=(packet.seq, packet.ack),
        )  # fmt: skip

    def _wait(self, packet: Packet, slot: _Slot, waiting: Waiting) -> Outcome:
        goes, waits = waiting.sort(packet, slot.max_ack)
        if waits is None:
            assert goes is not None
            return self._translate(goes, slot)
        if goes is not None:
            self.released.append(self._translate(goes, slot))
        waiting.packets.append(waits)
        self.reasons[Reason.HELD] += 1
        if sum(map(len, self._live_packets())) > self.limits.hold_packets:
            self._overflow(slot)
        return Outcome(Fate.HELD, packet.flow, reason=Reason.HELD, payload=waits.payload)

    def _live_packets(self) -> Iterator[list[Packet]]:
        return (slot.waiting.packets for slot in self._holding.values() if slot.waiting)

    def _overflow(self, slot: _Slot) -> None:
        self._news.append(HoldOverflow(slot.entry.session, slot.entry.toward))
        self._let_go(slot)
        self.wake()

    def _let_go(self, slot: _Slot) -> int:
        self._holding.pop(slot.entry.key, None)
        waiting, slot.waiting = slot.waiting, None
        packets = waiting.packets if waiting is not None else []
        self.released += (self._translate(packet, slot) for packet in packets)
        return len(packets)

    def _tell_acked(self, slot: _Slot) -> None:
        slot.watched = None
        self._news.append(Acked(slot.entry.session, slot.entry.toward))
        self.wake()

    def _tell_reached(self, slot: _Slot) -> None:
        slot.awaited = None
        self._news.append(Reached(slot.entry.session, slot.entry.toward))
        self.wake()

    def _unsteered(self, packet: Packet) -> Outcome:
        if (decided := self._decided.get(packet.flow)) is not None:
            now = trio.current_time()
            if now >= decided.until:
                del self._decided[packet.flow]
            elif decided.action is Action.PASS:
                decided.until = now + self._idle_after(packet.flow)
                return self._untouched(packet, Reason.PASSED)
            else:
                return self._drop(packet, Reason.REFUSED)
        policy = self._policies.get(self._rules.match(packet.flow)) if packet.opens else None
        if policy is None or not policy.chain:
            return self._untouched(packet)
        if not self.agent_present:
            return self._agent_away(packet, policy.fail)
        return self._hold(packet)

    def _hold(self, packet: Packet) -> Outcome:
        if sum(map(len, self._held.values())) >= self.limits.hold_packets:
            return self._drop(packet, Reason.HOLD_OVERFLOW)
        if packet.flow not in self._held:
            self._announced.append(packet.flow)
            self.wake()
        self._held.setdefault(packet.flow, []).append(packet)
        self.reasons[Reason.HELD] += 1
        return Outcome(Fate.HELD, packet.flow, reason=Reason.HELD, payload=packet.payload)

    def _agent_away(self, packet: Packet, fail: Fail) -> Outcome:
        if fail is Fail.OPEN:
            return self._untouched(packet, Reason.AGENT_AWAY_OPEN)
        return self._drop(packet, Reason.AGENT_AWAY_CLOSED)

    def _untouched(self, packet: Packet, reason: Reason | None = None) -> Outcome:
        if reason is not None:
            self.reasons[reason] += 1
        return Outcome(Fate.UNTOUCHED, packet.flow, reason=reason, payload=packet.payload)

    def _drop(self, packet: Packet, reason: Reason) -> Outcome:
        self.reasons[reason] += 1
        return Outcome(Fate.DROPPED, packet.flow, reason=reason, payload=packet.payload)

    # -- what an agent does, through FakeDatapath ---------------------------------------

    def set_policy(self, policy: PolicySet) -> None:
        self.policy, self._rules = policy, RuleTable(policy)
        self._policies = {rule.id: rule for rule in policy.policies}

    def install(self, entries: Sequence[Entry]) -> None:
        added = {entry.key for entry in entries if entry.key not in self._slots}
        room = self.limits.sessions * ENTRIES_PER_SESSION - len(self._slots)
        if len(added) > room:
            raise DatapathFull(
                f"the table has room for {room} more entries, not {len(added)};"
                f" it was opened for {self.limits.sessions} sessions (--sessions)"
            )
        now = trio.current_time()
        for entry in entries:
            self.remove(entry.key)
            self._slots[entry.key] = _Slot(entry, now)
            self._sessions.setdefault(entry.session, set()).add(entry.key)
            if entry.hook is Hook.OUT:
                self._decided.pop(entry.match, None)
        for session in {entry.session for entry in entries}:
            self._ended.discard(session)
            self._watch(session)

    def remove(self, key: tuple[Hook, Flow]) -> None:
        slot = self._slots.pop(key, None)
        if slot is None:
            return
        self._let_go(slot)
        self._leave(slot.entry)

    def keep(self, notes: Mapping[int, bytes]) -> None:
        for session, note in notes.items():
            if session not in self.notes and len(self.notes) >= self.limits.sessions:
                raise DatapathFull(f"no room for another note: there are {len(self.notes)}")
            self.notes[session] = note

    def redirect(self, entries: Sequence[Entry]) -> list[int]:
        slots = self._known(entry.key for entry in entries)
        for slot, entry in zip(slots, entries, strict=True):
            check_redirect(slot.entry, entry)
        for slot, entry in zip(slots, entries, strict=True):
            slot.entry = entry
        return [slot.packets for slot in slots]

    def hold(self, keys: Iterable[tuple[Hook, Flow]], *, substream: bool) -> list[Holding]:
        slots = self._known(keys)
        for slot in slots:
            if substream and slot.entry.match.proto != Proto.TCP:
                raise DatapathError(
                    f"packets of {slot.entry.match} have no substreams: they are not TCP"
                )
        return [self._begin(slot, substream=substream) for slot in slots]

    def _begin(self, slot: _Slot, *, substream: bool) -> Holding:
        if slot.waiting is None:
            slot.waiting = Waiting(trio.current_time() + self.limits.hold_time)
            self._holding[slot.entry.key] = slot
            if substream and slot.max_seq is not None:
                slot.waiting.cover(slot.max_seq)
            self.wake()
        elif not substream:
            slot.waiting.cover(None)
        return slot.waiting.state(slot.packets)

    def resume(self, keys: Iterable[tuple[Hook, Flow]]) -> list[int]:
        return [self._let_go(self._slots[key]) if key in self._slots else 0 for key in keys]

    def watch_ack(self, keys: Iterable[tuple[Hook, Flow]], number: int) -> None:
        for slot in self._known(keys):
            slot.watched = number
            if slot.has_acked(number):
                self._tell_acked(slot)

    def watch_count(self, keys: Iterable[tuple[Hook, Flow]], number: int) -> None:
        for slot in self._known(keys):
            slot.awaited = number
            if slot.packets >= number:
                self._tell_reached(slot)

    def inherit(self, old: tuple[Hook, Flow], new: tuple[Hook, Flow]) -> None:
        source, heir = self._slots.get(old), self._slots.get(new)
        if source is None or heir is None or source.entry.session != heir.entry.session:
            return
        heir.max_seq = _larger(heir.max_seq, source.max_seq)
        heir.max_ack = _larger(heir.max_ack, source.max_ack)

    def splice(
        self, rows: tuple[Entry, Entry], silent: tuple[tuple[Hook, Flow], tuple[Hook, Flow]]
    ) -> tuple[bool, bool]:
        slots = self._known(row.key for row in rows)
        if not all(slot.waiting is not None and slot.waiting.checkpoint is None for slot in slots):
            raise DatapathError(f"packets of {rows[0].match} and {rows[1].match} are not held")
        for row, slot in zip(rows, slots, strict=True):
            self._leave(slot.entry)
            slot.entry = row
            self._sessions.setdefault(row.session, set()).add(row.key)
            if row.toward is Toward.LEFT and row.splice is not None and slot.waiting is not None:
                seq, ack = row.splice.seq[Toward.LEFT], -row.splice.seq[Toward.RIGHT]
                slot.max_seq = _plus(slot.max_seq, seq)
                slot.max_ack = _plus(slot.max_ack, ack)
                packets = slot.waiting.packets  # which wait in the numbers that count
                packets[:] = (one.carried(row.splice, Toward.LEFT) for one in packets)
        for key in silent:
            self.remove(key)
            self._decided[key[1]] = _Decided(Action.DROP, trio.current_time() + SILENT)
        self._watch(rows[0].session)
        return True, True

    def rename(self, keys: Iterable[tuple[Hook, Flow]], session: int, name: int) -> None:
        for key in keys:
            slot = self._slots.get(key)
            if slot is not None and slot.entry.session == session:
                self._leave(slot.entry)
                slot.entry = slot.entry._replace(session=name)
                self._sessions.setdefault(name, set()).add(key)
                self._watch(name)

    def _leave(self, entry: Entry) -> None:
        """It is of that session no more."""
        keys = self._sessions[entry.session]
        keys.discard(entry.key)
        if not keys:
            del self._sessions[entry.session]
            self._ended.discard(entry.session)

    def _known(self, keys: Iterable[tuple[Hook, Flow]]) -> list[_Slot]:
        found = []
        for hook, flow in keys:
            slot = self._slots.get((hook, flow))
            if slot is None:
                raise DatapathError(f"there is no row for {flow} ({hook.name})")
            found.append(slot)
        return found

    def rows(self, keys: Iterable[tuple[Hook, Flow]] | None = None) -> list[Row]:
        now = trio.current_time()
        wanted = list(self._slots) if keys is None else keys
        return [self._slots[key].row(now) for key in wanted if key in self._slots]

    def idle(self, keys: Iterable[tuple[Hook, Flow]]) -> list[float | None]:
        now, slots = trio.current_time(), map(self._slots.get, keys)
        return [None if slot is None else slot.row(now).counters.idle for slot in slots]

    def release(self, flow: Flow, verdict: Verdict) -> None:
        now = trio.current_time()
        if verdict is not Verdict.STEER:
            self.remove((Hook.OUT, flow))
        if verdict is Verdict.PASS:
            self._decided[flow] = _Decided(Action.PASS, now + self._idle_after(flow))
        elif verdict is Verdict.DROP:
            self._decided[flow] = _Decided(Action.DROP, now + REFUSAL)
        for packet in self._held.pop(flow, ()):
            unheld = verdict is Verdict.STEER and (packet.hook, flow) not in self._slots
            self.released.append(self._untouched(packet) if unheld else self._pass(packet))

    def agent_gone(self) -> None:
        """Nobody will decide any more: what is held goes by its policy."""
        self.agent_present = False
        held, self._held = self._held, {}
        self._announced.clear()
        for slot in list(self._holding.values()):
            self._let_go(slot)
        self._news.clear()
        for packets in held.values():
            self.released += map(self._pass, packets)

    # -- events -------------------------------------------------------------------------

    def next_event(self) -> Event | None:
        """The next event that is due now."""
        while self._announced:
            flow = self._announced.popleft()
            if flow in self._held:
                return Held(flow)
        now = trio.current_time()
        for slot in list(self._holding.values()):
            if slot.waiting is not None and slot.waiting.until <= now:
                self._overflow(slot)
        if self._news:
            return self._news.popleft()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, session = heapq.heappop(self._deadlines)
            if session not in self._sessions or session in self._ended:
                continue
            due, reason = self._end_of(session)
            if due <= now:
                self._ended.add(session)
                return Ended(session, reason)
            heapq.heappush(self._deadlines, (due, session))  # packets have come since
        return None

    async def wait(self) -> None:
        """Return when :meth:`next_event` is worth asking again."""
        due = self._deadlines[0][0] if self._deadlines else math.inf
        waiting = (slot.waiting.until for slot in self._holding.values() if slot.waiting)
        due = min(due, *waiting, math.inf)
        with trio.move_on_at(due):
            await self._changed.wait()
        self._changed = trio.Event()

    def _end_of(self, session: int) -> tuple[float, EndReason]:
        """When and why a session ends if no other packet comes."""
        slots = [self._slots[key] for key in self._sessions[session]]
        seen = max(slot.seen for slot in slots)
        if any(slot.flags & Tcp.RST for slot in slots):
            return seen + self.limits.linger, EndReason.RST
        closed = {slot.entry.toward for slot in slots if slot.flags & Tcp.FIN}
        if closed == set(Toward):
            return seen + self.limits.linger, EndReason.FIN
        return seen + self._idle_after(slots[0].entry.match), EndReason.IDLE

    def _idle_after(self, flow: Flow) -> float:
        return self.limits.tcp_idle if flow.proto == Proto.TCP else self.limits.udp_idle

    def _watch(self, session: int) -> None:
        heapq.heappush(self._deadlines, (self._end_of(session)[0], session))
        self.wake()

    def wake(self) -> None:
        self._changed.set()


def _plus(number: int | None, more: int) -> int | None:
    return None if number is None else (number + more) & 0xFFFFFFFF


def _larger(one: int | None, other: int | None) -> int | None:
    """The later of two sequence numbers, of which either may be missing."""
    if one is None or other is None:
        return other if one is None else one
    return other if seq_after(other, one) else one
