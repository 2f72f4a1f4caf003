"""Timers: each fires once at its time, and replaced or cancelled ones never do."""

import trio
import trio.testing
from trio.testing import MockClock

from m2m.agent.timers import Timers
from m2m.protocol.events import Timer


async def collect(timers: Timers, count: int) -> list[tuple[int, float]]:
    start = trio.current_time()
    fired = []
    async for session, _ in timers.expired():
        fired.append((session, round(trio.current_time() - start, 6)))
        if len(fired) == count:
            break
    return fired


async def test_fire_in_order_of_their_times(autojump_clock: MockClock) -> None:
    timers = Timers()
    timers.set(1, 3.0)
    timers.set(2, 1.0)
    assert len(timers) == 2
    assert await collect(timers, 2) == [(2, 1.0), (1, 3.0)]
    assert len(timers) == 0


async def test_a_later_setting_replaces_and_cancelling_forgets(autojump_clock: MockClock) -> None:
    timers = Timers()
    timers.set(1, 1.0)
    timers.set(1, 5.0)
    timers.set(2, 2.0)
    timers.cancel(2)
    timers.cancel(3)
    timers.set(4, 6.0)
    assert await collect(timers, 2) == [(1, 5.0), (4, 6.0)]


async def test_a_session_has_one_of_each_kind(autojump_clock: MockClock) -> None:
    timers = Timers()
    timers.set(1, 2.0)
    timers.set(1, 1.0, Timer.CHANGE)
    timers.set(1, 3.0, Timer.REQUEST)
    timers.cancel(1, Timer.REQUEST)
    fired = []
    async for key in timers.expired():
        fired.append(key)
        if len(fired) == 2:
            break
    assert fired == [(1, Timer.CHANGE), (1, Timer.SESSION)]
    assert len(timers) == 0


async def test_short_delays_are_kept_to(autojump_clock: MockClock) -> None:
    timers = Timers()
    timers.set(1, 0.001)
    timers.set(2, 0.1)
    (first, at), (second, later) = await collect(timers, 2)
    assert (first, at, second) == (1, 0.001, 2)
    assert 0.1 <= later < 0.1 + 1 / 256


async def test_an_earlier_one_set_while_sleeping_is_not_late(autojump_clock: MockClock) -> None:
    timers = Timers()
    timers.set(1, 10.0)
    fired: list[tuple[int, float]] = []

    async def consume() -> None:
        fired.extend(await collect(timers, 2))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        await trio.testing.wait_all_tasks_blocked()
        timers.set(2, 1.0)
    assert fired == [(2, 1.0), (1, 10.0)]


async def test_one_set_while_another_is_handled_fires(autojump_clock: MockClock) -> None:
    timers = Timers()
    timers.set(1, 1.0)
    fired = []
    async for session, _ in timers.expired():
        fired.append(session)
        if session == 2:
            break
        timers.set(2, 0.0)
    assert fired == [1, 2]


async def test_replaced_timers_do_not_pile_up(autojump_clock: MockClock) -> None:
    timers = Timers()
    for _ in range(10_000):
        timers.set(1, 60.0)
    assert len(timers._heap) < 200
    assert await collect(timers, 1) == [(1, 60.0)]


async def test_many_at_once_let_other_tasks_have_their_turn(autojump_clock: MockClock) -> None:
    """What these do may make the rest void: answers to what the timers were to repeat."""
    timers = Timers()
    for session in range(1000):
        timers.set(session, 1.0)

    async def answer() -> None:
        await trio.sleep(1.1)
        for session in range(500, 1000):
            timers.cancel(session)

    fired = []

    async def collect_all() -> None:
        async for session, _ in timers.expired():
            fired.append(session)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        nursery.start_soon(collect_all)
        await trio.testing.wait_all_tasks_blocked()
        autojump_clock.jump(2.0)  # late: all timers, and the answer, are due
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert fired == list(range(500))
    assert len(timers) == 0
