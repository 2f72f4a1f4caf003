"""A proxy of this host leaves a live session (``docs/splicing.md``, "Leaving").

What is beyond what has come so far waits in the kernel while the proxy passes on what it has. When
nothing is under way any more, its two connections become one in the datapath, and end here unheard.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Sequence

import structlog
import trio

from m2m.agent.api import EventKind, HopReport, format_session
from m2m.agent.asking import Asking, Wanted
from m2m.agent.order import ME, Do, Wish
from m2m.agent.plan import Plan, plan
from m2m.agent.sessions import Sessions
from m2m.agent.tcp_ends import (
    LITTLE,
    Ends,
    Kept,
    NoConnection,
    ask_peer,
    end_unheard,
    flow_of,
    say_now,
    splice_ends,
)
from m2m.datapath import DatapathError
from m2m.datapath.tcp_sockets import TcpSockets
from m2m.errors import M2MError
from m2m.policy.rules import ALLOWED, Asker, ChangeMode
from m2m.protocol.events import Counts, Spliced
from m2m.protocol.flow import Flow
from m2m.protocol.session import Role, Session, State
from m2m.protocol.splice import NotSpliceable
from m2m.protocol.translation import Position, Toward, receiver, sender

__all__ = ["Departure", "Leaving", "Stays"]

_log = structlog.get_logger()

_AT_ONCE = 8  # removals
_TRIES, _PAUSE = 5, 1.0  # of one, and seconds before the second, which doubles
_LIMIT = 1.5  # s: less than packets are held, and than a process waits for an answer
_LATE = 0.2  # s after that: nobody waits for an answer
_SHRINK = 0.5  # s: how long packets may go on until little is under way
_LOOK_AGAIN, _LOOK_AGAIN_MOST = 0.0005, 0.01  # s; doubles
_STANDING = (State.ESTABLISHED, State.ADOPTED)


class Stays(M2MError):
    """The proxy stays in the session: why."""


class Leaving:
    """The proxies here that leave sessions."""

    def __init__(
        self,
        sessions: Sessions,
        find_accepted: Callable[[Flow], Session | None],
        asking: Asking | None = None,
    ) -> None:
        """*find_accepted* tells whose connection was accepted here, by what its client meant; by
        *asking* this host is taken out of what was left."""
        self._sessions = sessions
        self._find_accepted = find_accepted
        self._asking = asking
        self._sockets = TcpSockets()
        self._prepared = False
        self._leaving: set[int] = set()
        self._none_leaves = trio.Event()
        self._none_leaves.set()
        self._departures, self._departing = trio.open_memory_channel[Departure](math.inf)
        self._left, self._to_remove = trio.open_memory_channel[int](math.inf)
        sessions.left = self._left.send_nowait

    def prepare(self) -> None:
        """There are proxies here: nobody shall wait for what they need to leave."""
        if self._sessions.datapath.splices and not self._prepared:
            self._prepared = True
            try:
                self._sockets.prepare()
            except M2MError as error:
                _log.warning("proxies stay in their sessions", why=str(error))

    async def begin(self, left: socket.socket, right: socket.socket) -> Departure:
        """The proxy would leave the session of these connections, towards the client and towards
        the server: what comes is going to wait, as soon as little is under way. Raises
        :exc:`Stays`."""
        if not self._sessions.datapath.splices:
            raise Stays("with the module of the kernel proxies stay: use --datapath=ebpf")
        try:
            came = self._find_accepted(flow_of(left, meant=True))
            outgoing = flow_of(right)
        except NoConnection as error:
            raise Stays(str(error)) from error
        if came is None or came.position is not Position.PROXY:
            raise Stays("no session has come to the proxy by this connection")
        policy = self._sessions.chains.policy_now(came)
        if Asker.NF not in (ALLOWED if policy is None else policy.allow):
            raise Stays("the policy does not allow it: write allow={nf, ...}")
        half = self._sessions.node.register.with_flow(outgoing)
        if half is None or half.role is not Role.CLIENT:
            raise Stays("no session goes on by this connection")
        if not any(one is half for one in self._sessions.node.register.other_halves(came.view)):
            raise Stays("the two connections are not of one session")
        if self._leaving & {came.id, half.id}:
            raise Stays("it is leaving already")
        departure = Departure(self._sessions, self._sockets, came, half, left, right)
        self._leaving |= departure.ids
        self._departures.send_nowait(departure)
        if self._none_leaves.is_set():
            self._none_leaves = trio.Event()
        return departure

    async def run(self) -> None:
        """Hold what comes to sessions that are left, and take this host out of them, for ever."""
        limiter = trio.CapacityLimiter(_AT_ONCE)

        async def depart() -> None:
            async for departure in self._departing:
                nursery.start_soon(departure.hold_soon)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(depart)
            async for session in self._to_remove:
                nursery.start_soon(self._remove, session, limiter)

    async def _remove(self, session: int, limiter: trio.CapacityLimiter) -> None:
        if self._asking is None:
            return
        chains, pause = self._sessions.chains, _PAUSE
        wish = Wish(Do.REMOVE, old=(ME,))

        def planner(hops: Sequence[HopReport], here: str, flow: Flow) -> Plan:
            return plan(wish, hops, here, flow, chains.policy)

        wanted = Wanted(planner, Asker.NF, ChangeMode.LF)
        for _ in range(_TRIES):
            async with limiter:
                await self._none_leaves.wait()  # packets wait for those
                report = await self._asking.change(session, wanted)
            if report.error is None or session not in self._sessions.node.sessions:
                return
            await trio.sleep(pause)
            pause *= 2
        _log.warning(
            "still in the chain of a session that its proxy has left",
            session=format_session(session), why=report.error, by=report.by,
        )  # fmt: skip

    def over(self, departure: Departure) -> None:
        """It has left, or stays."""
        self._leaving -= departure.ids
        if not self._leaving:
            self._none_leaves.set()

    def close(self) -> None:
        self._sockets.close()


class Departure:
    """One session that is being left."""

    def __init__(
        self,
        sessions: Sessions,
        sockets: TcpSockets,
        came: Session,
        half: Session,
        left: socket.socket,
        right: socket.socket,
    ) -> None:
        """Use :meth:`Leaving.begin`."""
        self._sessions = sessions
        self._sockets = sockets
        self._came = came
        self._half = half
        self._left = left
        self._right = right
        self._flows = flow_of(left), flow_of(right)
        self._comes = receiver(came.view, Toward.RIGHT), receiver(half.view, Toward.LEFT)
        self._leaves = sender(came.view, Toward.LEFT), sender(half.view, Toward.RIGHT)
        self.ids = {came.id, half.id}
        self._until = trio.current_time() + _LIMIT
        self._holds = self._is_over = False
        self._since = 0.0  # when what comes began to wait
        self._check()
        self._look()
        self._kept = [Kept(sock) for sock in (left, right)]

    async def hold_soon(self) -> None:
        """From when little is under way, or it takes too long, what comes waits; and no longer, if
        the proxy does not say that it has passed on what it had."""
        try:
            with trio.move_on_after(_SHRINK):
                while not self._holds and self._look().backlog > 2 * LITTLE:  # noqa: ASYNC110
                    await trio.sleep(_LOOK_AGAIN)
            await self._hold()
            await trio.sleep_until(self._until + _LATE)
            await self.stay()
        except Stays as error:
            _log.debug("nothing is held", why=str(error))  # the proxy will be told

    async def _hold(self) -> None:
        """Raises :exc:`Stays`."""
        async with self._sessions.turn:
            if self._holds or self._is_over:
                return
            self._check()
            try:
                await self._sessions.datapath.hold(self._comes, substream=True)
            except DatapathError as error:
                raise Stays(str(error)) from error
            self._holds = True
            self._since = trio.current_time()

    def _check(self) -> None:
        """Nothing else may be done to either half."""
        for one in (self._came, self._half):
            if self._sessions.node.sessions.get(one.id) is not one or one.state not in _STANDING:
                raise Stays("the session is not established any more")
            if one.change is not None or one.id in self._sessions.node.mobility.moving():
                raise Stays("the session is being changed")

    def _look(self) -> Ends:
        try:
            left, right = (self._sockets.find(flow) for flow in self._flows)
        except M2MError as error:
            raise Stays(str(error)) from error
        if left is None or right is None:
            raise Stays("the connection is over")
        ends = Ends(left, right)
        if ends.over:
            raise Stays("the connection is as good as over")
        return ends

    async def passed(self) -> bool:
        """The proxy has passed on what it had: leave, and tell that it is done. False: there is
        something to be read again. Raises :exc:`Stays`; then all is as before."""
        if self._is_over:
            raise Stays("it took too long")
        try:
            await self._hold()
            said, pause = False, _LOOK_AGAIN
            while not (ends := self._look()).at_rest or not await self._leave():
                if ends.unread:
                    return False
                if trio.current_time() > self._until:
                    raise Stays("what was sent is not acknowledged in time")
                if not said:
                    said = True
                    for sock, end in ((self._left, ends.left), (self._right, ends.right)):
                        say_now(sock)
                        if end.acked != end.written:
                            ask_peer(sock)
                await trio.sleep(pause)
                pause = min(2 * pause, _LOOK_AGAIN_MOST)
        except Stays:
            await self.stay()
            raise
        return True

    async def _leave(self) -> bool:
        """Whether nothing is under way when really nothing gets through, and so it is done."""
        sessions, datapath = self._sessions, self._sessions.datapath
        with trio.CancelScope(shield=True):
            async with sessions.turn:
                self._check()
                await datapath.hold(self._comes)
                rows = await datapath.rows((*self._comes, *self._leaves))
                ends = self._look()
                passed = [row.counters.max_seq for row in rows[:2]]
                if not ends.at_rest or passed != [ends.left.receives, ends.right.receives]:
                    return False
                if trio.current_time() > self._until + _LATE:  # the proxy may have gone on
                    raise Stays("it took too long")
                try:
                    splice = splice_ends(ends, self._left, self._right)
                    came_right, came_left, sent_left, sent_right = (
                        row.counters.packets for row in rows
                    )
                    counts = Counts(came_right, came_left, sent_left, sent_right)
                    event = Spliced(self._came.id, self._half.id, splice, counts)
                    held = await sessions.splice(event, self._leaves)
                except (NotSpliceable, DatapathError) as error:
                    raise Stays(str(error)) from error
                for sock in (self._left, self._right):
                    end_unheard(sock)
                self._is_over = True
        came = self._came
        sessions.journal.counts["proxies left"] += 1
        sessions.journal.tell(EventKind.LEFT, f"{held} packets held", came.id, came.supersession)
        _log.info(
            "a proxy has left", session=format_session(came.id), held=held,
            waited=f"{trio.current_time() - self._since:.4f} s",
        )  # fmt: skip
        return True

    async def stay(self) -> None:
        """All is as before."""
        if self._is_over:
            return
        self._is_over = True
        for kept in self._kept:
            kept.no_longer()
        with trio.CancelScope(shield=True):
            async with self._sessions.turn:
                await self._sessions.datapath.resume(self._comes)
