"""I4, I5: the Python code meets the scenes in which spin broke the models."""

from __future__ import annotations

import random
from functools import partial

import pytest

from m2m.protocol.association import Association
from m2m.protocol.wire import Message
from tests.model.scenarios import SCENARIOS, Ask, Fault, Restart, Scenario, Wish
from tests.model.variants import BROKEN, PRINTED
from tests.support import simulation
from tests.support.simulation import Host
from tests.support.traffic import BusyWorld

SCENE = 10.0  # s
CALM = 60.0  # s: everything that waits has given up, and all have asked
TALK = 0.005  # s between two packets of a direction


class Noting(Association):
    """Knows which message is in the datagrams it has sealed."""

    sealed: dict[bytes, Message] = {}  # noqa: RUF012 - of all hosts, for one test

    def seal(self, peer: bytes, message: Message) -> bytes:
        data = super().seal(peer, message)
        self.sealed[data] = message
        return data


class ScriptedWorld(BusyWorld):
    """A good network, but for the faults of a scene."""

    faults: tuple[Fault, ...] = ()
    begun = 0.0
    hit: set[Fault]

    def transmit(self, sender: Host, to: bytes, data: bytes) -> None:
        message, at = Noting.sealed.get(data), self.now - self.begun
        for fault in self.faults:
            if (
                isinstance(message, fault.message)
                and (sender.index, to) == (fault.sender, self.host(fault.receiver).address)
                and fault.since <= at < fault.until
            ):
                self.hit.add(fault)
                if fault.late is not None:
                    deliver = partial(super().transmit, sender, to, data)
                    self.after(fault.late, deliver)
                return
        super().transmit(sender, to, data)


def make(world: ScriptedWorld, wish: Wish) -> int:
    if isinstance(wish, Ask):
        return world.ask_to_be_replaced(wish.host, list(wish.new))
    return world.change(wish.host, list(wish.old), wish.right, list(wish.new))


@pytest.mark.parametrize("scene", SCENARIOS, ids=lambda scene: scene.variant)
def test_scene(scene: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noting, "sealed", {})
    monkeypatch.setattr(simulation, "Association", Noting)
    world = ScriptedWorld(2, random.Random(1))
    world.talk(TALK)
    world.begun, world.hit = world.now, set()
    world.faults = tuple(one for one in scene.trouble if isinstance(one, Fault))
    numbers: list[int] = []
    for wish in scene.wishes:
        world.after(wish.at, lambda wish=wish: numbers.append(make(world, wish)))
    for one in scene.trouble:
        if isinstance(one, Restart):
            host = world.host(one.host)
            world.after(one.at, host.kill_agent)
            world.after(one.until, host.start)
    world.run(SCENE)
    world.talking = False
    world.run(CALM)
    assert world.hit == set(world.faults), "a fault that has hit nothing"
    assert tuple(world.check_whole()) in scene.paths
    world.check_nothing_lost()
    assert world.outcomes().keys() == set(numbers)


def test_every_scene_is_one_that_spin_has_found() -> None:
    found = {variant.name for variant in (*PRINTED, *BROKEN)}
    assert {scene.variant for scene in SCENARIOS} <= found
