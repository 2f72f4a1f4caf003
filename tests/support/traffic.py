"""Packets for the simulated world: a session that talks while its chain is changed.

Kernels here count, hold and split packets as the datapath contract says, links keep their order
and lose nothing, so every packet that does not arrive, or not in order, or at the wrong network
function, is the protocol's fault.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from m2m.protocol.commands import ChangeDone, ChangeRefused
from m2m.protocol.events import (
    Acked,
    ChangeWanted,
    Ended,
    Holding,
    HoldOverflow,
    Reached,
    RequestWanted,
    Route,
)
from m2m.protocol.flow import Address, Flow
from m2m.protocol.session import State
from m2m.protocol.translation import Action, Entry, Hook, Position, Toward, entries_for
from m2m.protocol.update import Mode, Step
from m2m.protocol.wire import Hop
from tests.support.simulation import Fate, Host, Kernel, World

WRAP = 1 << 32
NF_TAKES = 0.0003  # s, for a packet in an inline network function
SEGMENT = 100  # bytes


def after(a: int, b: int) -> bool:
    """Whether sequence number *a* comes after *b* (RFC 1982)."""
    return a != b and (a - b) % WRAP < WRAP // 2


@dataclass
class Packet:
    flow: Flow
    toward: Toward
    number: int | None  # None: a pure ACK
    seq: int = 0
    end: int = 0
    ack: int | None = None
    seen_by: list[Address] = field(default_factory=list)

    def count_on(self, sums: tuple[int, int]) -> None:
        """Be on the other side of what adds *sums* to the numbers of the streams to right and
        left."""
        self.seq = (self.seq + sums[self.toward]) % WRAP
        self.end = (self.end + sums[self.toward]) % WRAP
        if self.ack is not None:
            self.ack = (self.ack - sums[1 - self.toward]) % WRAP


class Seen(NamedTuple):
    """What a network function noted of a packet."""

    toward: Toward
    number: int | None
    seq: int
    end: int


@dataclass
class _Hold:
    substream: bool
    beyond: int | None  # None: nothing has passed, all data is beyond
    queue: deque[Packet] = field(default_factory=deque)


class BusyKernel(Kernel):
    """A kernel that packets pass through."""

    hold_limit = 10_000

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.counts: dict[tuple[Hook, Flow], int] = {}
        self.max_seq: dict[tuple[Hook, Flow], int] = {}
        self.max_ack: dict[tuple[Hook, Flow], int] = {}
        self.holds: dict[tuple[Hook, Flow], _Hold] = {}
        self.watches: dict[tuple[Hook, Flow], int] = {}
        self.awaited: dict[tuple[Hook, Flow], int] = {}
        self.nf: dict[int, list[Seen]] = {}  # what the NF has seen of a session
        self.exported: dict[int, int] = {}  # how much it had seen when its state was read

    @property
    def world(self) -> BusyWorld:
        assert isinstance(self.host.world, BusyWorld)
        return self.host.world

    # -- packets ------------------------------------------------------------------------

    def packet(self, hook: Hook, packet: Packet) -> None:
        key = hook, packet.flow
        entry = self.entries.get(key)
        if entry is None:
            self.world.lost.append((self.world.now, self.host.index, packet))
            return
        if entry.splice is not None and entry.toward is Toward.LEFT:
            packet.count_on(entry.splice.seq)  # rows count as it is counted left of a splice
        hold = self.holds.get(key)
        if hold is None or not self._wait(hold, key, packet):
            self._pass(key, entry, packet)
        elif len(hold.queue) > self.hold_limit:
            self.resume(key)
            self.tell(HoldOverflow(entry.session, entry.toward))

    def _wait(self, hold: _Hold, key: tuple[Hook, Flow], packet: Packet) -> bool:
        if hold.substream:
            beyond = packet.seq if hold.beyond is None else hold.beyond
            if not after(packet.end, beyond):
                return False
            if after(beyond, packet.seq):  # it lies across
                first = replace(packet, end=beyond, seen_by=list(packet.seen_by))
                self._pass(key, self.entries[key], first)
                packet = replace(packet, seq=beyond)
            elif packet.ack is not None:
                pure = replace(packet, number=None, end=packet.seq, seen_by=list(packet.seen_by))
                self._pass(key, self.entries[key], pure)
                if packet.number is None:
                    return True
        hold.queue.append(packet)
        self.world.held += 1
        return True

    def _pass(self, key: tuple[Hook, Flow], entry: Entry, packet: Packet) -> None:
        self.counts[key] = self.counts.get(key, 0) + 1
        self._look_at_count(key)
        if packet.end and after(packet.end, self.max_seq.get(key, packet.end - 1)):
            self.max_seq[key] = packet.end
        if packet.ack is not None and after(packet.ack, self.max_ack.get(key, packet.ack - 1)):
            self.max_ack[key] = packet.ack
            self._look_at_watch(key)
        if entry.splice is not None and entry.toward is Toward.RIGHT:
            packet.count_on(entry.splice.seq)
        packet.flow = entry.rewrite
        if entry.position is Position.TAP:
            self._show(entry, packet)
        if entry.action is Action.SEND:
            self.world.carry(self.host, packet)
        elif entry.position is Position.INLINE:
            self.world.after(NF_TAKES, lambda: self._through_nf(entry, packet))
        else:
            self.world.delivered(packet)

    def _through_nf(self, entry: Entry, packet: Packet) -> None:
        self._show(entry, packet)
        self.packet(Hook.OUT, packet)

    def _show(self, entry: Entry, packet: Packet) -> None:
        packet.seen_by.append(self.host.address)
        seen = Seen(packet.toward, packet.number, packet.seq, packet.end)
        self.nf.setdefault(entry.session, []).append(seen)
        self.world.seen.setdefault(self.host.index, []).append(seen)

    # -- what the agent asks for --------------------------------------------------------

    def remove(self, entries: tuple[Entry, ...]) -> None:
        super().remove(entries)
        for entry in entries:
            hold = self.holds.pop(entry.key, None)
            assert hold is None, "packets that wait have lost their entry"
            for table in (self.counts, self.max_seq, self.max_ack, self.watches, self.awaited):
                table.pop(entry.key, None)
        for session in {entry.session for entry in entries} - self.sessions().keys():
            self.nf.pop(session, None)

    def count(self, key: tuple[Hook, Flow]) -> int | None:
        return self.counts.get(key, 0) if key in self.entries else None

    def hold(self, key: tuple[Hook, Flow], *, substream: bool) -> Holding:
        assert key in self.entries
        checkpoint = self.max_seq.get(key)
        before = self.holds.get(key)
        queue = deque() if before is None else before.queue
        self.holds[key] = _Hold(substream, checkpoint, queue)
        return Holding(0, 0, self.counts.get(key, 0), checkpoint)

    def resume(self, key: tuple[Hook, Flow]) -> int:
        hold = self.holds.pop(key, None)
        if hold is None:
            return 0
        count = len(hold.queue)
        for packet in hold.queue:
            self._pass(key, self.entries[key], packet)
        return count

    def resume_all(self) -> None:
        for key in list(self.holds):
            self.resume(key)
        self.watches.clear()
        self.awaited.clear()

    def watch_ack(self, key: tuple[Hook, Flow], number: int) -> None:
        self.watches[key] = number
        self._look_at_watch(key)

    def _look_at_watch(self, key: tuple[Hook, Flow]) -> None:
        number, ack = self.watches.get(key), self.max_ack.get(key)
        if number is not None and ack is not None and not after(number, ack):
            del self.watches[key]
            entry = self.entries[key]
            self.tell(Acked(entry.session, entry.toward))

    def watch_count(self, key: tuple[Hook, Flow], number: int) -> None:
        if key in self.entries:
            self.awaited[key] = number
            self._look_at_count(key)

    def _look_at_count(self, key: tuple[Hook, Flow]) -> None:
        number = self.awaited.get(key)
        if number is not None and self.counts.get(key, 0) >= number:
            del self.awaited[key]
            entry = self.entries[key]
            self.tell(Reached(entry.session, entry.toward))

    def tell(self, event: Acked | Reached | HoldOverflow) -> None:
        self.world.after(0, lambda: self.host.feed(event))

    # -- the network function's state ---------------------------------------------------

    def export(self, session: int) -> bytes | None:
        count = self.exported[session] = len(self.nf.get(session, ()))
        self.world.exports += 1
        return count.to_bytes(4, "big") * 400  # in two parts

    def adopt_state(self, session: int, state: bytes) -> bool:
        assert len(state) == 1600
        assert not self.nf.get(session), "packets came before the state"
        return not self.world.refuses_state

    def release(self, session: int, *, keep: bool) -> None:
        before = self.exported.pop(session, None)
        if not keep and before is not None:
            self.world.late.extend(self.nf.get(session, ())[before:])


class BusyWorld(World):
    """A world in which one session talks all the time."""

    kernel: type[BusyKernel] = BusyKernel

    def __init__(
        self,
        middleboxes: int,
        rng: random.Random,
        *,
        others: int = 2,
        flow: int = 0,
        fate: Callable[[], Fate] | None = None,
        start: int = 0,
    ) -> None:
        self.lost: list[tuple[float, int, Packet]] = []
        self.late: list[Seen] = []  # after their NF's state had left for good
        self.held = 0
        self.seen: dict[int, list[Seen]] = {}  # by each host's network function, ever
        self.exports = 0
        self.first_other = middleboxes + 2
        self.refuses_state = False
        self.small_mtu = -1
        self.sent: dict[Toward, list[Packet]] = {Toward.RIGHT: [], Toward.LEFT: []}
        self.got: dict[Toward, list[Packet]] = {Toward.RIGHT: [], Toward.LEFT: []}
        self.talking = False
        self.again = 0.0  # how many segments are sent twice
        self._next = {Toward.RIGHT: start, Toward.LEFT: (start + WRAP // 3) % WRAP}
        self._received: dict[Toward, int] = {}
        self._acked: dict[Toward, int] = {}
        self._free: dict[tuple[int, int], float] = {}  # links: nothing arrives before
        super().__init__(middleboxes, rng, others=others, make_kernel=self.kernel)
        self.open(flow)
        self.run(1.0)
        (self.session,) = self.ids()
        self.conversation = self.flow(flow)
        self.change_numbers = itertools.count(1)
        if fate is not None:
            self.fate = fate

    def mtu(self, host: Host) -> int:
        return 1500 - (host.index == self.small_mtu)

    # -- packets ------------------------------------------------------------------------

    def talk(self, every: float = 0.001) -> None:
        self.talking = True
        for toward in Toward:
            self._received.setdefault(toward, self._next[toward])
            self._acked.setdefault(toward, self._next[toward])
            self.after(self.rng.random() * every, lambda t=toward: self._say(t, every))

    def _say(self, toward: Toward, every: float) -> None:
        if not self.talking:
            return
        seq = self._next[toward]
        end = self._next[toward] = (seq + SEGMENT) % WRAP
        self._send(toward, len(self.sent[toward]), seq, end)
        if self.rng.random() < self.again:  # a retransmission, of up to five segments in one
            first = (end - SEGMENT * self.rng.randint(1, 5)) % WRAP
            if not after(self._acked[toward], first):
                self._send(toward, -1, first, end)
        self.after(every * self.rng.uniform(0.5, 1.5), lambda: self._say(toward, every))

    def _send(self, toward: Toward, number: int | None, seq: int, end: int) -> None:
        flow = self.conversation if toward is Toward.RIGHT else self.conversation.reverse()
        packet = Packet(flow, toward, number, seq, end, self._received[_other(toward)])
        if number is not None and number >= 0:
            self.sent[toward].append(packet)
        host = self.client if toward is Toward.RIGHT else self.server
        going = Packet(flow, toward, number, seq, end, packet.ack)
        host.kernel.packet(Hook.OUT, going)

    def carry(self, sender: Host, packet: Packet) -> None:
        to = self._by_address[packet.flow.dst]
        link = sender.index, to.index
        at = max(self.now + self.rng.uniform(0.0002, 0.003), self._free.get(link, 0.0) + 1e-6)
        self._free[link] = at
        self.after(at - self.now, lambda: to.kernel.packet(Hook.IN, packet))

    def delivered(self, packet: Packet) -> None:
        toward = packet.toward
        back = _other(toward)
        if packet.ack is not None and after(packet.ack, self._acked[back]):
            self._acked[back] = packet.ack
        if packet.number is None:
            return
        self.got[toward].append(packet)
        there = self._received[toward]
        if not after(packet.seq, there) and after(packet.end, there):
            self._received[toward] = packet.end
        self._send(back, None, self._next[back], self._next[back])

    # -- changes ------------------------------------------------------------------------

    def host(self, index: int) -> Host:
        return (*self.hosts, *self.others)[index]

    def hop(self, index: int) -> Hop:
        return Hop(self.host(index).address, Position.TAP if index % 2 else Position.INLINE, "nf")

    def path(self) -> list[int]:
        """The hosts a packet to the server passes now, by the kernels."""
        traced = self.trace(self.conversation)
        assert traced is not None, "the chain is broken"
        back = self.trace(self.conversation.reverse())
        assert back is not None, "the way back is broken"
        assert [host.index for host in back[0]] == [host.index for host in traced[0]][::-1]
        return [host.index for host in traced[0]]

    def change(
        self, at: int, old: list[int], right: int, new: list[int], mode: Mode = Mode.LF
    ) -> int:
        """Have host *at* lead a change; heirs in the order of the runs."""
        number = next(self.change_numbers)
        heirs = [self.host(index).address for index in new]
        steps = tuple(
            Step(self.host(index).address, heir)
            for index, heir in itertools.zip_longest(old, heirs[: len(old)])
        )
        host = self.host(at)
        host.feed(
            ChangeWanted(
                self.session, number, mode, steps, self.host(right).address,
                tuple(self.hop(index) for index in new), Route(host.address, self.mtu(host)),
            )
        )  # fmt: skip
        return number

    def ask_to_be_replaced(self, at: int, new: list[int], mode: Mode = Mode.LF) -> int:
        number = next(self.change_numbers)
        hops = tuple(self.hop(index) for index in new)
        self.host(at).feed(RequestWanted(self.session, number, mode, None, (), None, hops))
        return number

    def outcomes(self) -> dict[int, ChangeDone | ChangeRefused]:
        found = {}
        for host in (*self.hosts, *self.others):
            for one in host.told:
                if isinstance(one, ChangeDone | ChangeRefused):
                    assert one.change not in found, "one change, two outcomes"
                    found[one.change] = one
        return found

    # -- what must hold in the end ------------------------------------------------------

    def everybody(self) -> Iterator[Host]:
        return iter((*self.hosts, *self.others))

    def idle_out(self) -> None:
        """What kernels do after a while to sessions that no packets come by."""
        traced = self.trace(self.conversation)
        on_path = [] if traced is None else traced[0]
        for host in self.everybody():
            for session in host.kernel.sessions():
                if host not in on_path:
                    host.feed(Ended(session, "idle"))

    def rows(self, host: Host) -> dict[tuple[Hook, Flow], Entry]:
        """What the host's kernel has, as it is to be compared with the sessions there."""
        return host.kernel.entries

    def check_whole(self) -> list[int]:
        """The chain is connected, its hosts agree, and nobody else has anything left."""
        path = self.path()
        for host in self.everybody():
            session = host.node.sessions.get(self.session)
            if host.index not in path:
                assert session is None, f"host {host.index} still has the session"
                assert not host.kernel.entries
                assert host.ports.in_use == 0
            else:
                assert session is not None
                assert session.change is None, f"host {host.index} is in a change still"
                assert not session.waiting
                assert session.state is State.ESTABLISHED, f"host {host.index}: {session.state}"
                expected = {entry.key: entry for entry in entries_for(session.view)}
                assert self.rows(host) == expected
                assert host.ports.in_use == (session.right is not None)
            assert not host.other_timers
            assert not host.kernel.holds
        legs = [self.host(index).node.sessions[self.session] for index in path]
        for left, right in itertools.pairwise(legs):
            assert left.right == right.left
        return path

    def check_nothing_lost(self) -> None:
        assert not self.lost, f"{len(self.lost)} packets found no entry, first {self.lost[0]}"
        for toward in Toward:
            numbers = [packet.number for packet in self.got[toward]]
            assert sorted(numbers) == list(range(len(self.sent[toward])))

    def check_order(self) -> None:
        self.check_nothing_lost()
        for toward in Toward:
            numbers = [packet.number for packet in self.got[toward]]
            assert numbers == sorted(numbers), f"packets to the {toward.name} were overtaken"

    def check_bytes(self) -> None:
        """Every byte has arrived; with retransmissions some of them twice."""
        assert not self.lost
        for toward in Toward:
            assert self._received[toward] == self._next[toward]

    def check_substreams(self, old: int, new: int) -> None:
        """The new host's NF has seen no byte that the old one has, nor one before it."""
        for toward in Toward:
            before, behind = (
                [one for one in self.seen[nf] if one.toward is toward and one.end != one.seq]
                for nf in (old, new)
            )
            assert before
            assert behind
            last = before[0].end
            for one in before:
                last = one.end if after(one.end, last) else last
            for one in behind:
                assert not after(last, one.seq), f"{one} came to the wrong network function"


def _other(toward: Toward) -> Toward:
    return Toward.LEFT if toward is Toward.RIGHT else Toward.RIGHT
