"""What moving ends of sessions ask of this host's kernel, and what of its network tells that an
end has moved (``docs/mobility.md``).

:class:`~m2m.agent.sessions.Sessions` hands over the node's commands; each is carried out at once
and wholly, and what the kernel says to it is the event that the node gets next.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator

import structlog

from m2m.agent.api import EventKind, format_session
from m2m.agent.journal import Journal
from m2m.agent.keeping import Keeping
from m2m.agent.next_hops import NextHops
from m2m.agent.watch import Network, NoRoute, Way
from m2m.datapath import Datapath, DatapathError, DatapathFull
from m2m.protocol.commands import Keep, Rebound, Rehome
from m2m.protocol.events import Event, Moved, Rehomed, Route
from m2m.protocol.flow import Address, Flow
from m2m.protocol.node import Node
from m2m.protocol.rebind import MAX_LEGS, End
from m2m.protocol.session import Session
from m2m.protocol.translation import Action, Entry, Hook, Position, SessionView

__all__ = ["Moves"]

_log = structlog.get_logger()


class Moves:
    """The eyes and hands of a node for everything that is about moving ends."""

    def __init__(
        self,
        node: Node,
        datapath: Datapath,
        network: Network,
        journal: Journal,
        next_hops: NextHops,
        keeping: Keeping,
    ) -> None:
        self._node = node
        self._datapath = datapath
        self._network = network
        self._journal = journal
        self._next_hops = next_hops
        self._keeping = keeping
        self.stranded: frozenset[int] = frozenset()
        """Sessions whose address here is gone, and that no way is known for yet."""
        self._idle: dict[int, float] = {}  # s, of these, by session
        self.on_moved: Callable[[], None] = _nobody  # when all legs of this host's have

    def due(self) -> Iterator[Moved]:
        """What the node has to know of the network as it is now."""
        mobility, stranded = self._node.mobility, list[int]()
        for (end, own, neighbour), sessions in mobility.ends().items():
            way = self._way_from(own, neighbour, follows=end is End.CLIENT)
            if way is not None:
                yield Moved(own, neighbour, Route(way.source, way.hop.mtu), tuple(sessions))
            elif self._network.is_lost(own):
                stranded += sessions
        self.stranded = frozenset(stranded)
        for (own, neighbour), sessions in mobility.unconfirmed().items():
            way = self._way_from(own, neighbour, follows=True)
            if way is not None:
                yield Moved(own, neighbour, Route(way.source, way.hop.mtu), tuple(sessions))
            elif self._network.home(own) is not None:  # back before the hop has confirmed
                yield Moved(own, neighbour, Route(own, 0), tuple(sessions))
        self._keeping.silence(self._interfaces())

    async def in_turn(self, moved: Moved) -> list[Moved]:
        """The same, a few sessions at a time, so that the first are through while the last are
        still told of: those first that have had packets last, whose users wait."""
        numbers = moved.sessions
        if len(numbers) > MAX_LEGS:
            idle = self._idle or await self._look_at(numbers)
            numbers = tuple(sorted(numbers, key=lambda number: idle.get(number, math.inf)))
        return [
            moved._replace(sessions=numbers[start : start + MAX_LEGS])
            for start in range(0, len(numbers), MAX_LEGS)
        ]

    async def foresee(self) -> None:
        """What :meth:`in_turn` needs of sessions that have no way now: then there is time."""
        if not self.stranded:
            self._idle = {}
        elif not self._idle and len(self.stranded) > MAX_LEGS:
            self._idle = await self._look_at(self.stranded)

    async def _look_at(self, numbers: Iterable[int]) -> dict[int, float]:
        """Seconds without a packet, by session."""
        known = self._node.sessions
        there = [number for number in numbers if number in known]
        idle = await self._datapath.idle(key for number in there for key in _keys(known[number]))
        pairs = zip(idle[::2], idle[1::2], strict=True)
        return dict(zip(there, map(_shorter, pairs), strict=True))

    def _way_from(self, own: Address, neighbour: Address, *, follows: bool) -> Way | None:
        """The way that a leg from *own* has to go, unless it is the one that it goes already, or
        none. *follows*: the leg goes by the interface that the route prefers."""
        home = self._network.home(own)
        if home is not None and not follows:
            return None
        try:
            way = self._network.way_to(neighbour)
        except NoRoute as error:
            _log.debug("no way for a leg", why=str(error))
            return None
        if home == way.hop.ifindex or self._network.home(way.source) is None:
            return None
        return way

    def stands(self, view: SessionView) -> None:
        """A session stands: if it ends here, its own address is kept alive."""
        own = _own_address(view)
        if own is not None and own not in self._keeping.kept and self._network.has(own):
            self._keeping.keep(own, self._interfaces())

    async def let_go(self) -> None:
        """Addresses that no session needs are not kept any longer, for ever."""
        self._keeping.may_be_over()  # those of sessions that have ended while no agent was here
        while True:
            await self._keeping.wait_until_some_may_go()
            sessions = self._node.sessions
            # Looking through all of them is worth it only if somebody may want an address back.
            if not sessions or any(
                not self._network.has(one) for one in self._keeping.kept - self._keeping.lasting
            ):
                views = (session.view for session in sessions.values())
                self._keeping.only({own for own in map(_own_address, views) if own is not None})

    def _interfaces(self) -> list[str]:
        return [link.name for link in self._network.links.values() if link.ethernet]

    async def do(self, command: Rehome | Keep | Rebound) -> Event | None:
        """Carry out; the event that answers it, if any."""
        match command:
            case Rehome():
                return await self._rehome(command)
            case Keep(notes):
                try:
                    await self._datapath.keep(dict(notes))
                except DatapathFull as error:  # only a restarted agent would miss them
                    _log.warning("not kept for a restart", why=str(error))
            case Rebound():
                self._tell(command)
                if command.here and not self._node.mobility.is_moving:
                    self.on_moved()
        return None

    async def _rehome(self, command: Rehome) -> Event:
        try:
            redirected = [self._with_hop(entry) for entry in command.redirected]
            if command.accepted:
                await self._datapath.install([self._with_hop(entry) for entry in command.accepted])
            packets = await self._datapath.redirect(redirected) if redirected else []
        except (DatapathError, NoRoute) as error:
            _log.warning("legs not moved", why=str(error))
            await self._datapath.remove([entry.key for entry in command.accepted])
            return Rehomed(command.batch, None)
        if redirected:
            self._next_hops.give_up_former()
        return Rehomed(command.batch, tuple(packets))

    def _with_hop(self, entry: Entry) -> Entry:
        if entry.action is not Action.SEND:
            return entry
        return entry._replace(hop=self._next_hops.to(entry.rewrite.dst))

    def _tell(self, command: Rebound) -> None:
        view = command.view
        text = "this host has moved" if command.here else "its end has moved"
        if _log.is_enabled_for(logging.DEBUG):  # there may be thousands
            _log.debug(text, session=format_session(view.session), leg=str(command.leg))
        self._journal.tell(EventKind.MOVED, text, view.session, view.supersession)


def _keys(session: Session) -> tuple[tuple[Hook, Flow], tuple[Hook, Flow]]:
    """Of the entries of a session that ends here: the one that sends, and the one that receives."""
    flow = session.here
    if session.right is not None:
        return (Hook.OUT, flow), (Hook.IN, session.right.reverse())
    assert session.left is not None
    return (Hook.OUT, flow.reverse()), (Hook.IN, session.left)


def _shorter(idle: tuple[float | None, float | None]) -> float:
    return min((one for one in idle if one is not None), default=math.inf)


def _nobody() -> None:
    pass


def _own_address(view: SessionView) -> Address | None:
    """The address of this host that a session's sockets here use."""
    if view.position is Position.CLIENT:
        return view.here.src
    return view.supersession.dst if view.position is Position.SERVER else None
