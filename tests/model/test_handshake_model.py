"""I5: whatever happens to messages and hosts, a session ends up done everywhere or nowhere.

Each property plays scenes in :mod:`tests.support.simulation`: for a bounded time the network
loses, doubles, delays and reorders, and agents or whole hosts go down and come back; then it is
well, time passes, and all hosts must agree. ``M2M_HEAVY=1`` plays many more scenes.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from m2m.protocol.commands import Refuse, Steer
from m2m.protocol.events import Ended
from m2m.protocol.flow import Flow
from m2m.protocol.session import State
from tests.support.simulation import DOUBLED, LATE, LATE_DOUBLE, LOST, PROMPT, Fate, World

MANY = 20 if os.environ.get("M2M_HEAVY") == "1" else 1

TROUBLE = 4.0  # s, at most; less than any host waits for an answer to its FIN
CALM = 40.0  # s: everything that waits has given up
PROBES = 400.0  # s: time for a client to ask three times

fates = st.lists(st.sampled_from([PROMPT, LOST, DOUBLED, LATE, LATE_DOUBLE]), max_size=40)
middleboxes = st.integers(0, 4)
seeds = st.integers(0, 2**32)
times = st.floats(0, TROUBLE)


def script(fate: list[Fate]) -> Callable[[], Fate]:
    """These fates for the first datagrams, and good ones for all others."""
    queue = iter(fate)
    return lambda: next(queue, PROMPT)


def storm(world: World, loss: float, doubling: float, spread: float) -> None:
    """A bad network until the trouble is over, and all that was delayed has come."""
    rng = world.rng

    def fate() -> Fate:
        if world.now > TROUBLE:
            return PROMPT
        if rng.random() < loss:
            return LOST
        count = 2 if rng.random() < doubling else 1
        return Fate(tuple(0.0005 + rng.expovariate(1 / spread) for _ in range(count)))

    world.fate = fate


def verdicts_given(world: World, opened: int) -> None:
    assert len(world.client.verdicts) == opened
    assert not world.client.kernel.held


@given(middleboxes, fates, st.booleans())
@settings(max_examples=150 * MANY)
@example(0, [LOST] * 40, True)
@example(2, [LOST] * 40, False)
def test_any_fate_of_any_message(hops: int, fate: list[Fate], fail_open: bool) -> None:
    world = World(hops, random.Random(1), fate=script(fate))

    def complete(flow: Flow) -> None:
        assert world.trace(flow) == (world.hosts, flow)
        assert world.trace(flow.reverse()) == (world.hosts[::-1], flow.reverse())

    world.steered = complete  # packets go only when the path is in place, both ways
    world.open(0, fail_open=fail_open)
    world.run(CALM)
    world.check_agreement()
    verdicts_given(world, 1)
    (verdict,) = world.client.verdicts
    assert isinstance(verdict, Steer) or (verdict.fail_open == fail_open and verdict.why)
    assert bool(world.ids()) <= isinstance(verdict, Steer)


@given(
    middleboxes,
    st.dictionaries(
        st.integers(0, 40), st.sampled_from([LOST, DOUBLED, LATE, LATE_DOUBLE]), max_size=4
    ),
)
@settings(max_examples=150 * MANY)
def test_a_few_faults_are_made_good(hops: int, faults: dict[int, Fate]) -> None:
    """Agreement could be had by refusing everything; that is not what retransmission is for."""
    world = World(hops, random.Random(1), fate=script([faults.get(n, PROMPT) for n in range(41)]))
    world.open(0)
    world.run(1.0)
    assert [type(verdict) for verdict in world.client.verdicts] == [Steer]
    world.run(CALM)
    assert world.ids()
    world.check_agreement()


@given(middleboxes, fates, st.data())
@settings(max_examples=100 * MANY)
def test_any_fate_of_any_message_at_the_end(
    hops: int, fate: list[Fate], data: st.DataObject
) -> None:
    world = World(hops, random.Random(1))
    world.open(0)
    world.run(1.0)
    (session,) = world.ids()
    world.fate = script(fate)
    for at in data.draw(st.sets(st.integers(0, hops + 1), min_size=1)):
        world.after(data.draw(st.floats(0, 0.1)), lambda at=at: world.hosts[at].feed(
            Ended(session, "fin")))  # fmt: skip
    world.run(CALM)
    world.check_empty()


@given(
    middleboxes, seeds, st.floats(0, 0.6), st.floats(0, 0.5), st.floats(0.0005, 0.4),
    st.lists(st.tuples(times, st.integers(0, 5)), min_size=1, max_size=12),
    st.lists(st.tuples(times, st.integers(0, 5), st.integers(0, 11)), max_size=6),
    st.lists(st.tuples(times, st.integers(0, 5)), max_size=3),
)  # fmt: skip
@settings(max_examples=150 * MANY)
def test_many_sessions_in_a_storm(
    hops: int, seed: int, loss: float, doubling: float, spread: float,
    opens: list[tuple[float, int]], ends: list[tuple[float, int, int]],
    full: list[tuple[float, int]],
) -> None:  # fmt: skip
    """Sessions opened (some with the flow of an earlier one), ended anywhere, and refused by
    full datapaths; the network is bad, but no host goes down: no idle timeout is needed."""
    world = World(hops, random.Random(seed), ports=8)
    storm(world, loss, doubling, spread)
    schedule(world, opens, ends, full)
    world.run(CALM)
    world.check_agreement()
    assert not world.client.kernel.held
    close_all(world)


@given(
    middleboxes, seeds, st.floats(0, 0.5), st.floats(0.0005, 0.2),
    st.lists(st.tuples(times, st.integers(0, 5)), min_size=1, max_size=8),
    st.lists(st.tuples(times, st.integers(0, 5), st.integers(0, 7)), max_size=4),
    st.lists(st.tuples(times, st.floats(0.001, 1), st.integers(0, 5), st.booleans()), min_size=1,
             max_size=5),
)  # fmt: skip
@settings(max_examples=200 * MANY)
def test_agents_and_hosts_go_down_and_come_back(
    hops: int, seed: int, loss: float, spread: float,
    opens: list[tuple[float, int]], ends: list[tuple[float, int, int]],
    crashes: list[tuple[float, float, int, bool]],
) -> None:  # fmt: skip
    """With a dead agent the kernel's entries stay and are taken over; with a dead host they are
    gone, and its neighbours have to find out: the client by asking, the others by idleness."""
    world = World(hops, random.Random(seed), ports=16)
    storm(world, loss, 0.2, spread)
    schedule(world, opens, ends, [])
    for at, down, which, whole in crashes:
        world.after(at, lambda d=down, n=which, w=whole: crash(world, n, d, w))
    world.run(TROUBLE + CALM + PROBES)
    world.idle_out()
    world.run(CALM)
    world.check_agreement()
    close_all(world)


def schedule(
    world: World,
    opens: list[tuple[float, int]],
    ends: list[tuple[float, int, int]],
    full: list[tuple[float, int]],
) -> None:
    for at, number in opens:
        world.after(at, lambda n=number: world.open(n))
    for at, which, number in ends:
        world.after(at, lambda w=which, n=number: end(world, w, n))
    for at, which in full:
        world.after(at, lambda w=which: fill(world, w))


def end(world: World, which: int, number: int) -> None:
    host = world.hosts[which % len(world.hosts)]
    if host.up and host.node.sessions:
        host.feed(Ended(sorted(host.node.sessions)[number % len(host.node.sessions)], "rst"))


def fill(world: World, which: int) -> None:
    world.hosts[which % len(world.hosts)].failing_installs += 1


def crash(world: World, which: int, down: float, whole: bool) -> None:
    host = world.hosts[which % len(world.hosts)]
    if host.up:
        (host.power_off if whole else host.kill_agent)()
        world.after(down, host.start)


def close_all(world: World) -> None:
    """In calm weather every session that stands can be ended, and leaves nothing."""
    for session in sorted(world.client.node.sessions):
        world.client.feed(Ended(session, "fin"))
    world.run(CALM)
    world.check_empty()
    assert all(not host.timers for host in world.hosts)


@pytest.mark.parametrize("hops", range(5))
@pytest.mark.parametrize("silent", range(1, 6))
def test_a_silent_host_is_found_and_named_in_time(hops: int, silent: int) -> None:
    """The host before the silent one says so, before its own client gives up."""
    if silent > hops + 1:
        return
    world = World(hops, random.Random(7))
    world.hosts[silent].power_off()
    world.open(0, fail_open=True)
    world.run(1.01)
    (verdict,) = world.client.verdicts
    assert isinstance(verdict, Refuse)
    assert verdict.blame == world.hosts[silent].address
    assert "does not answer" in verdict.why
    world.run(CALM)
    world.hosts[silent].start()
    world.check_empty()


@pytest.mark.parametrize("whole", [False, True], ids=["agent", "host"])
@pytest.mark.parametrize("which", range(4))
def test_an_established_session_survives_its_agents_and_not_its_hosts(
    which: int, whole: bool
) -> None:
    world = World(2, random.Random(3))
    world.open(0)
    world.run(1)
    (session,) = world.ids()
    host = world.hosts[which]
    crash(world, which, 0.5, whole)
    world.run(CALM + PROBES)
    if whole:
        world.idle_out()
        world.run(CALM)
        world.check_empty()
    else:
        assert host.node.sessions[session].state is State.ESTABLISHED
        world.check_agreement()
        close_all(world)
