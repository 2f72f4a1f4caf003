"""An agent goes before others on credit, which waiting earns."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import trio
import trio.testing

from m2m.agent.promptness import Credit, run_before_others

TASK = cast("Any", None)


class Loop:
    """A trio loop as its instrument sees it, with a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.preferred = [True]
        self.credit = Credit(self.preferred.append, lambda: self.now)
        self.credit.after_io_wait(0)

    def work(self, seconds: float) -> None:
        self.now += seconds
        self.credit.after_task_step(TASK)

    def wait(self, seconds: float) -> None:
        self.credit.before_io_wait(seconds)
        self.now += seconds
        self.credit.after_io_wait(seconds)


def test_little_work_never_uses_it_up() -> None:
    loop = Loop()
    for _ in range(1000):
        loop.work(0.002)
        loop.wait(0.01)
    assert loop.preferred == [True]


@pytest.mark.parametrize("steps", [1, 30])
def test_much_work_at_once_is_ordinary_work(steps: int) -> None:
    loop = Loop()
    for _ in range(steps):
        loop.work(0.03 / steps)
        loop.wait(0.0)  # as when tasks only give others their turn
    assert loop.preferred == [True, False]
    loop.wait(0.01)
    assert loop.preferred == [True, False], "that has not earned much"
    loop.wait(0.1)
    assert loop.preferred == [True, False, True]


def test_a_storm_gets_no_more_than_its_share() -> None:
    loop = Loop()
    before = 0.0
    for _ in range(10_000):
        ahead = loop.preferred[-1]
        loop.work(0.001)
        before += 0.001 * ahead
        loop.wait(0.0002)
    assert before < 0.06 * loop.now


def policies() -> tuple[int, int, int]:
    """That of a thread with a preferred loop, of one that it has started, and of it afterwards."""

    def own() -> int:
        return os.sched_getscheduler(0)

    def beside() -> int:
        with ThreadPoolExecutor(1) as other:
            return other.submit(own).result()

    async def look() -> tuple[int, int]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_before_others)
            await trio.testing.wait_all_tasks_blocked()
            found = own(), beside()
            nursery.cancel_scope.cancel()
        return found

    def in_thread() -> tuple[int, int, int]:
        return (*trio.run(look), own())

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(in_thread).result()


@pytest.mark.needs("root")
def test_the_kernel_prefers_the_loop_and_not_what_it_starts() -> None:
    if len(os.sched_getaffinity(0)) == 1:
        pytest.skip("there is only one processor")
    reset = os.SCHED_RESET_ON_FORK
    assert policies() == (os.SCHED_RR | reset, os.SCHED_OTHER, os.SCHED_OTHER | reset)


def test_on_one_processor_it_stays_an_ordinary_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    one: Callable[[int], set[int]] = lambda _: {0}  # noqa: E731
    monkeypatch.setattr(os, "sched_getaffinity", one)
    assert set(policies()) == {os.SCHED_OTHER}
