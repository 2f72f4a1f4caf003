"""NF state on its way between the node and the host's state adapter."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from m2m.agent.states import States, tracks_connections
from m2m.errors import UnsupportedHost
from m2m.protocol.commands import ExportState, ImportState, ReleaseState
from m2m.protocol.events import Event, StateExported, StateImported
from m2m.protocol.flow import Flow
from m2m.protocol.translation import Position, SessionView
from nf_adapters.state import BadState, NoState, StateAdapter, StateError

FLOW = Flow.of(6, "10.0.0.1", 40000, "10.0.0.4", 80)
INLINE = SessionView(1, Position.INLINE, FLOW, None, None)
TAP = INLINE._replace(position=Position.TAP)


class Adapter(StateAdapter):
    """Does what the test says, and notes what it is asked."""

    kind: ClassVar[str] = "made up"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.raises: Exception | None = None
        self.pause = 0.0
        self.closed = False

    async def _call(self, name: str) -> None:
        self.calls.append(name)
        await trio.sleep(self.pause)
        if self.raises is not None:
            raise self.raises

    async def quiesce(self, flow: Flow) -> None:
        assert flow == FLOW
        await self._call("quiesce")

    async def export(self, flow: Flow) -> bytes:
        await self._call("export")
        return b"state"

    async def import_(self, flow: Flow, state: bytes) -> None:
        assert flow == FLOW
        await self._call(f"import {state.decode()}")

    async def release(self, flow: Flow, *, keep: bool) -> None:
        assert flow == FLOW
        await self._call("keep" if keep else "forget")

    async def close(self) -> None:
        self.closed = True


class Bench:
    """States over an :class:`Adapter`, and what the node is told."""

    def __init__(self) -> None:
        self.adapter = Adapter()
        self.told: list[Event] = []
        self.opened = 0
        self.broken = False
        self.has_state = True
        self.states = States(self._open, self._feed)

    async def _open(self) -> StateAdapter | None:
        self.opened += 1
        if self.broken:
            raise UnsupportedHost("no nft here")
        return self.adapter if self.has_state else None

    async def _feed(self, event: Event) -> None:
        self.told.append(event)


@asynccontextmanager
async def a_bench() -> AsyncIterator[Bench]:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.states.run)
        yield bench
        nursery.cancel_scope.cancel()


async def test_a_state_is_locked_read_and_forgotten_in_this_order() -> None:
    """The node has forgotten the session itself by the time of the release."""
    async with a_bench() as bench:
        bench.states.move(ExportState(1, 7), INLINE)
        bench.states.move(ReleaseState(1, keep=False), None)
        await wait_all_tasks_blocked()
        assert bench.told == [StateExported(1, 7, b"state")]
        assert bench.adapter.calls == ["quiesce", "export", "forget"]
        bench.states.move(ReleaseState(1, keep=False), None)  # a second time: nothing is known
        await wait_all_tasks_blocked()
        assert len(bench.adapter.calls) == 3
        assert bench.opened == 1
    assert bench.adapter.closed


async def test_a_state_comes_in_and_is_kept_or_forgotten() -> None:
    async with a_bench() as bench:
        bench.states.move(ImportState(1, 7, b"x"), INLINE)
        bench.states.move(ReleaseState(1, keep=True), INLINE)
        await wait_all_tasks_blocked()
        assert bench.told == [StateImported(1, 7, True)]
        assert bench.adapter.calls == ["import x", "keep"]


async def test_a_tap_has_no_state_and_takes_none() -> None:
    async with a_bench() as bench:
        bench.states.move(ExportState(1, 7), TAP)
        bench.states.move(ImportState(1, 8, b""), TAP)
        bench.states.move(ImportState(1, 9, b"x"), TAP)
        bench.states.move(ReleaseState(1, keep=True), TAP)
        await wait_all_tasks_blocked()
        assert bench.told == [
            StateExported(1, 7, b""), StateImported(1, 8, True), StateImported(1, 9, False)
        ]  # fmt: skip
        assert bench.opened == 0


async def test_where_no_connection_is_tracked_there_is_nothing_to_move() -> None:
    async with a_bench() as bench:
        bench.has_state = False
        bench.states.move(ExportState(1, 7), INLINE)
        await wait_all_tasks_blocked()
        bench.states.move(ImportState(1, 8, b"x"), INLINE)
        await wait_all_tasks_blocked()
        assert bench.told == [StateExported(1, 7, b""), StateImported(1, 8, False)]
        bench.has_state = True  # a firewall has been loaded since
        bench.states.move(ExportState(1, 9), INLINE)
        await wait_all_tasks_blocked()
        assert bench.told[-1] == StateExported(1, 9, b"state")


def test_a_kernel_tracks_connections_once_somebody_has_asked_it_to(tmp_path: Path) -> None:
    assert not tracks_connections(tmp_path / "nf_conntrack_max")
    (tmp_path / "nf_conntrack_max").touch()
    assert tracks_connections(tmp_path / "nf_conntrack_max")


@pytest.mark.parametrize(
    ("error", "data"),
    [(NoState("none"), b""), (StateError("locked"), None)],
)
async def test_what_cannot_be_read_is_told_and_what_is_not_there_is_empty(
    error: Exception, data: bytes | None
) -> None:
    async with a_bench() as bench:
        bench.adapter.raises = error
        bench.states.move(ExportState(1, 7), INLINE)
        await wait_all_tasks_blocked()
        assert bench.told == [StateExported(1, 7, data)]


async def test_a_state_that_is_refused_is_told() -> None:
    async with a_bench() as bench:
        bench.adapter.raises = BadState("of another version")
        bench.states.move(ImportState(1, 7, b"x"), INLINE)
        bench.states.move(ReleaseState(1, keep=False), INLINE)  # its error is only logged
        await wait_all_tasks_blocked()
        assert bench.told == [StateImported(1, 7, False)]


async def test_a_host_that_cannot_is_asked_again_next_time() -> None:
    async with a_bench() as bench:
        bench.broken = True
        bench.states.move(ExportState(1, 7), INLINE)
        await wait_all_tasks_blocked()
        bench.broken = False
        bench.states.move(ExportState(1, 8), INLINE)
        await wait_all_tasks_blocked()
        assert bench.told == [StateExported(1, 7, None), StateExported(1, 8, b"state")]


async def test_sessions_do_not_wait_for_each_other(autojump_clock: MockClock) -> None:
    async with a_bench() as bench:
        bench.adapter.pause = 1.0
        start = trio.current_time()
        for session in range(1, 51):
            bench.states.move(ImportState(session, 7, b"x"), INLINE)
        await trio.sleep(1.5)
        assert len(bench.told) == 50
        assert trio.current_time() - start == 1.5


async def test_nothing_is_begun_when_the_agent_ends() -> None:
    async with a_bench() as bench:
        pass
    bench.states.move(ExportState(1, 7), INLINE)
    assert bench.told == []
