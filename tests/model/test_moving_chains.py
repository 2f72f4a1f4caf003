"""Ends that move while their chain is being changed: in the end there is one connected path.

The scenes are those of :mod:`tests.model.test_reconfiguration_model`, with a client and a server
that go from address to address, and are nowhere for a while in between. What is under way to where
nobody is any more is lost: packets are not counted here, but nobody on the path may be left in a
change, and both ways lead through the same hosts. A new hop that has been told of an end by an
address that it has left cannot take leave of it: no packet comes there, and the kernel ends it.
"""

from __future__ import annotations

import random
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2m.protocol.commands import ChangeDone, ChangeRefused, Switched
from m2m.protocol.events import ChangeWanted, Ended, Route
from m2m.protocol.flow import Flow
from m2m.protocol.translation import MOVED, Entry, Hook, Toward
from m2m.protocol.update import Mode, Step
from m2m.protocol.wire import Cause
from tests.model.test_reconfiguration_model import (
    MANY,
    SPARSE,
    committed,
    crash,
    modes,
    quiet_down,
    script,
    storm,
    times,
    wish,
    wishes,
)
from tests.support.simulation import LOST, PROMPT, Host
from tests.support.traffic import BusyKernel, BusyWorld, Packet

_CALM = 200.0  # s: everything that waits has given up, and all have asked

Wish: TypeAlias = tuple[float, int, int, list[int], Mode, bool]
Move: TypeAlias = tuple[float, int, float]

moves = st.lists(
    st.tuples(
        st.floats(0, 1),  # when
        st.integers(0, 2),  # to which place
        st.sampled_from([0.0, 0.0, 0.003, 0.1]),  # s without an address before
    ),
    min_size=1,
    max_size=4,
)


class DrainingKernel(BusyKernel):
    """What is held goes by its row before that is taken out, as the datapath contract says."""

    def remove(self, entries: tuple[Entry, ...]) -> None:
        for entry in entries:
            if entry.key in self.holds:
                self.resume(entry.key)
        super().remove(entries)


class MovingWorld(BusyWorld):
    """A world whose ends are not always where their first addresses say."""

    kernel = DrainingKernel

    def carry(self, sender: Host, packet: Packet) -> None:
        if packet.flow.dst in self._by_address:
            super().carry(sender, packet)

    def change(
        self, at: int, old: list[int], right: int, new: list[int], mode: Mode = Mode.LF
    ) -> int:
        number = next(self.change_numbers)
        heirs = [self.host(index).address for index in new]
        steps = tuple(
            Step(self.host(index).address, heirs[place] if place < len(heirs) else None)
            for place, index in enumerate(old)
        )
        host, end = self.host(at), self.host(right)
        if not host.home or not end.home:  # nobody would lead it, or it could not be asked for
            return number
        hops = tuple(self.hop(index) for index in new)
        route = Route(host.home, self.mtu(host))
        host.feed(ChangeWanted(self.session, number, mode, steps, end.home, hops, route))
        return number

    def go(self, move: Move, mover: Host) -> None:
        _, place, absent = move
        address = f"10.9.{place}.{mover.index + 1}"
        if absent:
            self.move(mover, None)
            self.after(absent, lambda: self._arrive(mover, address))
        else:
            self._arrive(mover, address)

    def _arrive(self, mover: Host, address: str) -> None:
        self.move(mover, None)
        self.move(mover, address)

    def check_connected(self) -> list[int]:
        """One path, both ways, and nobody else has anything of the session."""
        path = self.path()
        for host in (*self.hosts, *self.others):
            if host.index not in path and self.session in host.node.sessions:
                host.feed(Ended(self.session, "idle"))
        self.run(_CALM)
        assert self.check_whole() == path
        for host in self.everybody():
            assert not host.node.mobility.unconfirmed()
            assert not host.node.mobility.ports_in_use()
        return path

    def rows(self, host: Host) -> dict[tuple[Hook, Flow], Entry]:
        """A row that was installed for a name before this was confirmed stays marked so."""
        rows = super().rows(host)
        generations = {row.generation for row in rows.values()} - {MOVED}
        generation = min(generations, default=MOVED)
        return {key: row._replace(generation=generation) for key, row in rows.items()}


