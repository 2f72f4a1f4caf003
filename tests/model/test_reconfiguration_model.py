"""I4, I5: the chain of a session that talks is changed, and nothing is lost, whatever happens.

Each property plays scenes in :mod:`tests.support.traffic`: changes anywhere and at once, while the
network loses, doubles, delays and reorders control messages, and agents or whole hosts go down and
come back. Then it is well and time passes: the chain must be connected, nobody be in a change
still, everybody who asked must have an answer, and no packet may have been lost (lf), overtaken
(op), or seen by the wrong network function. ``M2M_HEAVY=1`` plays many more scenes.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from m2m.protocol.commands import ChangeDone, ChangeRefused, Switched
from m2m.protocol.events import Ended
from m2m.protocol.update import Mode
from m2m.protocol.wire import Cause
from tests.support.simulation import DOUBLED, LATE, LATE_DOUBLE, LOST, PROMPT, Fate
from tests.support.traffic import BusyWorld

MANY = 20 if os.environ.get("M2M_HEAVY") == "1" else 1

TROUBLE = 1.0  # s, at most
CALM = 60.0  # s: everything that waits has given up, and all have asked
SPARSE = 0.008  # s between two packets: there are many scenes

MODES = [Mode.LF, Mode.OP, Mode.SS_OP]
modes = st.sampled_from(MODES)
fates = st.lists(st.sampled_from([PROMPT, LOST, DOUBLED, LATE, LATE_DOUBLE]), max_size=40)
seeds = st.integers(0, 2**32)
times = st.floats(0, TROUBLE)

# L, the old run, R, the new run, and the path after it, from 0 1 2 3
CHANGES = [
    (0, [], 1, [4], [0, 4, 1, 2, 3]),
    (0, [], 1, [4, 5], [0, 4, 5, 1, 2, 3]),
    (2, [], 3, [5], [0, 1, 2, 5, 3]),
    (0, [1], 2, [], [0, 2, 3]),
    (0, [1, 2], 3, [], [0, 3]),
    (0, [1], 2, [4], [0, 4, 2, 3]),
    (1, [2], 3, [4], [0, 1, 4, 3]),
    (1, [2], 3, [5], [0, 1, 5, 3]),
    (0, [1, 2], 3, [4, 5], [0, 4, 5, 3]),
    (0, [1, 2], 3, [5], [0, 5, 3]),
]
changes = st.sampled_from(CHANGES)


def quiet_down(world: BusyWorld, talk: float = 0.5) -> None:
    """The last packets arrive, and everybody has had time to find out."""
    world.run(talk)
    world.talking = False
    world.run(CALM)


def script(fate: list[Fate]) -> Callable[[], Fate]:
    queue = iter(fate)
    return lambda: next(queue, PROMPT)


def check(world: BusyWorld, mode: Mode) -> list[int]:
    path = world.check_whole()
    if mode is Mode.OP:
        world.check_order()
    else:
        world.check_nothing_lost()
    assert not world.late, "a network function saw packets after its state had left"
    return path


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "".join(map(str, change[4])))
def test_a_change_in_calm(change: tuple[int, list[int], int, list[int], list[int]],
                          mode: Mode) -> None:  # fmt: skip
    at, old, right, new, path = change
    world = BusyWorld(2, random.Random(1))
    world.talk()
    world.run(0.1)
    number = world.change(at, old, right, new, mode)
    quiet_down(world, 0.3)
    outcome = world.outcomes()[number]
    assert isinstance(outcome, ChangeDone), outcome
    assert check(world, mode) == path
    moved = 0 if mode is Mode.LF else min(len(old), len(new))
    assert world.exports == moved
    world.check_order()  # nothing is delayed: lf does not let packets overtake, either
    assert world.held or mode is Mode.LF
    if mode is Mode.LF:
        assert bool(outcome.held) == (not new)  # L has kept them back; else the new host has
    else:
        assert outcome.held == world.held  # both ends' packets are reported


@given(changes, modes, fates, seeds)
@settings(max_examples=150 * MANY)
@example(CHANGES[5], Mode.LF, [LOST] * 40, 1)
@example(CHANGES[5], Mode.OP, [PROMPT] * 8 + [LOST] * 32, 1)
def test_any_fate_of_any_message(
    change: tuple[int, list[int], int, list[int], list[int]], mode: Mode, fate: list[Fate],
    seed: int,
) -> None:  # fmt: skip
    at, old, right, new, path = change
    world = BusyWorld(2, random.Random(seed), fate=script(fate))
    world.talk(SPARSE)
    number = world.change(at, old, right, new, mode)
    quiet_down(world, 1.0)
    outcome = world.outcomes()[number]
    expected = path if isinstance(outcome, ChangeDone) else [0, 1, 2, 3]
    assert check(world, mode) == expected


@given(
    changes, modes,
    st.dictionaries(
        st.integers(0, 25), st.sampled_from([LOST, DOUBLED, LATE, LATE_DOUBLE]), max_size=3
    ),
)  # fmt: skip
@settings(max_examples=100 * MANY)
def test_a_few_faults_are_made_good(
    change: tuple[int, list[int], int, list[int], list[int]], mode: Mode, faults: dict[int, Fate]
) -> None:
    """Agreement could be had by undoing everything; that is not what retransmission is for."""
    at, old, right, new, path = change
    fate = [faults.get(n, PROMPT) for n in range(26)]
    world = BusyWorld(2, random.Random(1), fate=script(fate))
    world.talk(SPARSE)
    number = world.change(at, old, right, new, mode)
    quiet_down(world)
    assert isinstance(world.outcomes()[number], ChangeDone)
    assert check(world, mode) == path


# --- many at once -------------------------------------------------------------------------------

wishes = st.lists(
    st.tuples(times, st.integers(0, 5), st.integers(0, 2), st.lists(st.integers(0, 2), max_size=2),
              modes, st.booleans()),
    min_size=1, max_size=6,
)  # fmt: skip


def wish(world: BusyWorld, wanted: tuple[float, int, int, list[int], Mode, bool],
         numbers: list[int]) -> None:  # fmt: skip
    """Change something at some place of the path as it is now, or have a middlebox ask for it."""
    _, place, run, new, mode, by_itself = wanted
    traced = world.trace(world.conversation)
    if traced is None:
        return
    path = [host.index for host in traced[0]]
    place %= len(path) - 1
    right = min(place + 1 + run, len(path) - 1)
    others = [world.first_other + n for n in dict.fromkeys(new)]
    host = world.host(path[place])
    if not host.up or world.session not in host.node.sessions:
        return
    if by_itself and place > 0:
        numbers.append(world.ask_to_be_replaced(path[place], others, mode))
    else:
        numbers.append(
            world.change(path[place], path[place + 1 : right], path[right], others, mode)
        )


def storm(world: BusyWorld, loss: float, doubling: float, spread: float) -> None:
    rng, until = world.rng, world.now + TROUBLE

    def fate() -> Fate:
        if world.now > until:
            return PROMPT
        if rng.random() < loss:
            return LOST
        count = 2 if rng.random() < doubling else 1
        return Fate(tuple(0.0005 + rng.expovariate(1 / spread) for _ in range(count)))

    world.fate = fate


@given(st.integers(0, 4), wishes, seeds)
@settings(max_examples=100 * MANY)
def test_many_changes_at_once_in_calm(
    middleboxes: int, wanted: list[tuple[float, int, int, list[int], Mode, bool]], seed: int
) -> None:
    world = BusyWorld(middleboxes, random.Random(seed), others=3)
    numbers: list[int] = []
    world.talk(SPARSE)
    for one in wanted:
        world.after(one[0] / 50, lambda one=one: wish(world, one, numbers))
    quiet_down(world)
    assert world.outcomes().keys() == set(numbers)
    check(world, Mode.LF)
    if all(one[4] is Mode.OP for one in wanted):
        world.check_order()


@given(
    st.integers(0, 4), wishes, seeds, st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0.0005, 0.2)
)
@settings(max_examples=150 * MANY)
def test_many_changes_in_a_storm(
    middleboxes: int, wanted: list[tuple[float, int, int, list[int], Mode, bool]], seed: int,
    loss: float, doubling: float, spread: float,
) -> None:  # fmt: skip
    world = BusyWorld(middleboxes, random.Random(seed), others=3)
    storm(world, loss, doubling, spread)
    numbers: list[int] = []
    world.talk(SPARSE)
    for one in wanted:
        world.after(one[0], lambda one=one: wish(world, one, numbers))
    quiet_down(world, TROUBLE + 1)
    assert world.outcomes().keys() == set(numbers)
    world.check_whole()
    world.check_nothing_lost()


# --- what a session can be doing ------------------------------------------------------------------


@given(seeds, st.sampled_from([0, (1 << 32) - 4000, (1 << 31) - 4000]), st.floats(0, 0.8))
@settings(max_examples=100 * MANY)
def test_substreams_are_parted_at_one_byte(seed: int, start: int, again: float) -> None:
    """With retransmissions that lie across the checkpoint, and where sequence numbers wrap."""
    world = BusyWorld(1, random.Random(seed), start=start)
    world.again = again
    world.talk(0.002)
    world.run(0.1)
    number = world.change(0, [1], 2, [3], Mode.SS_OP)
    quiet_down(world)
    assert isinstance(world.outcomes()[number], ChangeDone)
    assert world.check_whole() == [0, 3, 2]
    assert not world.late
    world.check_bytes()
    world.check_substreams(1, 3)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("said", [False, True])
def test_a_session_with_nothing_in_flight(mode: Mode, said: bool) -> None:
    world = BusyWorld(2, random.Random(1))
    if said:
        world.talk()
        world.run(0.1)
        world.talking = False
        world.run(0.1)
    number = world.change(0, [1], 2, [4], mode)
    world.run(0.3)
    assert isinstance(world.outcomes()[number], ChangeDone)
    assert world.check_whole() == [0, 4, 2, 3]
    world.talk()
    quiet_down(world)
    world.check_order()


@given(changes, modes, st.floats(0, 0.04), st.integers(0, 5), fates)
@settings(max_examples=100 * MANY)
def test_a_session_that_ends_in_mid_change(
    change: tuple[int, list[int], int, list[int], list[int]], mode: Mode, when: float, where: int,
    fate: list[Fate],
) -> None:  # fmt: skip
    at, old, right, new, _ = change
    world = BusyWorld(2, random.Random(1), fate=script(fate))
    world.talk(SPARSE)
    world.change(at, old, right, new, mode)
    world.after(when, lambda: world.host(where).feed(Ended(world.session, "rst")))
    world.run(0.2)
    world.talking = False
    world.run(CALM * 4)
    world.client.feed(Ended(world.session, "fin"))  # if it had not reached the host it ended at
    world.run(CALM)
    assert len(world.outcomes()) == 1
    for host in world.everybody():
        assert not host.node.sessions
        assert not host.kernel.entries
        assert not host.ports.in_use
        assert not host.timers
        assert not host.other_timers


# --- contention ---------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0.0, 0.0005, 0.001, 0.002, 0.003, 0.01])
@pytest.mark.parametrize("order", [(1, 2), (2, 1)], ids=str)
def test_two_neighbours_that_want_to_go_both_go(order: tuple[int, int], first: float) -> None:
    world = BusyWorld(2, random.Random(1))
    world.talk()
    numbers = [world.ask_to_be_replaced(order[0], [])]
    world.run(first)
    numbers.append(world.ask_to_be_replaced(order[1], []))
    quiet_down(world)
    assert [type(world.outcomes()[number]) for number in numbers] == [ChangeDone, ChangeDone]
    assert check(world, Mode.LF) == [0, 3]


@given(seeds, st.lists(st.tuples(st.integers(1, 4), st.floats(0, 0.02)), min_size=2, max_size=5))
@settings(max_examples=50 * MANY)
def test_of_contenders_one_always_wins(seed: int, wanted: list[tuple[int, float]]) -> None:
    world = BusyWorld(4, random.Random(seed))
    world.talk(SPARSE)
    numbers: list[int] = []

    def ask(at: int) -> None:
        if world.session in world.host(at).node.sessions:
            numbers.append(world.ask_to_be_replaced(at, []))

    for at, when in wanted:
        world.after(when, lambda at=at: ask(at))
    quiet_down(world)
    outcomes = world.outcomes()
    assert outcomes.keys() == set(numbers)
    gone = {at for at, _ in wanted}
    assert check(world, Mode.LF) == [at for at in range(6) if at not in gone]
    assert sum(isinstance(outcome, ChangeDone) for outcome in outcomes.values()) == len(gone)


# --- agents and hosts that go down --------------------------------------------------------------


def crash(world: BusyWorld, which: int, down: float, whole: bool) -> None:
    hosts = list(world.everybody())
    host = hosts[which % len(hosts)]
    if host.up:
        (host.power_off if whole else host.kill_agent)()
        world.after(down, host.start)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("which", range(5), ids=["L", "old", "R", "server", "new"])
def test_an_agent_dies_at_any_moment(which: int, mode: Mode) -> None:
    """Killed after every half a millisecond of a change: the session lives, one path is whole."""
    ends = set()
    for step in range(45):
        down = (0.05, 3.0, 20.0)[step % 3]
        world = BusyWorld(2, random.Random(step))
        world.talk(SPARSE)
        world.run(0.02)
        world.change(0, [1], 2, [4], mode)
        world.after(step * 0.0005, lambda world=world, down=down: crash(world, which, down, False))
        quiet_down(world)
        world.run(down + CALM)
        ends.add(tuple(world.check_whole()))
        world.check_nothing_lost()
    assert ends <= {(0, 1, 2, 3), (0, 4, 2, 3)}


@given(
    st.integers(0, 4), wishes, seeds, st.floats(0, 0.4), st.floats(0.0005, 0.1),
    st.lists(st.tuples(times, st.floats(0.001, 1), st.integers(0, 8)), min_size=1, max_size=5),
)  # fmt: skip
@settings(max_examples=150 * MANY)
def test_agents_go_down_and_come_back(
    middleboxes: int, wanted: list[tuple[float, int, int, list[int], Mode, bool]], seed: int,
    loss: float, spread: float, crashes: list[tuple[float, float, int]],
) -> None:  # fmt: skip
    world = BusyWorld(middleboxes, random.Random(seed), others=3)
    storm(world, loss, 0.2, spread)
    numbers: list[int] = []
    world.talk(SPARSE)
    for one in wanted:
        world.after(one[0], lambda one=one: wish(world, one, numbers))
    for at, down, which in crashes:
        world.after(at, lambda n=which, d=down: crash(world, n, d, False))
    quiet_down(world, TROUBLE + 1.5)
    world.run(CALM * 4)
    world.check_whole()
    world.check_nothing_lost()


@given(
    st.integers(0, 4), wishes, seeds,
    st.lists(
        st.tuples(times, st.floats(0.001, 1), st.integers(0, 8), st.booleans()),
        min_size=1, max_size=4,
    ),
)  # fmt: skip
@settings(max_examples=100 * MANY)
def test_hosts_go_down_and_come_back(
    middleboxes: int, wanted: list[tuple[float, int, int, list[int], Mode, bool]], seed: int,
    crashes: list[tuple[float, float, int, bool]],
) -> None:  # fmt: skip
    """A host that goes down takes what it carried with it; but nothing of it may stay elsewhere."""
    world = BusyWorld(middleboxes, random.Random(seed), others=3)
    numbers: list[int] = []
    world.talk(SPARSE)
    for one in wanted:
        world.after(one[0], lambda one=one: wish(world, one, numbers))
    for at, down, which, whole in crashes:
        world.after(at, lambda n=which, d=down, w=whole: crash(world, n, d, w))
    quiet_down(world, TROUBLE + 1)
    world.run(CALM * 6)
    world.idle_out()
    world.run(CALM)
    if world.session in world.client.node.sessions:
        world.check_whole()
    else:
        for host in world.everybody():
            assert not host.node.sessions
            assert not host.kernel.entries
            assert not host.ports.in_use


def committed(world: BusyWorld, *change: object) -> int:
    """Run until L has decided."""
    number = world.change(*change)  # type: ignore[arg-type]
    while not any(isinstance(one, Switched) and one.change == number for one in world.client.told):
        world.run(0.0005)
    return number


def test_a_host_of_the_old_path_is_gone_for_ever() -> None:
    """R asks L itself; and the next change need not wait for a host that will never answer."""
    world = BusyWorld(3, random.Random(1), others=2)
    world.talk(SPARSE)
    number = committed(world, 0, [1, 2], 3, [5])
    world.host(1).power_off()
    world.run(CALM)
    assert isinstance(world.outcomes()[number], ChangeDone)
    number = world.change(0, [5], 3, [6])
    world.run(CALM)
    assert isinstance(world.outcomes()[number], ChangeDone)
    world.idle_out()  # 2 has not heard; nothing comes by it
    world.talking = False
    world.host(1).start()  # too late to matter
    world.run(CALM)
    assert world.check_whole() == [0, 6, 3, 4]


@pytest.mark.parametrize("right_is_back", [False, True])
def test_a_session_that_ends_while_its_old_leg_is_kept(right_is_back: bool) -> None:
    world = BusyWorld(2, random.Random(1))
    world.talk(SPARSE)
    committed(world, 0, [1], 2, [4])
    world.host(2).kill_agent()
    world.run(CALM)
    assert world.client.node.sessions[world.session].change is not None
    assert world.host(1).kernel.entries
    world.talking = False
    world.client.feed(Ended(world.session, "fin"))
    if right_is_back:
        world.host(2).start()
    world.run(CALM)
    for host in world.everybody():
        if right_is_back or host.index in (0, 1, 4):
            assert not host.node.sessions
            assert not host.kernel.entries
            assert not host.ports.in_use


# --- refusals -----------------------------------------------------------------------------------


def refusal(world: BusyWorld, number: int) -> ChangeRefused:
    quiet_down(world)
    outcome = world.outcomes()[number]
    assert isinstance(outcome, ChangeRefused)
    assert check(world, Mode.OP) == [0, 1, 2, 3]
    return outcome


def test_a_silent_new_host() -> None:
    world = BusyWorld(2, random.Random(1))
    world.host(4).power_off()
    world.talk()
    refused = refusal(world, world.change(0, [1], 2, [4]))
    assert refused.cause is Cause.TIMEOUT


def test_a_new_host_that_is_full() -> None:
    world = BusyWorld(2, random.Random(1))
    world.host(4).failing_installs = 1
    world.talk()
    refused = refusal(world, world.change(0, [1], 2, [4], Mode.OP))
    assert (refused.cause, refused.blame) == (Cause.INSTALL_FAILED, world.host(4).address)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("at", [0, 2])
def test_an_end_that_cannot_take_the_new_leg(at: int, mode: Mode) -> None:
    world = BusyWorld(2, random.Random(1))
    world.host(at).failing_installs = 1
    world.talk()
    refused = refusal(world, world.change(0, [1], 2, [4], mode))
    assert (refused.cause, refused.blame) == (Cause.INSTALL_FAILED, world.host(at).address)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_an_end_that_cannot_redirect(mode: Mode) -> None:
    """L can still undo it. For R all is decided: it goes on with the old leg until it can."""
    world = BusyWorld(2, random.Random(1))
    world.client.failing_redirects = 1
    world.talk()
    refused = refusal(world, world.change(0, [1], 2, [4], mode))
    assert (refused.cause, refused.blame) == (Cause.INSTALL_FAILED, world.client.address)
    world.host(2).failing_redirects = 3
    world.talk()
    number = world.change(0, [1], 2, [4], mode)
    quiet_down(world)
    assert isinstance(world.outcomes()[number], ChangeDone)
    assert world.check_whole() == [0, 4, 2, 3]
    world.check_nothing_lost()


def test_a_path_of_smaller_packets() -> None:
    world = BusyWorld(2, random.Random(1))
    world.small_mtu = 4
    world.talk()
    refused = refusal(world, world.change(0, [1], 2, [4]))
    assert refused.cause is Cause.MTU
    assert "1499" in refused.text


def test_a_state_that_is_not_taken() -> None:
    world = BusyWorld(2, random.Random(1))
    world.refuses_state = True
    world.talk()
    refused = refusal(world, world.change(0, [1], 2, [4], Mode.OP))
    assert (refused.cause, refused.blame) == (Cause.STATE, world.host(1).address)


@pytest.mark.parametrize("at", [0, 2])
def test_too_many_packets_to_hold(at: int) -> None:
    world = BusyWorld(2, random.Random(1))
    world.host(at).kernel.hold_limit = 1
    world.talk(0.0003)
    refused = refusal(world, world.change(0, [1], 2, [4], Mode.OP))
    assert (refused.cause, refused.blame) == (Cause.OVERFLOW, world.host(at).address)


def test_a_chain_that_is_another_one() -> None:
    world = BusyWorld(2, random.Random(1))
    world.talk()
    refused = refusal(world, world.change(0, [2], 3, [4]))
    assert (refused.cause, refused.blame) == (Cause.MOVED, world.client.address)
    refused = refusal(world, world.change(0, [1], 3, [4]))
    assert (refused.cause, refused.blame) == (Cause.MOVED, world.host(1).address)


@pytest.mark.parametrize("new", [[2], [1], [0], [4, 4]])
def test_a_host_that_is_there_already(new: list[int]) -> None:
    world = BusyWorld(2, random.Random(1))
    world.talk()
    refused = refusal(world, world.change(0, [1], 2, new))
    assert refused.cause is Cause.LOOP


def test_nothing_to_change() -> None:
    world = BusyWorld(2, random.Random(1))
    assert refusal(world, world.change(0, [], 1, [])).cause is Cause.MODE


def test_udp_has_no_substreams() -> None:
    world = BusyWorld(2, random.Random(1), flow=2)
    assert refusal(world, world.change(0, [1], 2, [4], Mode.SS_OP)).cause is Cause.MODE
    number = world.change(0, [1], 2, [4], Mode.OP)
    quiet_down(world)
    assert isinstance(world.outcomes()[number], ChangeDone)
