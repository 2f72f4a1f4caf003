"""A function that has changed lengths leaves (docs/splicing.md): both ends meet their own numbers
in every packet, whatever happens to messages and agents, and in whatever is changed afterwards."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from m2m.protocol.commands import ChangeDone, ChangeRefused
from m2m.protocol.update import Mode
from tests.model.test_reconfiguration_model import (
    CALM,
    MANY,
    MODES,
    SPARSE,
    TROUBLE,
    crash,
    fates,
    modes,
    quiet_down,
    script,
    seeds,
    storm,
    times,
)
from tests.support.lengthening import LENGTHENS, LengtheningWorld
from tests.support.simulation import LOST, PROMPT, Fate

octets = st.integers(-2000, 2000) | st.sampled_from([0, 2**31 - 1, -(2**31)])
sums = st.tuples(octets, octets)


def go_on(world: LengtheningWorld) -> None:
    """Talk on for a while."""
    world.talk(SPARSE)
    quiet_down(world)


def another(world: LengtheningWorld, *change: object) -> list[int]:
    """One more change, which has to come about; the path then."""
    world.talk(SPARSE)
    world.run(0.02)
    number = world.change(*change)  # type: ignore[arg-type]
    quiet_down(world)
    assert isinstance(world.outcomes()[number], ChangeDone), world.outcomes()[number]
    world.check_bytes()
    return world.check_whole()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("added", [(16, 0), (0, -300), (7, -7), (0, 0)], ids=str)
def test_it_leaves_and_the_chain_is_changed_on(added: tuple[int, int], mode: Mode) -> None:
    world = LengtheningWorld(3, random.Random(1), added)
    world.talk()
    world.run(0.05)
    number = world.ask_to_leave(mode)
    quiet_down(world, 0.3)
    assert isinstance(world.outcomes()[number], ChangeDone)
    world.check_order()
    assert world.check_whole() == [0, 1, 3, 4]
    spliced = world.host(1).node.sessions[world.session].splice
    assert (spliced is None) == (added == (0, 0))
    assert another(world, 1, [], 3, [5], Mode.OP) == [0, 1, 5, 3, 4]
    assert another(world, 0, [1], 5, [], mode) == [0, 5, 3, 4]
    assert world.client.node.sessions[world.session].splice == spliced
    assert another(world, 0, [5], 3, [6], mode) == [0, 6, 3, 4]


@given(st.sampled_from([2, 3]), sums, modes, fates, seeds)
@settings(max_examples=100 * MANY)
@example(2, (16, 0), Mode.LF, [LOST] * 40, 1)
@example(3, (16, -5), Mode.SS_OP, [PROMPT] * 8 + [LOST] * 32, 1)
def test_any_fate_of_any_message(
    middleboxes: int, added: tuple[int, int], mode: Mode, fate: list[Fate], seed: int
) -> None:
    world = LengtheningWorld(middleboxes, random.Random(seed), added, fate=script(fate))
    world.again = 0.2
    world.talk(SPARSE)
    number = world.ask_to_leave(mode)
    quiet_down(world, 1.0)
    gone = isinstance(world.outcomes()[number], ChangeDone)
    path = [n for n in range(middleboxes + 2) if n != LENGTHENS or not gone]
    assert world.check_whole() == path
    world.check_bytes()
    if gone:
        assert another(world, 0, [1], path[2], [], Mode.LF) == [0, *path[2:]]


def beside(world: LengtheningWorld, place: int, new: list[int], mode: Mode) -> None:
    """Put other hosts to the function's left or right, or take out the one that is there."""
    traced = world.trace(world.conversation)
    if traced is None:
        return
    path = [host.index for host in traced[0]]
    if LENGTHENS in path:
        before, behind = path[: path.index(LENGTHENS) + 1], path[path.index(LENGTHENS) :]
        path = behind if place % 2 else before
    if len(path) == 2 or new:
        at, old, right = path[0], [], path[1]
    else:
        at, old, right = path[0], [path[1]], path[2]
    host = world.host(at)
    if host.up and world.session in host.node.sessions:
        world.change(at, old, right, new, mode)


others = st.lists(
    st.tuples(times, st.integers(0, 1), st.lists(st.sampled_from([5, 6]), max_size=1), modes),
    max_size=4,
)


@given(sums, modes, times, others, st.floats(0, 0.4), seeds)
@settings(max_examples=100 * MANY)
def test_others_are_changed_meanwhile(
    added: tuple[int, int], mode: Mode, when: float,
    changes: list[tuple[float, int, list[int], Mode]], loss: float, seed: int,
) -> None:  # fmt: skip
    world = LengtheningWorld(3, random.Random(seed), added)
    storm(world, loss, 0.2, 0.01)
    world.talk(SPARSE)
    world.after(when, lambda: world.ask_to_leave(mode))
    for at, *change in changes:
        world.after(at, lambda change=change: beside(world, *change))
    quiet_down(world, TROUBLE + 1)
    world.check_whole()
    world.check_bytes()
    go_on(world)
    world.check_bytes()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("which", range(4), ids=["client", "L", "function", "R"])
def test_an_agent_dies_at_any_moment(which: int, mode: Mode) -> None:
    """The function goes on as it did, whether it is heard of again or not."""
    ends = set()
    for step in range(14):
        down = (0.05, 3.0)[step % 2]
        world = LengtheningWorld(2, random.Random(step), (100, -30))
        world.talk(SPARSE)
        world.run(0.02)
        world.ask_to_leave(mode)
        world.after(step * 0.0014, lambda world=world, down=down: crash(world, which, down, False))
        quiet_down(world)
        world.run(down + CALM)
        ends.add(tuple(world.check_whole()))
        go_on(world)
        world.check_bytes()
    assert (0, 1, 3) in ends


def test_it_cannot_be_replaced() -> None:
    """Its heir would meet other numbers."""
    world = LengtheningWorld(2, random.Random(1), (16, 0))
    number = world.ask_to_leave(hops=(world.hop(4),))
    quiet_down(world)
    refused = world.outcomes()[number]
    assert world.check_whole() == [0, 1, 2, 3]
    assert isinstance(refused, ChangeRefused)
    assert "not replaced" in refused.text
