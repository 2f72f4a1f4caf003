"""The mapping follows what is installed and removed in a datapath."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from m2m.agent.names import NamingDatapath
from m2m.datapath import DatapathError
from m2m.datapath.fake import FakeDatapath
from m2m.datapath.fake_kernel import FakeKernel
from m2m.protocol.flow import Flow
from m2m.protocol.translation import (
    NextHop,
    Position,
    SessionView,
    entries_for,
    redirected_entry,
    spare_entries,
)
from nf_adapters.pcap import Mapping

SUPER = Flow.of(6, "10.0.0.1", 40000, "10.0.9.1", 80)
LEFT = Flow.of(6, "10.0.0.1", 61000, "10.0.1.1", 63000)
RIGHT = Flow.of(6, "10.0.1.1", 61001, "10.0.9.1", 63001)
OTHER = Flow.of(6, "10.0.1.1", 61002, "10.0.5.1", 63002)
HOP = NextHop(1, LEFT.src, 1500)

VIEWS = {
    Position.CLIENT: SessionView(7, Position.CLIENT, SUPER, None, RIGHT),
    Position.TAP: SessionView(7, Position.TAP, SUPER, LEFT, RIGHT),
    Position.INLINE: SessionView(7, Position.INLINE, SUPER, LEFT, RIGHT),
    Position.SERVER: SessionView(7, Position.SERVER, SUPER, LEFT, None),
}


class Here:
    """A datapath, its mapping and its kernel."""

    def __init__(self, path: Path, kernel: FakeKernel | None = None) -> None:
        self.mapping = Mapping(path / "a.map", 10)
        self.kernel = FakeKernel() if kernel is None else kernel
        self.datapath = NamingDatapath(FakeDatapath(self.kernel), self.mapping)

    def names(self, *flows: Flow) -> list[tuple[Flow, bool] | None]:
        return [self.mapping.table.find(flow) for flow in flows]


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path)


@pytest.mark.parametrize("position", VIEWS)
async def test_every_leg_is_named_in_both_directions(here: Here, position: Position) -> None:
    """What a middlebox sends on it has received before; what an end sends it has not."""
    view = VIEWS[position]
    middle = view.left is not None and view.right is not None
    await here.datapath.install(entries_for(view, lambda _: HOP))
    expected = {}
    if view.left is not None:
        expected |= {LEFT: (SUPER, False), LEFT.reverse(): (SUPER.reverse(), middle)}
    if view.right is not None:
        expected |= {RIGHT: (SUPER, middle), RIGHT.reverse(): (SUPER.reverse(), False)}
    assert {flow: here.mapping.table.find(flow) for flow in expected} == expected
    assert here.mapping.table.count() == (len(expected), 0)

    await here.datapath.remove([entry.key for entry in entries_for(view)])
    assert here.mapping.table.count() == (0, len(expected))
    assert {flow: here.mapping.table.find(flow) for flow in expected} == expected, "late packets"


async def test_a_change_names_the_new_leg_and_ends_the_old_one_alone(here: Here) -> None:
    view = VIEWS[Position.TAP]
    after = view._replace(right=OTHER)
    await here.datapath.install(entries_for(view, lambda _: HOP))
    await here.datapath.install([one._replace(hop=HOP) for one in spare_entries(view, after)])
    assert here.names(RIGHT, OTHER) == [(SUPER, True), (SUPER, True)]
    await here.datapath.redirect([redirected_entry(view, after)._replace(hop=HOP)])
    await here.datapath.remove([one.key for one in spare_entries(after, view)])
    assert here.mapping.table.count() == (4, 2)
    assert here.names(LEFT, OTHER) == [(SUPER, False), (SUPER, True)]


async def test_what_is_not_installed_is_not_named(here: Here) -> None:
    with pytest.raises(DatapathError):
        await here.datapath.install(entries_for(VIEWS[Position.TAP]))
    assert here.mapping.table.count()[0] == 0


async def test_the_next_agent_takes_names_over_with_the_rows(here: Here, tmp_path: Path) -> None:
    tap, gone = VIEWS[Position.TAP], VIEWS[Position.SERVER]._replace(session=8, left=OTHER)
    await here.datapath.install(entries_for(tap, lambda _: HOP))
    await here.datapath.install(entries_for(gone, lambda _: HOP))
    for entry in entries_for(gone):  # while no agent is there
        here.kernel.remove(entry.key)

    later = Here(tmp_path, here.kernel)
    later.datapath.begin()
    rows = [row async for row in later.datapath.dump()]
    later.datapath.taken_over()
    assert len(rows) == 2
    assert later.mapping.table.count() == (4, 2)


async def test_names_are_forgotten_after_a_while(here: Here, autojump_clock: MockClock) -> None:
    view = VIEWS[Position.TAP]
    await here.datapath.install(entries_for(view, lambda _: HOP))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.datapath.forget_names)
        await trio.sleep(100)
        assert here.mapping.table.count() == (4, 0)
        await here.datapath.remove([entry.key for entry in entries_for(view)])
        await trio.sleep(14)
        assert here.mapping.table.count() == (0, 4)
        await trio.sleep(20)
        assert here.mapping.table.count() == (0, 0)
        nursery.cancel_scope.cancel()


async def test_no_room_is_told_once(
    tmp_path: Path, autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Here(tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.datapath.forget_names)
        for number in range(100):
            left = LEFT._replace(sport=20000 + number)
            view = SessionView(number + 1, Position.SERVER, SUPER, left, None)
            await here.datapath.install(entries_for(view, lambda _: HOP))
        await trio.sleep(30)
        nursery.cancel_scope.cancel()
    assert here.mapping.table.refused > 0
    assert capsys.readouterr().out.count("no room in the mapping") == 1
