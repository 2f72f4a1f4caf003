"""I4, I5: the chain of a session that talks is changed, and nothing is lost, whatever happens."""

from __future__ import annotations

import os
import random

import pytest

from m2m.protocol.commands import ChangeDone
from m2m.protocol.update import Mode
from tests.support.traffic import BusyWorld

MANY = 20 if os.environ.get("M2M_HEAVY") == "1" else 1


def settle(world: BusyWorld, seconds: float = 1.0) -> None:
    world.run(seconds)
    world.talking = False
    world.run(1.0)


@pytest.mark.parametrize("mode", [Mode.LF, Mode.OP, Mode.SS_OP], ids=["lf", "op", "ss+op"])
@pytest.mark.parametrize(
    ("at", "old", "right", "new", "path"),
    [
        (0, [], 1, [4], [0, 4, 1, 2, 3]),
        (0, [], 1, [4, 5], [0, 4, 5, 1, 2, 3]),
        (0, [1], 2, [], [0, 2, 3]),
        (0, [1, 2], 3, [], [0, 3]),
        (0, [1], 2, [4], [0, 4, 2, 3]),
        (1, [2], 3, [4], [0, 1, 4, 3]),
        (2, [], 3, [5], [0, 1, 2, 5, 3]),
        (0, [1, 2], 3, [4, 5], [0, 4, 5, 3]),
        (0, [1, 2], 3, [5], [0, 5, 3]),
    ],
)
def test_a_change_in_calm(
    at: int, old: list[int], right: int, new: list[int], path: list[int], mode: Mode
) -> None:
    world = BusyWorld(2, random.Random(1))
    world.talk()
    world.run(0.1)
    number = world.change(at, old, right, new, mode)
    settle(world)
    outcome = world.outcomes()[number]
    assert isinstance(outcome, ChangeDone), outcome
    assert world.check_whole() == path
    if mode is Mode.OP:
        world.check_order()
    else:
        world.check_nothing_lost()
