"""What a change of a session's chain asks of this host's kernel, and who waits for its end.

:class:`~m2m.agent.sessions.Sessions` hands over every command that it does not carry out itself.
Each is carried out at once and wholly, and what the kernel says to it is the event that the node
gets next. Moving NF state takes longer and is left to :mod:`m2m.agent.states`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, Final, TypeAlias

import structlog
import trio

from m2m.agent.api import EventKind, format_session
from m2m.agent.in_hand import in_hand
from m2m.agent.journal import Journal
from m2m.agent.states import States
from m2m.datapath import Datapath, DatapathError
from m2m.protocol.commands import (
    Accept,
    ChangeDone,
    ChangeRefused,
    Command,
    Count,
    ExportState,
    Hold,
    ImportState,
    Redirect,
    ReleaseState,
    Resume,
    Switched,
    WatchAck,
    WatchCount,
    Withdraw,
)
from m2m.protocol.events import Counted, Event, Holding, HoldOverflow, Redirected, Resumed
from m2m.protocol.flow import Address, format_address
from m2m.protocol.node import Node
from m2m.protocol.translation import Action, Entry, Hook, NextHop, Toward, receiver, sender

__all__ = ["Changes", "Expected"]

_log = structlog.get_logger()

Act: TypeAlias = Callable[["Changes", Any], Awaitable[Event | None]]


class Expected:
    """A change that somebody here has asked for. Times are in seconds since then."""

    def __init__(self, on_switched: Callable[[], None]) -> None:
        self.switched: float | None = None  # packets to the server take the new path
        self.ended: float | None = None
        self.result: ChangeDone | ChangeRefused | None = None
        self._began = perf_counter()
        self._on_switched = on_switched
        self._over = trio.Event()

    async def wait(self) -> ChangeDone | ChangeRefused:
        """Return when it is over."""
        await self._over.wait()
        assert self.result is not None
        return self.result

    def has_switched(self) -> None:
        self.switched = perf_counter() - self._began
        self._on_switched()

    def is_over(self, result: ChangeDone | ChangeRefused) -> None:
        self.ended = perf_counter() - self._began
        self.result = result
        self._over.set()


class Changes:
    """The hands of a node for everything that is about changing chains."""

    def __init__(
        self,
        node: Node,
        datapath: Datapath,
        states: States,
        journal: Journal,
        hop_to: Callable[[Address], NextHop],
    ) -> None:
        self._node = node
        self._datapath = datapath
        self._states = states
        self._journal = journal
        self._hop_to = hop_to
        self._expected: dict[tuple[int, int], Expected] = {}

    def expect(self, session: int, change: int, on_switched: Callable[[], None]) -> Expected:
        """Before a change is asked for: what will tell how it ends."""
        made = self._expected[session, change] = Expected(on_switched)
        return made

    def forget(self, session: int, change: int) -> None:
        """Nobody waits for it any more."""
        self._expected.pop((session, change), None)

    async def do(self, command: Command) -> Event | None:
        """Carry out; the event that answers it, if any.

        Raises :exc:`~m2m.datapath.DatapathError` and :exc:`~m2m.agent.watch.NoRoute` for what the
        node is told of by InstallFailed.
        """
        act = _ACTS.get(type(command))
        return None if act is None else await act(self, command)

    # -- the kernel ---------------------------------------------------------------------

    async def _accept(self, command: Accept) -> None:
        await self._datapath.install([self._with_hop(entry) for entry in command.entries])

    async def _withdraw(self, command: Withdraw) -> None:
        view = self._node.view(command.session)
        for entry in command.entries:
            if view is not None and entry.hook is Hook.IN:
                heir = receiver(view, entry.toward)
                if heir != entry.key:
                    await self._datapath.inherit(entry.key, heir)
        await self._datapath.remove([entry.key for entry in command.entries])

    async def _redirect(self, command: Redirect) -> Event:
        (packets,) = await self._datapath.redirect([self._with_hop(command.entry)])
        return Redirected(command.session, command.change, packets)

    async def _count(self, command: Count) -> Event:
        rows = await self._datapath.rows([command.key])
        packets = rows[0].counters.packets if rows else None
        queues = in_hand() if command.key[0] is Hook.OUT else ()
        return Counted(command.session, command.change, command.key, packets, queues)

    async def _hold(self, command: Hold) -> Event:
        session, change, key, substream = command
        try:
            ((packets, checkpoint),) = await self._datapath.hold([key], substream=substream)
        except DatapathError as error:
            # What cannot wait goes on, as if it were too much: the change is undone.
            _log.warning("packets not held", session=format_session(session), why=str(error))
            view = self._node.view(session)
            right = view is not None and sender(view, Toward.RIGHT) == key
            return HoldOverflow(session, Toward.RIGHT if right else Toward.LEFT)
        return Holding(session, change, packets, checkpoint)

    async def _resume(self, command: Resume) -> Event:
        (packets,) = await self._datapath.resume([command.key])
        self._journal.counts["held"] += packets
        return Resumed(command.session, command.change, packets)

    async def _watch_ack(self, command: WatchAck) -> None:
        try:
            await self._datapath.watch_ack([command.key], command.number)
        except DatapathError as error:  # the session ends: the change will, too
            _log.debug("not watched", session=format_session(command.session), why=str(error))

    async def _watch_count(self, command: WatchCount) -> None:
        try:
            await self._datapath.watch_count([command.key], command.number)
        except DatapathError as error:  # the leg is gone: it is looked at soon
            _log.debug("not watched", session=format_session(command.session), why=str(error))

    def _with_hop(self, entry: Entry) -> Entry:
        if entry.action is not Action.SEND:
            return entry
        return entry._replace(hop=self._hop_to(entry.rewrite.dst))

    # -- the network function -----------------------------------------------------------

    async def _state(self, command: ExportState | ImportState | ReleaseState) -> None:
        self._states.move(command, self._node.view(command.session))

    # -- how it ends --------------------------------------------------------------------

    async def _switched(self, command: Switched) -> None:
        session, change = command
        expected = self._expected.get((session, change))
        if expected is not None:
            expected.has_switched()
        view = self._node.view(session)
        _log.info("chain changed", session=format_session(session), change=f"{change:016x}")
        self._journal.tell(
            EventKind.CHANGED, "packets take the new path", session, view and view.supersession
        )

    async def _done(self, command: ChangeDone) -> None:
        expected = self._expected.pop((command.session, command.change), None)
        if expected is not None:
            expected.is_over(command)

    async def _refused(self, command: ChangeRefused) -> None:
        session, change, cause, text, blame = command
        view = self._node.view(session)
        who = "" if blame is None else f" (at {format_address(blame)})"
        _log.warning(
            "chain not changed", session=format_session(session), cause=cause.name.lower(),
            why=text + who,
        )  # fmt: skip
        flow = None if view is None else view.supersession
        self._journal.tell(EventKind.UNCHANGED, text + who, session, flow)
        expected = self._expected.pop((session, change), None)
        if expected is not None:
            expected.is_over(command)


_ACTS: Final[dict[type, Act]] = {
    Accept: Changes._accept,
    Withdraw: Changes._withdraw,
    Redirect: Changes._redirect,
    Count: Changes._count,
    Hold: Changes._hold,
    Resume: Changes._resume,
    WatchAck: Changes._watch_ack,
    WatchCount: Changes._watch_count,
    ExportState: Changes._state,
    ImportState: Changes._state,
    ReleaseState: Changes._state,
    Switched: Changes._switched,
    ChangeDone: Changes._done,
    ChangeRefused: Changes._refused,
}
