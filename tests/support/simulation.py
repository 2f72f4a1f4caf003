"""A small world for the session protocol: hosts, their kernels, a bad network, and a clock.

Everything is in memory and deterministic. Messages travel as the bytes they would be, sealed and
opened by each agent's :class:`Association`. A host is a *kernel* (entries, held flows; survives
its agent) and an *agent* (node, association, timers; does not). The kernel checks what a real one
cannot: that nobody overwrites or removes another session's entry, and that held packets get
exactly one verdict.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import NamedTuple

from m2m.auth import DomainKey
from m2m.identity import Identity
from m2m.protocol.association import Association
from m2m.protocol.change import Part, Phase
from m2m.protocol.commands import (
    Accept,
    CancelTimer,
    Command,
    Count,
    ExportState,
    Forget,
    GiveDeeds,
    Hold,
    ImportState,
    Install,
    Keep,
    Redirect,
    Refrain,
    Refuse,
    Rehome,
    ReleaseState,
    Remove,
    Resume,
    Send,
    SetTimer,
    Steer,
    WatchAck,
    WatchCount,
    Withdraw,
)
from m2m.protocol.deed import Deed
from m2m.protocol.devices import is_open
from m2m.protocol.events import (
    Adopted,
    Counted,
    DeedsGiven,
    Ended,
    Event,
    HandedBefore,
    Holding,
    InstallFailed,
    Moved,
    Opened,
    Received,
    Redirected,
    Rehomed,
    Resumed,
    Route,
    StateExported,
    StateImported,
    Timer,
    TimerFired,
)
from m2m.protocol.flow import Address, Flow, Proto, parse_address
from m2m.protocol.node import Node, Settings
from m2m.protocol.ports import PortAllocator
from m2m.protocol.rebind import End
from m2m.protocol.session import State
from m2m.protocol.translation import (
    Action,
    Entry,
    Hook,
    Position,
    SessionView,
    entries_for,
    splice_of_leg,
    view_and_spare,
    without_moved,
)
from m2m.protocol.wire import Hop, WireError, next_host

KEY = DomainKey(b"simulated domain key, 32 bytes..")


class Fate(NamedTuple):
    """What the network does to one datagram: when its copies arrive, seconds from now."""

    copies: tuple[float, ...]


PROMPT = Fate((0.001,))
LOST = Fate(())
DOUBLED = Fate((0.001, 0.0015))
LATE = Fate((0.3,))
LATE_DOUBLE = Fate((0.001, 1.2))


class Kernel:
    """A host's translation table and held packets. Subclasses carry packets, too."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.entries: dict[tuple[Hook, Flow], Entry] = {}
        self.held: set[Flow] = set()
        self.notes: dict[int, bytes] = {}

    def install(self, view: SessionView) -> None:
        self.add(entries_for(view))

    def add(self, entries: tuple[Entry, ...]) -> None:
        for entry in entries:
            there = self.entries.get(entry.key)
            assert there is None or there.session == entry.session, "overwrites another session"
            self.entries[entry.key] = entry

    def remove(self, entries: tuple[Entry, ...]) -> None:
        for entry in entries:
            there = self.entries.pop(entry.key, None)
            assert there is None or there.session == entry.session, "removes another session's"

    def redirect(self, entry: Entry) -> int:
        """Returns how many packets the entry had passed on."""
        there = self.entries[entry.key]
        assert there.session == entry.session, "redirects another session's"
        self.entries[entry.key] = entry
        return self.count(entry.key) or 0

    def count(self, key: tuple[Hook, Flow]) -> int | None:
        return 0 if key in self.entries else None

    def hold(self, key: tuple[Hook, Flow], *, substream: bool) -> Holding | None:
        """Returns what is to be told, but for session and change."""
        return Holding(0, 0, self.count(key) or 0, None)

    def resume(self, key: tuple[Hook, Flow]) -> int:
        return 0

    def resume_all(self) -> None:
        """What a datapath does when its agent is away."""

    def watch_ack(self, key: tuple[Hook, Flow], number: int) -> None:
        raise AssertionError("there are no sequence numbers here")

    def export(self, session: int) -> bytes | None:
        return b""

    def adopt_state(self, session: int, state: bytes) -> bool:
        return True

    def release(self, session: int, *, keep: bool) -> None:
        pass

    def sessions(self) -> dict[int, list[Entry]]:
        found: dict[int, list[Entry]] = {}
        for entry in self.entries.values():
            found.setdefault(entry.session, []).append(entry)
        return found


