"""Where events become commands and commands become deeds.

Everything that can happen to a session comes through :meth:`Sessions.feed`, one event at a time:
the node (sans-IO) says what to do, and it is done, in order, before the next event is looked at.
The same turn orders all use of the datapath, whose methods are for one task at a time. On the
way of a set-up nothing here waits for another task.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Sequence,
)
from typing import Any, Final, TypeAlias

import structlog
import trio

from m2m import datapath
from m2m.agent.api import EventKind, SessionState, format_session
from m2m.agent.chain import Chains
from m2m.agent.changes import Changes
from m2m.agent.handing import Handing
from m2m.agent.journal import Journal
from m2m.agent.keeping import Keeping
from m2m.agent.moves import Moves
from m2m.agent.next_hops import NextHops, move
from m2m.agent.openings import Openings
from m2m.agent.states import States, open_conntrack
from m2m.agent.timers import Timers
from m2m.agent.turn import Turn
from m2m.agent.watch import Network, NoRoute
from m2m.datapath import Datapath, DatapathError, EndReason, Row
from m2m.datapath._core import RuleTable
from m2m.identity import ANONYMOUS
from m2m.policy.exempt import Service, exempting
from m2m.policy.gateways import of_served_clients
from m2m.policy.messages import Role
from m2m.policy.rules import PolicySet
from m2m.protocol.commands import (
    Accept,
    CancelTimer,
    Closed,
    Command,
    Established,
    Forget,
    GiveDeeds,
    HalvesJoined,
    HandedOver,
    Install,
    Keep,
    NotHanded,
    Rebound,
    Redirect,
    Refrain,
    Refuse,
    Rehome,
    Remove,
    Rename,
    Send,
    SetTimer,
    Steer,
    Taken,
)
from m2m.protocol.devices import is_open, names_in
from m2m.protocol.events import (
    Acked,
    Adopted,
    Ended,
    Event,
    HandedBefore,
    HoldOverflow,
    InstallFailed,
    Reached,
    Received,
    RenamedBefore,
    Route,
    Spliced,
    SplicedBefore,
    TimerFired,
)
from m2m.protocol.flow import Address, Flow
from m2m.protocol.node import Node
from m2m.protocol.rebind import End
from m2m.protocol.session import Session, State
from m2m.protocol.translation import (
    Entry,
    Hook,
    Position,
    SessionView,
    entries_for,
    splice_of_leg,
    view_and_spare,
    without_moved,
)
from m2m.protocol.wire import Message, next_host
from nf_adapters.state import StateAdapter

__all__ = ["Sessions"]

_log = structlog.get_logger()

Key: TypeAlias = tuple[Hook, Flow]

_CHUNK = 256  # sessions looked at before other tasks get their turn

_STATES = {
    State.OPENING: SessionState.OPENING,
    State.CONFIRMING: SessionState.OPENING,
    State.ESTABLISHED: SessionState.ESTABLISHED,
    State.ADOPTED: SessionState.ESTABLISHED,
    State.CLOSING: SessionState.CLOSING,
    State.GONE: SessionState.CLOSING,
}


class Sessions:
    """All sessions of this host: one node, and the hands that do what it says.

    ``turn`` is to be held by whoever uses node or datapath. Who cancels the tasks that use it
    holds it, too: then nothing is cut short that was begun.
    """

    def __init__(
        self,
        node: Node,
        datapath: Datapath,
        network: Network,
        send: Callable[[Address, Message], None],
        journal: Journal,
        can_forward: Callable[[], bool],
        keeping: Keeping,
        turn: Turn,
        own_traffic: Sequence[Service] = (),
        *,
        role: Role = Role.CLIENT,
        open_state: Callable[[], Awaitable[StateAdapter | None]] = open_conntrack,
    ) -> None:
        """*role*: at a client and a gateway sessions begin. Elsewhere rules are known, but hold no
        packet."""
        self.node = node
        self.datapath = datapath
        self.journal = journal
        self.turn = turn
        self.chains = Chains(journal, self._gateway, lambda: keeping.lasting)
        self._network = network
        self._send = send
        self._keeping = keeping
        self._can_forward = can_forward
        self._own_traffic = own_traffic
        self._role = role
        self._timers = Timers()
        self.states = States(open_state, self.feed)
        self._next_hops = NextHops(network)
        self.changes = Changes(node, datapath, self.states, journal, self._next_hops.to)
        self.moves = Moves(node, datapath, network, journal, self._next_hops, keeping)
        self.handing = Handing(node, datapath, network, journal, keeping, self.feed)
        self.left: Callable[[int], None] = lambda _: None
        """Told of each session that a proxy here has left, when all hosts of it know."""
        self.openings = Openings(
            node, datapath, self.chains, journal, turn, self.feed, self.route_to
        )

    # -- what happens -------------------------------------------------------------------

    async def feed(self, event: Event) -> None:
        """Let the node decide over *event* and carry out what it says, wholly."""
        async with self.turn:
            await self._carry_out(event)

    async def received(self, peer: Address, message: Message, device: bytes = ANONYMOUS) -> None:
        """A message from another agent, whose device this is, has come."""
        self.chains.has_answered(peer)
        route = None
        following = next_host(message)
        if following is not None:
            try:
                route = self.route_to(following)
            except NoRoute as error:
                number = getattr(message, "session", 0)
                _log.info("no way on", session=format_session(number), why=str(error))
        await self.feed(Received(peer, message, route, device))

    async def told(self, event: datapath.Event) -> None:
        """The datapath has something to say."""
        match event:
            case datapath.Held(flow):
                await self.openings.held(flow)
            case datapath.Ended(session, reason):
                await self.ended(session, reason)
            case datapath.Acked(session, toward):
                await self.feed(Acked(session, toward))
            case datapath.Reached(session, toward):
                await self.feed(Reached(session, toward))
            case datapath.HoldOverflow(session, toward):
                self.journal.counts["hold overflow"] += 1
                await self.feed(HoldOverflow(session, toward))

    async def ended(self, session: int, reason: EndReason) -> None:
        """The datapath has seen the end of a session."""
        await self.feed(Ended(session, reason.value))

    async def splice(self, event: Spliced, silent: tuple[Key, Key]) -> int:
        """Two halves that meet here, of which all packets are held, become one, and packets go on;
        how many had waited. In turn already. Raises :exc:`~m2m.datapath.DatapathError`, and nothing
        has changed."""
        session, half = (self.node.sessions[one] for one in (event.session, event.half))
        view = session.view._replace(position=Position.TAP, right=half.right, splice=event.splice)
        right, left = entries_for(view, self._next_hops.to)
        more_right, more_left = await self.datapath.splice((right, left), silent)
        held = await self.datapath.resume((right.key, left.key))
        counts = event.counts._replace(more_right=more_right, more_left=more_left)
        await self._carry_out(event._replace(counts=counts))
        self._keeping.may_be_over()
        return sum(held)

    async def run_timers(self) -> None:
        """Tell the node whose time has come, for ever."""
        async for session, timer in self._timers.expired():
            await self.feed(TimerFired(session, timer))

    async def load_policy(self, policy: PolicySet) -> None:
        """From now on hold and choose by *policy*; live sessions keep their chains."""
        rules = RuleTable(policy)
        async with self.turn:
            changed = _held_by(policy) != _held_by(self.chains.policy)
            if changed:  # else only loads have changed
                await self._hold_by(policy)
            self.chains.load(policy, rules)
        for nf in policy.nfs:
            for instance in nf.instances:
                try:
                    self._network.way_to(instance.address)  # warms the cache
                except NoRoute as error:
                    _log.debug("no way to an instance", nf=nf.name, why=str(error))

    async def _hold_by(self, policy: PolicySet) -> None:
        """From now on hold what is for *policy* to decide and begins here."""
        match self._role:
            case Role.CLIENT:
                await self.datapath.load_policy(exempting(policy, self._own_traffic))
            case Role.GATEWAY:
                served = of_served_clients(policy, self._gateway())
                await self.datapath.load_policy(exempting(served, self._own_traffic))

    async def own_addresses_changed(self) -> None:
        """A gateway may be another one by now."""
        if self._role is Role.GATEWAY:
            async with self.turn:
                await self._hold_by(self.chains.policy)

    async def adopt(self) -> None:
        """Take over the sessions that the kernel has kept while no agent was here."""
        found: dict[int, list[Entry]] = {}
        async for row in self.datapath.dump():
            found.setdefault(row.entry.session, []).append(row.entry)
        notes = await self.datapath.kept()
        halves, former = names_in(notes)
        for old in found.keys() & former.keys():  # killed while it renamed them
            rows, name = found.pop(old), former[old]
            async with self.turn:
                await self.datapath.rename([row.key for row in rows], old, name)
            found.setdefault(name, []).extend(row._replace(session=name) for row in rows)
        for number, entries in found.items():
            try:
                kept, moved = without_moved(entries)
                view, spare = view_and_spare(kept)
            except ValueError as error:
                _log.warning("incomplete session removed", why=str(error))
                async with self.turn:
                    await self.datapath.remove(entry.key for entry in entries)
                self.journal.counts["incomplete"] += 1
            else:
                self._next_hops.note(entries)
                self.moves.stands(view)
                await self.feed(
                    Adopted(view, spare, moved, notes.pop(number, b""), splice_of_leg(kept, spare))
                )
                self.journal.counts["adopted"] += 1
        handed = {one: note for one, note in notes.items() if is_open(note, *End)}
        await self.feed(HandedBefore(tuple(handed.items())))
        await self.feed(RenamedBefore(tuple(former.items())))
        await self.feed(SplicedBefore(tuple(halves.items())))
        async with self.turn:  # of sessions that are no more
            rest = notes.keys() - handed.keys() - halves.keys() - former.keys()
            await self.datapath.forget(rest)
        if found:
            _log.info("sessions taken over", sessions=len(self))

    async def follow_network(self) -> None:
        """Addresses or routes may have changed: sessions that end here move, and the others get
        their new next hops."""
        moving = 0
        for moved in self.moves.due():
            moving += len(moved.sessions)
            async with self.turn:
                events = await self.moves.in_turn(moved)
            for event in events:
                await self.feed(event)
                await trio.lowlevel.checkpoint()  # the answers about the first may be here
        async with self.turn:
            await self.moves.foresee()
        if moving:
            _log.info("the network has changed, sessions move", sessions=moving)
        await self._follow_routes()

    async def _follow_routes(self) -> None:
        self._next_hops.links_changed()
        moved = self._next_hops.moved()
        if not moved:
            return
        count = 0
        for sessions in self._chunks():
            async with self.turn:
                # These get it when the hop has confirmed. The kernel may know of a new way already,
                # and its news of the address there has not been read.
                under_way = self.node.mobility.moving() | self.moves.stranded
                for session in sessions:
                    if session.id not in under_way:
                        count += await move(session, moved, self.datapath)
            await trio.lowlevel.checkpoint()
        self._next_hops.have_moved(moved, self.node.sessions.values())
        _log.info("next hops changed", neighbours=len(moved), sessions=count)

    # -- what is asked ------------------------------------------------------------------

    def __len__(self) -> int:
        """How many sessions are at this host, those that come and go included."""
        return len(self.node.sessions)

    def route_to(self, host: Address) -> Route:
        """How to reach *host*. Raises :exc:`~m2m.agent.watch.NoRoute`."""
        way = self._network.way_to(host)
        return Route(way.source, way.hop.mtu)

    def state(self, session: int) -> SessionState | None:
        """Where a session is in its life; None when it is not here."""
        found = self.node.sessions.get(session)
        return None if found is None else _STATES[found.state]

    async def rows(self, view: SessionView) -> list[Row]:
        """A session's entries with their counters."""
        async with self.turn:
            return await self.datapath.rows([entry.key for entry in entries_for(view)])

    async def all_rows(
        self,
    ) -> AsyncIterator[tuple[SessionView, SessionState, list[Row]]]:
        """Every session with what is in the datapath of it; others get their turn in between."""
        for sessions in self._chunks():
            views = [(session.view, _STATES[session.state]) for session in sessions]
            keys = [entry.key for view, _ in views for entry in entries_for(view)]
            async with self.turn:
                rows = await self.datapath.rows(keys)
            found: dict[int, list[Row]] = {}
            for row in rows:
                found.setdefault(row.entry.session, []).append(row)
            for view, state in views:
                yield view, state, found.get(view.session, [])
            await trio.lowlevel.checkpoint()

    # -- what is done -------------------------------------------------------------------

    async def _carry_out(self, event: Event) -> None:
        """Do what the node says to *event*, then what it says to that, until it is content."""
        events = deque((event,))
        while events:
            for command in self.node.handle(events.popleft()):
                if isinstance(command, Send):  # the most frequent, and others wait for it
                    self._send(*command)
                    continue
                try:
                    answer = await self._do(command)
                except (DatapathError, NoRoute) as error:
                    if not isinstance(command, Install | Accept | Redirect):
                        raise
                    session = _session_of(command)
                    _log.warning("not installed", session=format_session(session), why=str(error))
                    # What would have followed takes the entries for granted.
                    events.appendleft(InstallFailed(session, str(error)))
                    break
                if answer is not None:
                    events.append(answer)

    async def _do(self, command: Command) -> Event | None:
        act = _ACTS.get(type(command))
        return await (self.changes.do(command) if act is None else act(self, command))

    async def _set_timer(self, command: SetTimer) -> None:
        self._timers.set(*command)

    async def _cancel_timer(self, command: CancelTimer) -> None:
        self._timers.cancel(*command)

    async def _steer(self, command: Steer) -> None:
        await self.openings.steer(command)

    async def _refuse(self, command: Refuse) -> None:
        await self.openings.refuse(command)

    async def _remove(self, command: Remove) -> None:
        await self.datapath.remove([entry.key for entry in entries_for(command.view)])

    async def _rename(self, command: Rename) -> None:
        view = command.view
        keys = [entry.key for entry in entries_for(view)]
        await self.datapath.rename(keys, view.session, command.name)

    async def _halves_joined(self, command: HalvesJoined) -> None:
        self.left(command.session)

    async def _established(self, command: Established) -> None:
        self.moves.stands(command.view)
        self._tell(EventKind.ESTABLISHED, command.view, "")

    async def _move(self, command: Rehome | Keep) -> Event | None:
        return await self.moves.do(command)

    async def _rebound(self, command: Rebound) -> None:
        await self.moves.do(command)
        self.handing.settled(command.view.session, "")

    async def _hand(
        self, command: GiveDeeds | NotHanded | Refrain | HandedOver | Taken | Forget
    ) -> Event | None:
        return await self.handing.do(command)

    async def _closed(self, command: Closed) -> None:
        view, why = command
        self.handing.settled(view.session, why)
        self.chains.loads.ends(view.supersession)
        await self.datapath.forget([view.session])
        self._keeping.may_be_over()
        self._tell(EventKind.CLOSED, view, why)

    async def _install(self, command: Install) -> None:
        view = command.view
        if view.position is Position.INLINE and not self._can_forward():
            raise DatapathError(
                "this host runs an inline network function but does not forward packets: run "
                "sysctl -w net.ipv4.ip_forward=1"
            )
        await self.datapath.install(entries_for(view, self._next_hops.to))

    def _chunks(self) -> Iterator[list[Session]]:
        """All sessions, a bounded number at a time."""
        sessions = list(self.node.sessions.values())
        for start in range(0, len(sessions), _CHUNK):
            yield sessions[start : start + _CHUNK]

    def _gateway(self) -> Collection[Address]:
        """The addresses of this host if it is a gateway; else none."""
        return self._network.addresses if self._role is Role.GATEWAY else ()

    def _tell(self, kind: EventKind, view: SessionView, why: str) -> None:
        if _log.is_enabled_for(logging.DEBUG):  # the texts cost more than the rest
            _log.debug(
                kind.value,
                session=format_session(view.session),
                position=view.position.name.lower(),
                supersession=str(view.supersession),
                why=why,
            )
        self.journal.tell(kind, why, view.session, view.supersession)


_Act: TypeAlias = Callable[[Sessions, Any], Awaitable[Event | None]]

# By type: a match statement looks at one class after the other, and at attributes by their names.
_ACTS: Final[dict[type, _Act]] = {
    Install: Sessions._install,
    SetTimer: Sessions._set_timer,
    CancelTimer: Sessions._cancel_timer,
    Steer: Sessions._steer,
    Refuse: Sessions._refuse,
    Remove: Sessions._remove,
    Established: Sessions._established,
    Rehome: Sessions._move,
    Keep: Sessions._move,
    Rebound: Sessions._rebound,
    GiveDeeds: Sessions._hand,
    NotHanded: Sessions._hand,
    Refrain: Sessions._hand,
    HandedOver: Sessions._hand,
    Taken: Sessions._hand,
    Forget: Sessions._hand,
    Closed: Sessions._closed,
    Rename: Sessions._rename,
    HalvesJoined: Sessions._halves_joined,
}


def _held_by(policy: PolicySet) -> tuple[object, ...]:
    """What decides which packets are held."""
    return policy.rules, policy.policies, policy.gateways


def _session_of(command: Install | Accept | Redirect) -> int:
    return command.view.session if isinstance(command, Install) else command.session
