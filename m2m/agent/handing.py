"""Sessions that go to, or come from, the agent of another host (``docs/mobility.md``).

What is asked for here is told the node by one event; what the node says to it comes back by
:meth:`Handing.do` and :meth:`Handing.settled`, within that event's turn or, when a hop has to
answer, some time later.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog
import trio

from m2m.agent.api import EventKind, UnknownSession, format_session
from m2m.agent.journal import Journal
from m2m.agent.keeping import Keeping
from m2m.agent.watch import Network, NoRoute
from m2m.datapath import Datapath, Verdict
from m2m.errors import M2MError
from m2m.protocol.commands import Forget, GiveDeeds, HandedOver, NotHanded, Refrain, Taken
from m2m.protocol.deed import Deed
from m2m.protocol.events import DeedsGiven, Event, HandOver, LeadHere, Route, TakeOver
from m2m.protocol.node import Node

__all__ = ["Handing"]

_log = structlog.get_logger()

_PATIENCE = 10.0  # s for hops to answer; it goes on after that, but is not waited for


class _Asked:
    """What somebody here waits for."""

    def __init__(self, write: Callable[[Sequence[Deed]], None] | None = None) -> None:
        self.write = write
        self.problem = ""
        self.refused: tuple[tuple[int, str], ...] = ()


class Handing:
    """The eyes and hands of a node for sessions whose end becomes another host's."""

    def __init__(
        self,
        node: Node,
        datapath: Datapath,
        network: Network,
        journal: Journal,
        keeping: Keeping,
        feed: Callable[[Event], Awaitable[None]],
    ) -> None:
        self._node = node
        self._datapath = datapath
        self._network = network
        self._journal = journal
        self._keeping = keeping
        self._feed = feed
        self._numbers = itertools.count(1)
        self._asked: dict[int, _Asked] = {}
        # Sessions that are being led here -> what has become of it.
        self._led: dict[int, str | None] = {}
        self._news = trio.Event()

    # -- what is asked ------------------------------------------------------------------

    async def hand_over(
        self, sessions: Sequence[int], write: Callable[[Sequence[Deed]], None]
    ) -> None:
        """Let go of these sessions, having their deeds written by *write*, in a thread.

        All of them, or none: then :exc:`M2MError` says why.
        """
        request, asked = self._ask(write)
        await self._feed(HandOver(request, tuple(dict.fromkeys(sessions))))
        del self._asked[request]
        if asked.problem:
            raise M2MError(f"nothing is handed over: {asked.problem}")

    async def take_over(self, deeds: Sequence[Deed]) -> tuple[tuple[int, ...], dict[int, str]]:
        """Be ready for the sockets of these sessions; which ones, and why not the others."""
        request, asked = self._ask()
        refused: dict[int, str] = {}
        wanted: list[tuple[Deed, Route]] = []
        for deed in deeds:
            try:
                way = self._network.way_to(deed.hop)
            except NoRoute as error:
                refused[deed.session] = str(error)
            else:
                wanted.append((deed, Route(way.source, way.hop.mtu)))
        interfaces = [link.name for link in self._network.links.values() if link.ethernet]
        for deed, _ in wanted:
            self._keeping.keep(deed.address, interfaces)
        await self._feed(TakeOver(request, tuple(wanted)))
        del self._asked[request]
        refused |= dict(asked.refused)
        if refused:
            self._keeping.may_be_over()
        return tuple(deed.session for deed in deeds if deed.session not in refused), refused

    async def lead_here(self, sessions: Iterable[int] = ()) -> tuple[int, ...]:
        """Have these sessions, or all that were taken over, led here; which ones have been.

        Raises :exc:`M2MError` when some cannot be, or not within ten seconds.
        """
        waiting = self._node.mobility.handing.waiting()
        wanted = tuple(dict.fromkeys(sessions)) or waiting
        for session in wanted:
            if session not in waiting:
                raise UnknownSession(
                    f"session {format_session(session)} does not wait to be led here: take it over"
                )
        self._led |= dict.fromkeys(wanted)
        await self._feed(LeadHere(wanted))
        with trio.move_on_after(_PATIENCE):
            while any(self._led[one] is None for one in wanted):
                await self._news.wait()
        found = {one: self._led.pop(one) for one in wanted}
        problems = [one for one, why in found.items() if why != ""]
        if problems:
            first = problems[0]
            why = found[first] or f"its neighbour has not answered within {_PATIENCE:.0f} s, yet"
            raise M2MError(
                f"{len(problems)} of {len(wanted)} sessions are not led here, as "
                f"{format_session(first)}: {why}"
            )
        return wanted

    def _ask(
        self, write: Callable[[Sequence[Deed]], None] | None = None
    ) -> tuple[int, _Asked]:  # fmt: skip
        request = next(self._numbers)
        asked = self._asked[request] = _Asked(write)
        return request, asked

    # -- what the node says -------------------------------------------------------------

    async def do(
        self, command: GiveDeeds | NotHanded | Refrain | HandedOver | Taken | Forget
    ) -> Event | None:
        """Carry out; the event that answers it, if any."""
        match command:
            case GiveDeeds(request, deeds):
                return await self._give(request, deeds)
            case NotHanded(request, why):
                self._asked[request].problem = why
            case Taken(request, refused):
                self._asked[request].refused = refused
            case Refrain(flows):
                for flow in flows:
                    await self._datapath.release(flow, Verdict.DROP)
            case HandedOver(view):
                self._keeping.may_be_over()
                _log.info("session handed over", session=format_session(view.session))
                self._journal.tell(
                    EventKind.HANDED_OVER, "another host may have it", view.session,
                    view.supersession,
                )  # fmt: skip
            case Forget(sessions):
                await self._datapath.forget(sessions)
        return None

    async def _give(self, request: int, deeds: tuple[Deed, ...]) -> Event:
        asked = self._asked[request]
        assert asked.write is not None
        try:
            await trio.to_thread.run_sync(asked.write, deeds)
        except OSError as error:
            asked.problem = f"the deeds cannot be written: {error.strerror}"
        return DeedsGiven(request, ok=not asked.problem)

    def settled(self, session: int, problem: str) -> None:
        """A session leads here (no *problem*), or is here no more."""
        if session in self._led:
            self._led[session] = problem
            self._news.set()
            self._news = trio.Event()