def play(
    world: MovingWorld, wanted: list[Wish], moving: list[Move], talk: float, mover: Host
) -> list[int]:
    numbers: list[int] = []
    world.talk(0.008)
    for one in wanted:
        world.after(one[0] * talk, lambda one=one: wish(world, one, numbers))
    for move in moving:
        world.after(move[0] * talk, lambda move=move: world.go(move, mover))
    world.run(2.0)
    world.talking = False
    world.run(_CALM)
    return world.check_connected()


def end_of(world: MovingWorld, is_client: bool) -> Host:
    """One end: two that move at once, and come to be neighbours, would not find each other."""
    return world.client if is_client else world.server


@given(st.integers(1, 4), wishes, moves, st.booleans(), st.integers(0, 2**32))
@settings(max_examples=60 * MANY, deadline=None)
def test_moves_and_changes_at_once(
    middleboxes: int, wanted: list[Wish], moving: list[Move], is_client: bool, seed: int
) -> None:
    world = MovingWorld(middleboxes, random.Random(seed), others=3)
    play(world, wanted, moving, 0.05, end_of(world, is_client))


@given(
    st.integers(1, 4), wishes, moves, st.booleans(), st.integers(0, 2**32),
    st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0.0005, 0.1),
)  # fmt: skip
@settings(max_examples=60 * MANY, deadline=None)
def test_moves_and_changes_in_a_storm(
    middleboxes: int, wanted: list[Wish], moving: list[Move], is_client: bool, seed: int,
    loss: float, doubling: float, spread: float,
) -> None:  # fmt: skip
    world = MovingWorld(middleboxes, random.Random(seed), others=3)
    storm(world, loss, doubling, spread)
    play(world, wanted, moving, 1.0, end_of(world, is_client))


@given(st.integers(1, 3), modes, moves, st.integers(0, 2**32))
@settings(max_examples=30 * MANY, deadline=None)
def test_a_mover_leads_a_change_of_its_own(
    middleboxes: int, mode: Mode, moving: list[Move], seed: int
) -> None:
    """The first middlebox changes with the cell: rebind, then replacement."""
    world = MovingWorld(middleboxes, random.Random(seed), others=1)
    world.talk(0.008)
    first, client = world.first_other, world.client
    world.after(0.01, lambda: world.go((0.0, 0, 0.0), client))
    for move in moving:
        world.after(0.02 + move[0] * 0.05, lambda move=move: world.go(move, client))
    world.after(0.02, lambda: world.change(0, [1], 2, [first], mode))
    world.run(2.0)
    world.talking = False
    world.run(_CALM)
    assert world.check_connected()[0] == 0


@given(
    st.integers(0, 4), wishes, st.integers(0, 2**32),
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.003, 0.1])), min_size=2, max_size=5
    ),
)  # fmt: skip
@settings(max_examples=60 * MANY, deadline=None)
def test_both_ends_by_turns(
    middleboxes: int, wanted: list[Wish], seed: int, moving: list[tuple[int, float]]
) -> None:
    """Each while the other is where it is known to be: they may be neighbours."""
    world = MovingWorld(middleboxes, random.Random(seed), others=3)
    for turn, (place, absent) in enumerate(moving):
        mover = world.server if turn % 2 else world.client
        world.after(turn * 0.3, lambda p=place, a=absent, m=mover: world.go((0.0, p, a), m))
    play(world, wanted, [], 0.3 * len(moving), world.client)


