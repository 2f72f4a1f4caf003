"""Ends of sessions that move: what hosts make of it, by real messages over a bad network."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2m.protocol.commands import Refuse
from m2m.protocol.events import Ended
from m2m.protocol.session import State
from tests.support.simulation import DOUBLED, LATE, LATE_DOUBLE, LOST, PROMPT, Host, World

HERE, THERE, ELSEWHERE = "10.0.0.1", "10.9.1.7", "10.9.2.8"


def a_world(middleboxes: int = 2, sessions: int = 3, seed: int = 1) -> World:
    world = World(middleboxes, random.Random(seed))
    for number in range(sessions):
        world.open(number)
    world.run(1.0)
    assert len(world.client.node.sessions) == sessions
    return world


def check_ways(world: World, sessions: int = 3) -> None:
    """Packets of every session go through all hosts, both ways, and arrive as they were sent."""
    world.check_agreement(others=True)
    for number in range(sessions):
        flow = world.flow(number)
        assert world.trace(flow) == (world.hosts, flow)
        assert world.trace(flow.reverse()) == (world.hosts[::-1], flow.reverse())


def leftovers(world: World) -> None:
    """Nothing of old names is left anywhere."""
    world.run(5.0)
    for host in world.hosts:
        assert not host.node.mobility.ports_in_use()
        assert host.node.mobility.unconfirmed() == {}
        per_session = [len(rows) for rows in host.kernel.sessions().values()]
        assert set(per_session) <= {2, 4}, "rows of an old name are left"


@pytest.mark.parametrize("middleboxes", [0, 1, 2, 3])
@pytest.mark.parametrize("end", ["client", "server"])
def test_sessions_follow_an_end_that_moves(middleboxes: int, end: str) -> None:
    world = a_world(middleboxes)
    world.move(getattr(world, end), THERE)
    world.run(0.1)
    check_ways(world)
    leftovers(world)
    check_ways(world)


@pytest.mark.parametrize("end", ["client", "server"])
def test_back_again_at_once(end: str) -> None:
    world = a_world()
    mover: Host = getattr(world, end)
    home = mover.home
    for _ in range(5):
        world.move(mover, THERE)
        world.run(0.0025)
        world.move(mover, "10.9.2.8")
        world.run(0.0005)
    world.move(mover, ".".join(map(str, home[12:])))
    world.run(1.0)
    check_ways(world)
    leftovers(world)
    check_ways(world)


def test_an_answer_is_lost_and_the_end_moves_on() -> None:
    world = a_world(1)
    world.move(world.client, THERE)
    world.run(0.0015)  # the hop knows
    world.move(world.client, ELSEWHERE)  # its answer goes nowhere
    world.run(0.2)
    check_ways(world)
    leftovers(world)


def test_seconds_without_any_address() -> None:
    world = a_world()
    world.move(world.client, None)
    world.run(30.0)
    world.move(world.client, THERE)
    world.run(0.1)
    check_ways(world)


def test_an_agent_is_restarted_in_the_middle_of_a_move() -> None:
    for after in (0.0, 0.0005, 0.0015, 0.0025, 0.8, 4.0):
        for who in (0, 1):
            world = a_world(1)
            world.move(world.client, THERE)
            world.run(after)
            world.hosts[who].kill_agent()
            world.run(0.5)
            world.hosts[who].start()
            world.run(90.0)
            check_ways(world)
            leftovers(world)
            world.move(world.client, ELSEWHERE)
            world.run(0.5)
            check_ways(world)


@pytest.mark.parametrize("rows", range(7))
@pytest.mark.parametrize("end", ["client", "server"])
@pytest.mark.parametrize("middleboxes", [0, 1, 2])
@pytest.mark.parametrize("same_ports", [True, False])
def test_a_hop_is_killed_between_two_rows(
    middleboxes: int, end: str, rows: int, same_ports: bool
) -> None:
    """A tap, an inline function or the other end; each row is changed by itself."""
    world = a_world(middleboxes, sessions=1)
    mover = getattr(world, end)
    hop = world.hosts[1 if mover is world.client else -2]
    if not same_ports:  # somebody else has them
        chooser = mover if mover is world.client else hop
        chooser.ports.claim = lambda flow: False  # type: ignore[method-assign]
    hop.rows_to_live = rows
    world.move(mover, "10.9.3.9")
    world.run(0.3)
    hop.rows_to_live = None
    if not hop.up:
        hop.start()
    world.run(90.0)
    check_ways(world, 1)
    leftovers(world)
    world.move(mover, ELSEWHERE)
    world.run(1.0)
    check_ways(world, 1)


def test_a_hop_is_killed_when_the_leg_has_got_other_ports() -> None:
    """Its first name, which had those of the second, is still known for one."""
    world = a_world(0, sessions=1)
    for where, seconds in (
        (THERE, 0.0005), ("10.9.0.1", 2.1), (ELSEWHERE, 0.0005), (THERE, 0.0015),
    ):  # fmt: skip
        world.move(world.client, where)
        world.run(seconds)
    (before,) = world.client.node.sessions.values()
    (after,) = world.server.node.sessions.values()
    assert before.right is not None
    assert after.left is not None
    assert before.right.sport != after.left.sport
    world.server.kill_agent()
    world.server.start()
    world.run(90.0)
    check_ways(world, 1)
    leftovers(world)


def test_a_session_that_ends_while_its_end_moves() -> None:
    world = a_world(1)
    world.move(world.client, THERE)
    world.run(0.0005)
    for session in list(world.client.node.sessions):
        world.client.feed(Ended(session, "over"))
    world.run(20.0)
    assert not world.ids()
    for host in world.hosts:
        assert not host.kernel.entries
        assert not host.ports.in_use


FATES = st.sampled_from([PROMPT, PROMPT, PROMPT, LOST, DOUBLED, LATE, LATE_DOUBLE])


@settings(max_examples=40, deadline=None, print_blob=False)
@given(data=st.data(), middleboxes=st.integers(0, 3), seed=st.integers(0, 1000))
def test_whatever_happens_packets_find_their_way(
    data: st.DataObject, middleboxes: int, seed: int
) -> None:
    world = a_world(middleboxes, seed=seed)
    bad = True
    world.fate = lambda: data.draw(FATES) if bad else PROMPT
    for _ in range(data.draw(st.integers(1, 6))):
        mover = data.draw(st.sampled_from([world.client, world.server]))
        where = data.draw(st.integers(0, 3))
        if mover is world.server and middleboxes == 0:
            mover = world.client  # neither would find the other
        address = f"10.9.{where}.{1 if mover is world.client else 2}"
        if data.draw(st.booleans()):
            world.move(mover, None)
            world.run(data.draw(st.sampled_from([0.0, 0.01, 0.7])))
        world.move(mover, address)
        for host in world.hosts:
            host.failing_redirects = data.draw(st.sampled_from([0, 0, 0, 1, 2]))
        world.run(data.draw(st.sampled_from([0.0005, 0.0015, 0.0025, 0.03, 0.6, 2.0])))
        if data.draw(st.integers(0, 5)) == 0:
            host = data.draw(st.sampled_from(world.hosts))
            host.kill_agent()
            world.run(data.draw(st.sampled_from([0.0, 0.05])))
            host.start()
    bad = False
    world.run(200.0)
    check_ways(world)
    leftovers(world)
    states = {one.state for host in world.hosts for one in host.node.sessions.values()}
    assert states == {State.ESTABLISHED}


@settings(max_examples=40, deadline=None, print_blob=False)
@given(
    data=st.data(), middleboxes=st.integers(0, 3), seed=st.integers(0, 1000),
    same=st.booleans(), after=st.sampled_from([0.0, 0.0005, 0.0015, 0.03, 0.7, 3.0]),
)  # fmt: skip
def test_another_host_has_the_former_address_at_once(
    data: st.DataObject, middleboxes: int, seed: int, same: bool, after: float
) -> None:
    """It gets a session of its own, but not one that is another's already."""
    world = World(middleboxes, random.Random(seed), others=1)
    for number in range(2):
        world.open(number)
    world.run(1.0)
    bad = True
    world.fate = lambda: data.draw(FATES) if bad else PROMPT
    other = world.others[0]
    flow = world.flow(0)._replace(sport=40000 if same else 50000)
    world.move(world.client, THERE)
    world.move(other, HERE)
    world.run(after)
    other.open(flow, world.chain(), False)
    world.run(2.0)
    bad = False
    (verdict,) = other.verdicts
    if same:
        assert isinstance(verdict, Refuse)
    for session in list(other.node.sessions):
        other.feed(Ended(session, "over"))
    world.run(200.0)
    assert not other.kernel.entries
    check_ways(world, 2)
    leftovers(world)
