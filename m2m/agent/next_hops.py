"""The ways to neighbours that entries in the kernel hold, and their change when routes do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import structlog

from m2m.agent.neighbours import forget_neighbour
from m2m.agent.watch import Network, NoRoute
from m2m.datapath import Datapath, DatapathError
from m2m.protocol.change import with_left, with_right
from m2m.protocol.flow import Address, Flow
from m2m.protocol.session import Session, State
from m2m.protocol.translation import Action, Entry, NextHop, entries_for, spare_entries

__all__ = ["NextHops", "move"]

_log = structlog.get_logger()


class NextHops:
    """The next hops in use, by neighbour."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._in_use: dict[Address, NextHop] = {}
        # Of which the interface may be down, and whether what waited there has been given up.
        self._former: dict[NextHop, bool] = {}

    def to(self, neighbour: Address) -> NextHop:
        """The way to *neighbour*, for an entry. Raises :exc:`~m2m.agent.watch.NoRoute`."""
        hop = self._network.way_to(neighbour).hop
        before = self._in_use.get(neighbour)
        if hop != before:
            self._in_use[neighbour] = hop
            self._former.pop(hop, None)
            if before is not None and before.ifindex != hop.ifindex:
                self._former[before] = False
        return hop

    def give_up_former(self) -> None:
        """Entries have been redirected: what was sent by an interface that is down since does not
        wait there any longer."""
        for hop in list(self._former):
            self._give_up(hop)

    def links_changed(self) -> None:
        """An interface may have been down already when entries were redirected: its news is read
        later than the kernel tells of another way."""
        for hop in [one for one, given_up in self._former.items() if not given_up]:
            self._give_up(hop)

    def _give_up(self, hop: NextHop) -> None:
        link = self._network.links.get(hop.ifindex)
        if link is None or (link.up and self._former[hop]):  # it may come to be in use again
            del self._former[hop]
        elif not link.up:
            forget_neighbour(hop)
            self._former[hop] = True

    def note(self, entries: Iterable[Entry]) -> None:
        """These entries are in the kernel already."""
        for entry in entries:
            if entry.hop is not None:
                self._in_use[entry.rewrite.dst] = entry.hop

    def moved(self) -> dict[Address, NextHop]:
        """The neighbours to which the way is another one than entries have."""
        found = {}
        for neighbour, before in self._in_use.items():
            try:
                hop = self._network.way_to(neighbour).hop
            except NoRoute:
                continue  # the old way is as good as none, and may come back
            if hop != before:
                found[neighbour] = hop
        return found

    def have_moved(self, moved: dict[Address, NextHop], sessions: Iterable[Session]) -> None:
        """All entries of *sessions*, and there are no others, go the new ways."""
        for host, hop in moved.items():
            self._former.pop(hop, None)
            self._former[self._in_use[host]] = False
        self.give_up_former()
        in_use = {flow.dst for session in sessions for flow in _outward(session)}
        self._in_use = {host: hop for host, hop in (self._in_use | moved).items() if host in in_use}


async def move(session: Session, moved: dict[Address, NextHop], datapath: Datapath) -> bool:
    """Send a session's packets by the new ways; whether any of its entries needed that.

    Counters and what is held live on where there is room for a redirection.
    """
    if not _is_installed(session):
        return False
    entries = [entry for entry in _all_entries(session, moved.get) if entry.hop is not None]
    if not entries:
        return False
    try:
        await datapath.redirect(entries)
    except DatapathError as error:
        _log.debug("not redirected", why=str(error))
        await datapath.install(entries)
    return True


def _is_installed(session: Session) -> bool:
    """Whether its entries are in the datapath: at a client they are since the SYNACK only."""
    if session.state in (State.CLOSING, State.GONE):
        return False
    return session.left is not None or session.state is not State.OPENING


def _all_entries(
    session: Session, hop_to: Callable[[Address], NextHop | None]
) -> tuple[Entry, ...]:
    """A session's entries, those of a second leg included."""
    view, spare = session.view, None if session.change is None else session.change.spare
    entries = entries_for(view, hop_to)
    if spare is not None:
        left = view.left is not None and spare.dst == view.left.dst
        assert session.change is not None
        beside = with_left(view, spare) if left else with_right(view, spare, session.change.splice)
        entries += tuple(
            entry._replace(hop=hop_to(entry.rewrite.dst)) if entry.action is Action.SEND else entry
            for entry in spare_entries(view, beside)
        )
    return entries


def _outward(session: Session) -> Iterator[Flow]:
    """The subsessions of a session, as they leave this host."""
    if session.left is not None:
        yield session.left.reverse()
    if session.right is not None:
        yield session.right