@pytest.mark.parametrize("mode", [Mode.OP, Mode.SS_OP], ids=lambda mode: mode.name)
@pytest.mark.parametrize("leads", [True, False], ids=["L", "R"])
def test_a_tap_holds_nothing_by_an_old_name(leads: bool, mode: Mode) -> None:
    """It lets go what it holds, and the change is undone, before packets come by the new name."""
    world = MovingWorld(3, random.Random(1), others=1)
    world.talk(0.0005)
    world.run(0.1)
    tap, end = (world.host(1), world.client) if leads else (world.host(3), world.server)
    number = world.change(1, [2], 3, [world.first_other], mode)
    while not any(hold.queue for hold in tap.kernel.holds.values()):
        world.run(0.0002)
    toward = Toward.RIGHT if leads else Toward.LEFT
    world.go((0.0, 1, 0.0), end)
    world.run(0.01)
    assert not tap.kernel.holds
    quiet_down(world)
    outcome = world.outcomes()[number]
    assert isinstance(outcome, ChangeRefused)
    assert (outcome.cause, outcome.blame) == (Cause.MOVED, tap.address)
    numbers = [packet.number for packet in world.got[toward]]
    assert numbers == list(range(len(world.sent[toward])))
    assert world.check_connected() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("absent", [0.0, 10.0])
@pytest.mark.parametrize("step", [0, 2, 4])
def test_a_mover_whose_old_leg_is_out_leads_another_change(step: int, absent: float) -> None:
    """It has told its neighbour, which has nothing of that leg any more, but has not heard so."""
    world = MovingWorld(1, random.Random(1), others=2)
    world.talk(SPARSE)
    new, another = world.first_other, world.first_other + 1
    committed(world, 0, [], 1, [new])
    world.run(step * 0.0005)
    world.go((0.0, 1, absent), world.client)
    world.run(absent + 10.0)
    number = world.change(0, [new], 1, [another])
    quiet_down(world)
    assert isinstance(world.outcomes()[number], ChangeDone)
    assert world.check_connected() == [0, another, 1, 2]


def test_a_change_that_has_waited_begins_where_its_leader_is_going() -> None:
    """The one before it ends while the mover's main leg has not been confirmed."""
    world = MovingWorld(1, random.Random(1), others=2)
    world.talk(SPARSE)
    world.fate = lambda: LOST
    first, second = (world.change(0, [], 1, [world.first_other + n]) for n in range(2))
    world.fate = script([LOST, PROMPT, PROMPT])  # REBIND of the main leg, of the other, its answer
    world.go((0.0, 1, 0.0), world.client)
    quiet_down(world)
    assert isinstance(world.outcomes()[first], ChangeRefused)
    assert isinstance(world.outcomes()[second], ChangeDone)
    assert world.check_connected() == [0, world.first_other + 1, 1, 2]


def test_a_move_of_a_leg_that_is_gone_is_not_taken_for_that_of_the_next() -> None:
    """To the same host, from where the first one was going."""
    world = MovingWorld(1, random.Random(1), others=1)
    world.talk(SPARSE)
    refused = world.change(0, [], 1, [world.first_other])
    world.go((0.0, 0, 0.0), world.client)  # the new host has not even heard of the session
    world.run(0.012)
    assert isinstance(world.outcomes()[refused], ChangeRefused)
    world.go((0.0, 1, 0.0), world.client)
    world.run(0.006)
    done = world.change(0, [], 1, [world.first_other])
    world.go((0.0, 0, 0.0), world.client)
    quiet_down(world)
    assert isinstance(world.outcomes()[done], ChangeDone)
    assert world.check_connected() == [0, world.first_other, 1, 2]


@pytest.mark.parametrize("old", [[], [2]], ids=["neighbour of L", "behind an old hop"])
@pytest.mark.parametrize("after", [0.01, 0.03])
def test_a_server_whose_old_leg_is_gone_moves_before_others_know(
    old: list[int], after: float
) -> None:
    """UPDATE-FIN for that leg goes to where it was: it says by the new path that it is through."""
    world = MovingWorld(2, random.Random(1), others=1)
    world.talk(SPARSE)
    world.go((0.0, 0, 0.0), world.server)  # from now on that leg is emptied by quiet
    world.run(0.02)
    leader = world.host(1 if old else 2)
    number = world.change(leader.index, old, 3, [world.first_other])
    while not any(isinstance(one, Switched) for one in leader.told):
        world.run(0.0005)
    world.run(after)
    world.go((0.0, 1, 0.2), world.server)
    quiet_down(world)
    assert isinstance(world.outcomes()[number], ChangeDone)
    assert world.check_connected() == [0, 1, *([] if old else [2]), world.first_other, 3]