class _Killed(Exception):
    """An agent is killed between two rows that it changes."""


class Host:
    """A kernel, and an agent while it runs."""

    def __init__(self, world: World, index: int) -> None:
        self.world = world
        self.index = index
        self.address = parse_address(f"10.0.{index}.1")
        self.secret = world.rng.randbytes(32)
        self.home = self.address  # where it can be reached
        self.kernel = world.make_kernel(self)
        self.up = False
        self.failing_installs = 0
        self.failing_redirects = 0
        self.failing_writes = 0  # of deeds
        self.killed_after_writing = False
        self.rows_to_live: int | None = None  # its agent is killed when it has renamed so many
        self.timers: dict[int, int] = {}  # session -> number of its latest setting
        self.other_timers: dict[tuple[int, Timer], int] = {}  # of changes and requests
        self.verdicts: list[Command] = []
        self.told: list[Command] = []  # what is for reports only
        self.start()

    def __repr__(self) -> str:
        return f"host {self.index}"

    def start(self) -> None:
        """Start the agent; it takes over what the kernel has."""
        rng = self.world.rng
        self.up = True
        self.timers = {}
        self.other_timers = {}
        identity = Identity(self.secret)
        self.association = Association(KEY, rng, device=identity.device)
        self.ports = PortAllocator(61000, 61000 + self.world.ports - 1, rng)
        self.node = Node(
            self.world.settings, self.ports, rng, identity, self.association.devices
        )  # fmt: skip
        before = [
            (number, note)
            for number, note in self.kernel.notes.items()
            if number not in self.kernel.sessions() and is_open(note, *End)
        ]
        self.carry_out(self.node.handle(HandedBefore(tuple(before))))
        for number, entries in self.kernel.sessions().items():
            kept, moved = without_moved(entries)
            view, spare = view_and_spare(kept)
            note, splice = self.kernel.notes.get(number, b""), splice_of_leg(kept, spare)
            self.carry_out(self.node.handle(Adopted(view, spare, moved, note, splice)))
        self.check()
        self.look()

    def kill_agent(self) -> None:
        """The kernel lets held packets go by itself when its agent is gone."""
        self.up = False
        self.kernel.held.clear()
        self.kernel.resume_all()

    def power_off(self) -> None:
        self.kill_agent()
        self.kernel = self.world.make_kernel(self)

    def feed(self, event: Event) -> None:
        """Handle an event and carry out what the node says, as the agent's shell does."""
        if not self.up:
            return
        try:
            self.carry_out(self.node.handle(event))
        except _Killed:
            self.kill_agent()
        else:
            self.check()

    def carry_out(self, commands: list[Command]) -> None:
        """Do all of this, and then tell the node what came of it."""
        kernel, answers = self.kernel, []
        for command in commands:
            match command:
                case Send(peer, message):
                    self.world.transmit(self, peer, self.association.seal(peer, message))
                case Install() | Accept() | Redirect():
                    answer = self.try_to(command)
                    if isinstance(answer, InstallFailed):
                        self.carry_out(self.node.handle(answer))
                        break
                    if answer is not None:
                        answers.append(answer)
                case Remove(view):
                    kernel.remove(entries_for(view))
                    kernel.notes.pop(view.session, None)
                case Keep(notes):
                    kernel.notes.update(notes)
                case Rehome(batch, accepted, redirected):
                    answers.append(Rehomed(batch, self.rehome(accepted, redirected)))
                case Withdraw(entries=entries):
                    kernel.remove(entries)
                case Count(session, change, key):
                    answers.append(Counted(session, change, key, kernel.count(key)))
                case Hold(session, change, key, substream):
                    holding = kernel.hold(key, substream=substream)
                    answers.append(holding._replace(session=session, change=change))
                case Resume(session, change, key):
                    answers.append(Resumed(session, change, kernel.resume(key)))
                case WatchAck(key=key, number=number):
                    kernel.watch_ack(key, number)
                case WatchCount(key=key, number=number):
                    kernel.watch_count(key, number)
                case ExportState(session, change):
                    answers.append(StateExported(session, change, kernel.export(session)))
                case ImportState(session, change, data):
                    ok = kernel.adopt_state(session, data)
                    answers.append(StateImported(session, change, ok))
                case ReleaseState(session, keep):
                    kernel.release(session, keep=keep)
                case Steer(flow) | Refuse(flow):
                    assert flow in kernel.held, "a verdict for nothing"
                    kernel.held.remove(flow)
                    self.verdicts.append(command)
                    if isinstance(command, Steer):
                        self.world.steered(flow)
                case SetTimer(session, delay, timer):
                    assert 0 < delay < 1e6
                    number = self.world.next_number()
                    self.set_timer(session, timer, number)
                    self.world.after(delay, lambda s=session, t=timer, n=number: self.fire(s, t, n))
                case CancelTimer(session, timer):
                    self.set_timer(session, timer, None)
                case GiveDeeds(request, deeds):
                    if self.failing_writes:
                        self.failing_writes -= 1
                        answers.append(DeedsGiven(request, ok=False))
                        continue
                    self.world.deeds += deeds
                    if self.killed_after_writing:
                        self.killed_after_writing = False
                        self.kill_agent()
                        return
                    answers.append(DeedsGiven(request, ok=True))
                case Refrain(flows):
                    for flow in flows:
                        kernel.entries.pop((Hook.OUT, flow), None)
                case Forget(sessions):
                    for session in sessions:
                        kernel.notes.pop(session, None)
                case _:
                    self.told.append(command)
        for answer in answers:
            self.carry_out(self.node.handle(answer))

    def try_to(self, command: Install | Accept | Redirect) -> Event | None:
        if self.failing_installs:
            self.failing_installs -= 1
            session = command.view.session if isinstance(command, Install) else command.session
            return InstallFailed(session, "it is full")
        match command:
            case Install(view):
                self.kernel.install(view)
            case Accept(entries=entries):
                self.kernel.add(entries)
            case Redirect(session, change, entry):
                if self.failing_redirects:
                    self.failing_redirects -= 1
                    return InstallFailed(session, "it is full")
                return Redirected(session, change, self.kernel.redirect(entry))
        return None

    def rehome(
        self, accepted: tuple[Entry, ...], redirected: tuple[Entry, ...]
    ) -> tuple[int, ...] | None:
        if self.failing_redirects:
            self.failing_redirects -= 1
            self.kernel.remove(accepted)
            return None
        for entry in accepted:
            self._may_die()
            self.kernel.add((entry,))
        packets = []
        for entry in redirected:
            self._may_die()
            packets.append(self.kernel.redirect(entry))
        return tuple(packets)

    def _may_die(self) -> None:
        if self.rows_to_live is not None:
            self.rows_to_live -= 1
            if self.rows_to_live < 0:
                self.rows_to_live = None
                raise _Killed

    def set_timer(self, session: int, timer: Timer, number: int | None) -> None:
        timers, key = (
            (self.timers, session) if timer is Timer.SESSION
            else (self.other_timers, (session, timer))
        )  # fmt: skip
        if number is None:
            timers.pop(key, None)
        else:
            timers[key] = number

    def fire(self, session: int, timer: Timer, number: int) -> None:
        running = (
            self.timers.get(session) if timer is Timer.SESSION
            else self.other_timers.get((session, timer))
        )  # fmt: skip
        if running == number:
            self.set_timer(session, timer, None)
            self.feed(TimerFired(session, timer))

    def open(self, flow: Flow, chain: tuple[Hop, ...], fail_open: bool) -> None:
        """An application sends the first packet of a flow."""
        if not self.up or flow in self.kernel.held or (Hook.OUT, flow) in self.kernel.entries:
            return
        self.kernel.held.add(flow)
        self.feed(Opened(flow, chain, fail_open, 1, 1, Route(self.home, 1500)))

    def look(self) -> None:
        """What the agent does when its network has changed."""
        if not self.up or not self.home:
            return
        mobility = self.node.mobility
        route = Route(self.home, self.world.mtu(self))
        due = [(key[1:], found) for key, found in mobility.ends().items() if key[1] != self.home]
        for (own, hop), sessions in (*due, *mobility.unconfirmed().items()):
            self.feed(Moved(own, hop, route, tuple(sessions)))

    def datagram(self, peer: Address, data: bytes) -> None:
        if not self.up:
            return
        try:
            message, reply, device = self.association.open(peer, data)
        except WireError:
            return
        if reply is not None:
            self.world.transmit(self, peer, reply)
        if message is not None:
            route = None
            if next_host(message) is not None:
                route = Route(self.home, self.world.mtu(self))
            self.feed(Received(peer, message, route, device))

    def check(self) -> None:
        """What holds after every event."""
        live = list(self.node.sessions.values())
        rights = [session.right for session in live if session.right is not None]
        for session in live:
            if session.change is not None and session.change.part is Part.LEFT:
                rights.append(session.change.spare)
            if session.ending is not None and session.ending.spare_ports:
                rights.append(session.ending.spare_leg)
        assert len(rights) == len(set(rights))
        other_names = self.node.mobility.ports_in_use()
        assert len(rights) + other_names == self.ports.in_use
        for session in live:
            waiting = session.state in (State.OPENING, State.CONFIRMING, State.CLOSING)
            # One that leaves tells its neighbour again and again, by the change's timer.
            change = session.change
            leaving = (
                change is not None
                and change.part is Part.OLD
                and change.phase >= Phase.FINISHING
                and (session.id, Timer.CHANGE) in self.other_timers
            )
            assert session.id in self.timers or leaving or not waiting, (
                "nothing would ever end this state"
            )
            changing = session.change is not None
            assert ((session.id, Timer.CHANGE) in self.other_timers) == changing, (
                "nothing would ever end this change" if changing else "a timer for nothing"
            )
            assert changing or not session.waiting, "nothing would ever end this wait"
        self.timers.pop(0, None)
        assert self.timers.keys() <= self.node.sessions.keys()
        open_ones = {session.id for session in live if session.state is not State.CLOSING}
        assert self.kernel.sessions().keys() <= open_ones
        assert len(self.node._register._by_flow) == len(open_ones)


