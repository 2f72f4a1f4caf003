"""Moving what this host's inline network functions know of sessions (:mod:`nf_adapters.state`).

What is asked about one session is done in its order; different sessions do not wait for each
other, and no packet or message waits for any of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import structlog
import trio

from m2m.agent.api import format_session
from m2m.errors import M2MError
from m2m.protocol.commands import ExportState, ImportState, ReleaseState
from m2m.protocol.events import Event, StateExported, StateImported
from m2m.protocol.flow import Flow
from m2m.protocol.translation import Position, SessionView
from nf_adapters.state import NoState, StateAdapter, StateError
from nf_adapters.state.conntrack import ConntrackState

__all__ = ["States", "open_conntrack", "tracks_connections"]

_log = structlog.get_logger()

_TRACKING = Path("/proc/sys/net/netfilter/nf_conntrack_max")  # while the kernel tracks any

Work: TypeAlias = ExportState | ImportState | ReleaseState


async def open_conntrack() -> StateAdapter | None:
    """The adapter of this host's stateful firewall; None where no connection is tracked, so that
    there is no state. Raises :exc:`~m2m.errors.UnsupportedHost`."""
    return await ConntrackState.open() if tracks_connections() else None


def tracks_connections(tracking: Path = _TRACKING) -> bool:
    """Whether the kernel follows connections for a firewall."""
    return tracking.exists()


class States:
    """The state adapter of this host, opened when it is first needed.

    *open_adapter* returns None as long as there is no state here; *feed* takes what comes of
    exports and imports.
    """

    def __init__(
        self,
        open_adapter: Callable[[], Awaitable[StateAdapter | None]],
        feed: Callable[[Event], Awaitable[None]],
    ) -> None:
        self._open_adapter = open_adapter
        self._feed = feed
        self._adapter: StateAdapter | None = None
        self._opening = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self._work: dict[int, deque[tuple[Work, Flow | None]]] = {}
        # Sessions whose state was touched: their node may have forgotten them at release.
        self._flows: dict[int, Flow] = {}
        # A tap has no state to move, but is to have seen all packets that have passed.
        self.quiesce_taps: Callable[[], Awaitable[None]] = _nothing

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what is asked until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            if self._adapter is not None:
                with trio.CancelScope(shield=True):
                    await self._adapter.close()

    def move(self, work: Work, view: SessionView | None) -> None:
        """Export, import or release the state of one session; *view* of it, while it is here."""
        if isinstance(work, ReleaseState):
            flow = self._flows.pop(work.session, None)
        elif view is not None and view.position is Position.INLINE:
            flow = self._flows[work.session] = view.supersession
        else:
            flow = None
        if self._nursery is None:
            return  # the agent ends; its successor asks what became of the change
        if flow is None and isinstance(work, ReleaseState):
            return
        waiting = self._work.get(work.session)
        if waiting is None:
            waiting = self._work[work.session] = deque()
            self._nursery.start_soon(self._do_all, work.session, waiting)
        waiting.append((work, flow))

    async def _do_all(self, session: int, waiting: deque[tuple[Work, Flow | None]]) -> None:
        while waiting:
            await self._do(*waiting.popleft())
        del self._work[session]

    async def _do(self, work: Work, flow: Flow | None) -> None:
        match work:
            case ExportState(session, change):
                await self._feed(StateExported(session, change, await self._export(session, flow)))
            case ImportState(session, change, data):
                ok = await self._import(session, flow, data)
                await self._feed(StateImported(session, change, ok))
            case ReleaseState(session, keep):
                assert flow is not None
                await self._release(session, flow, keep=keep)

    async def _export(self, session: int, flow: Flow | None) -> bytes | None:
        """What is known of it; nothing of a tap, nor where no state is kept; None: unreadable."""
        if flow is None:
            await self.quiesce_taps()
            return b""
        try:
            adapter = await self._opened()
            if adapter is None:
                return b""
            await adapter.quiesce(flow)
            return await adapter.export(flow)
        except NoState:
            return b""
        except M2MError as error:
            _log.warning("state not exported", session=format_session(session), why=str(error))
            return None

    async def _import(self, session: int, flow: Flow | None, data: bytes) -> bool:
        if not data:
            return True
        if flow is None:
            _log.warning(
                "state not imported", session=format_session(session),
                why="the network function here is a tap and keeps none that could be moved",
            )  # fmt: skip
            return False
        try:
            adapter = await self._opened()
            if adapter is None:
                raise StateError("no connection is tracked here: load the firewall's rules first")
            await adapter.import_(flow, data)
        except M2MError as error:
            _log.warning("state not imported", session=format_session(session), why=str(error))
            return False
        return True

    async def _release(self, session: int, flow: Flow, *, keep: bool) -> None:
        if self._adapter is None:
            return
        try:
            await self._adapter.release(flow, keep=keep)
        except M2MError as error:
            _log.warning("state not released", session=format_session(session), why=str(error))

    async def _opened(self) -> StateAdapter | None:
        async with self._opening:
            if self._adapter is None:
                self._adapter = await self._open_adapter()
            return self._adapter


async def _nothing() -> None:
    pass