def test_a_leader_that_was_down_meanwhile_finds_the_server_as_well() -> None:
    """It does not know any more which change that was."""
    world = MovingWorld(2, random.Random(1), others=1)
    world.talk(SPARSE)
    leader = world.host(2)
    world.change(2, [], 3, [world.first_other])
    while not any(isinstance(one, Switched) for one in leader.told):
        world.run(0.0005)
    leader.kill_agent()  # UPDATE-FIN is on its way
    world.run(1.0)
    world.go((0.0, 1, 0.0), world.server)
    world.run(0.1)
    leader.start()
    quiet_down(world)
    assert world.check_connected() == [0, 1, 2, world.first_other, 3]


@pytest.mark.parametrize("after", [0.002, 0.01, 0.03])
def test_a_mover_that_was_down_meanwhile_knows_names_of_both_legs(after: float) -> None:
    """That of the old leg, which is out, is no name of the new one."""
    world = MovingWorld(1, random.Random(1), others=0)
    world.talk(SPARSE)
    committed(world, 0, [1], 2, [])
    world.go((0.0, 1, 0.0), world.client)
    world.run(after)
    world.client.kill_agent()
    world.run(1.0)
    world.client.start()
    quiet_down(world)
    assert world.check_connected() == [0, 2]


@pytest.mark.parametrize("whose", ["client", "R", "both"])
def test_old_names_go_with_their_leg(whose: str) -> None:
    """Restarted while they would fade, nobody takes them for names of the leg that is in."""
    world = MovingWorld(1, random.Random(1), others=1)
    world.talk(SPARSE)
    world.run(0.01)
    world.go((0.0, 1, 0.0), world.client)
    number = world.change(0, [], 1, [world.first_other])
    world.run(0.5)
    assert isinstance(world.outcomes().get(number), ChangeDone)
    down = {"client": [world.client], "R": [world.host(1)]}.get(whose, world.hosts[:2])
    for host in down:
        host.kill_agent()
    world.run(0.2)
    for host in down:
        host.start()
    quiet_down(world)
    assert world.check_connected() == [0, world.first_other, 1, 2]


def test_a_host_that_joins_again_knows_no_old_names_of_its_first_stay() -> None:
    """They fade still, but their rows went with the session."""
    world = MovingWorld(2, random.Random(1), others=2)
    world.talk(SPARSE)
    new, another = world.first_other, world.first_other + 1
    world.change(0, [], 1, [new])
    world.run(0.2)
    world.go((0.0, 1, 0.0), world.client)
    world.run(0.1)
    world.change(0, [new], 1, [])
    world.run(0.2)
    world.change(0, [], 1, [new])
    world.run(0.2)
    number = world.change(new, [1], 2, [another])
    quiet_down(world)
    assert isinstance(world.outcomes()[number], ChangeDone)
    assert world.check_connected() == [0, new, another, 2, 3]


@given(
    st.integers(1, 4), wishes, moves, st.integers(0, 2**32),
    st.floats(0, 0.4), st.floats(0.0005, 0.1),
    st.lists(st.tuples(times, st.floats(0.001, 1), st.integers(0, 8)), min_size=1, max_size=4),
)  # fmt: skip
@settings(max_examples=60 * MANY, deadline=None)
def test_agents_that_go_down_meanwhile(
    middleboxes: int, wanted: list[Wish], moving: list[Move], seed: int,
    loss: float, spread: float, crashes: list[tuple[float, float, int]],
) -> None:  # fmt: skip
    """A client that moves: a leader that forgets a change would not always find a server again."""
    world = MovingWorld(middleboxes, random.Random(seed), others=3)
    storm(world, loss, 0.2, spread)
    for at, down, which in crashes:
        world.after(at, lambda down=down, which=which: crash(world, which, down, False))
    play(world, wanted, moving, 1.0, world.client)