class World:
    """Hosts in a row (client, middleboxes, server), a network between them, and the time."""

    def __init__(
        self,
        middleboxes: int,
        rng: random.Random,
        *,
        fate: Callable[[], Fate] = lambda: PROMPT,
        ports: int = 4536,
        others: int = 0,
        make_kernel: Callable[[Host], Kernel] = Kernel,
    ) -> None:
        self.rng = rng
        self.make_kernel = make_kernel
        self.settings = Settings()
        self.ports = ports
        self.fate = fate
        self.now = 0.0
        self.steered: Callable[[Flow], None] = lambda flow: None
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self.hosts = [Host(self, index) for index in range(middleboxes + 2)]
        last = middleboxes + 2
        self.others = [Host(self, index) for index in range(last, last + others)]
        self._by_address = {host.address: host for host in (*self.hosts, *self.others)}
        self.client, self.server = self.hosts[0], self.hosts[-1]
        # What sessions begin with, and keep, whoever is the client or the server later on.
        self.first = self.client.address, self.server.address
        self.deeds: list[Deed] = []

    # -- time and messages --------------------------------------------------------------

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def after(self, delay: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay, self.next_number(), what))

    def mtu(self, host: Host) -> int:
        """Of every link that a host sends by."""
        return 1500 - host.index

    def transmit(self, sender: Host, to: Address, data: bytes) -> None:
        source = sender.home  # by which it is known to have come, wherever the sender is by then
        if not source:
            return  # there is no route
        for delay in self.fate().copies:
            self.after(delay, lambda: self._deliver(source, to, data))

    def _deliver(self, peer: Address, to: Address, data: bytes) -> None:
        if to in self._by_address:
            self._by_address[to].datagram(peer, data)

    def move(self, host: Host, to: str | None) -> None:
        """*host* has another address from now on, or none. Sockets go on using its first one."""
        self._by_address.pop(host.home, None)
        host.home = b"" if to is None else parse_address(to)
        if to is not None:
            assert host.home not in self._by_address, "somebody else is there"
            self._by_address[host.home] = host
            host.look()

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._queue and self._queue[0][0] <= until:
            self.now, _, what = heapq.heappop(self._queue)
            what()
        self.now = until

    # -- sessions -----------------------------------------------------------------------

    def flow(self, number: int) -> Flow:
        proto = Proto.UDP if number % 3 == 2 else Proto.TCP
        client, server = self.first
        return Flow(proto, client, 40000 + number, server, 80)

    def chain(self) -> tuple[Hop, ...]:
        middle = tuple(
            Hop(host.address, Position.TAP if host.index % 2 else Position.INLINE, "nf")
            for host in self.hosts[1:-1]
        )
        return (*middle, Hop(self.server.address, Position.SERVER))

    def open(self, number: int, *, fail_open: bool = False) -> None:
        self.client.open(self.flow(number), self.chain(), fail_open)

    def ids(self) -> set[int]:
        return {session for host in self.hosts for session in host.node.sessions}

    def trace(self, flow: Flow) -> tuple[list[Host], Flow] | None:
        """Where a packet of *flow* (either direction) ends up by the kernels' tables, and what
        it looks like there; None when nothing steers it or it is lost on the way."""
        host = self.server if flow.src == self.first[1] else self.client
        passed, packet = [host], flow
        entry = host.kernel.entries.get((Hook.OUT, packet))
        while entry is not None:
            packet = entry.rewrite
            if entry.action is Action.SEND:
                if packet.dst not in self._by_address:
                    return None  # nobody is there now
                host = self._by_address[packet.dst]
                passed.append(host)
                entry = host.kernel.entries.get((Hook.IN, packet))
            elif entry.position is Position.INLINE:  # through the host's own stack
                entry = host.kernel.entries.get((Hook.OUT, packet))
            else:
                return passed, packet
            if len(passed) > 20:
                return None
        return None

    # -- what must hold in the end ------------------------------------------------------

    def idle_out(self) -> None:
        """What the kernels do after a while: end the sessions whose client sends no packets."""
        for host in self.hosts[1:]:
            for session in host.kernel.sessions():
                at_client = self.client.node.sessions.get(session)
                if at_client is None or at_client.state is not State.ESTABLISHED:
                    host.feed(Ended(session, "idle"))

    def check_agreement(self, *, others: bool = False) -> None:
        """Every session stands at all hosts with matching tuples, or is gone from all. *others*:
        there may be rows of other names of legs, and rows may have been installed as such."""
        for session in self.ids():
            here = [host.node.sessions.get(session) for host in self.hosts]
            states = [None if one is None else one.state for one in here]
            assert states == [State.ESTABLISHED] * len(here), f"{session:016x}: {states}"
            for left, right in itertools.pairwise(here):
                assert left is not None
                assert right is not None
                assert left.right is not None
                assert left.right == right.left
                assert left.supersession == right.supersession
        for host in self.hosts:
            live = host.node.sessions.values()
            expected = {entry.key: entry for one in live for entry in entries_for(one.view)}
            there = host.kernel.entries
            if others:
                there = {
                    key: row._replace(generation=expected[key].generation)
                    for key, row in there.items()
                    if key in expected
                }
            assert there == expected
            assert not host.kernel.held
            in_use = host.ports.in_use - (host.node.mobility.ports_in_use() if others else 0)
            assert in_use == sum(one.right is not None for one in live)
            assert host.timers.keys() == (
                host.node.sessions.keys() if host is self.client else set()
            )
        for session in self.client.node.sessions.values():
            flow = session.supersession
            assert self.trace(flow) == (self.hosts, flow)
            assert self.trace(flow.reverse()) == (self.hosts[::-1], flow.reverse())

    def check_empty(self) -> None:
        self.check_agreement()
        assert not self.ids()
