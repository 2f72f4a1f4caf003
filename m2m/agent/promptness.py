"""An agent runs before ordinary processes, as long as it has only a little to do at a time.

Sessions wait for an agent while they are set up, changed and moved. It works for a millisecond or
two; behind a busy network function it would come late each time. So the kernel runs its thread as
soon as there is something to do (``SCHED_RR``). But where much is to do at once, as when a thousand
sessions move or a storm of new ones comes, that would keep processors from what carries the
packets. So it goes before others only on credit, which waiting earns: with none left it is an
ordinary thread until it has waited again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import perf_counter

import structlog
import trio

__all__ = ["Credit", "run_before_others"]

_log = structlog.get_logger()

_MOST = 0.010  # s of work: a move or a change, and what it is told of meanwhile
_EARNED = 0.25  # s by each second of waiting: at most a fifth of one processor


class Credit(trio.abc.Instrument):
    """Calls *prefer* with False when the credit of a trio loop is used up, with True when it has
    some again. Times are those of *clock*, in seconds."""

    def __init__(
        self, prefer: Callable[[bool], None], clock: Callable[[], float] = perf_counter
    ) -> None:
        self._prefer = prefer
        self._clock = clock
        self._left = _MOST
        self._since = clock()  # work, or waiting, has begun
        self._preferred = True

    def after_task_step(self, _task: trio.lowlevel.Task) -> None:
        """A task waits again, or lets others have their turn."""
        if self._preferred and self._clock() - self._since > self._left:
            self._preferred = False
            self._prefer(False)

    def before_io_wait(self, _timeout: float) -> None:
        """No task can go on."""
        now = self._clock()
        self._left = max(self._left - (now - self._since), 0.0)
        self._since = now

    def after_io_wait(self, _timeout: float) -> None:
        """Something has come."""
        now = self._clock()
        self._left = min(self._left + (now - self._since) * _EARNED, _MOST)
        self._since = now
        if not self._preferred and self._left > _MOST / 2:
            self._preferred = True
            self._prefer(True)


async def run_before_others() -> None:
    """Have this thread go before others, on credit, until cancelled.

    What it starts, threads and processes, is ordinary. Returns at once where the kernel does not
    allow it (CAP_SYS_NICE), and on a host with one processor, which has to be shared.
    """
    if len(os.sched_getaffinity(0)) == 1:
        _log.info("scheduled as an ordinary process", why="there is only one processor")
        return
    try:
        _prefer(True)
    except OSError as error:
        _log.info("scheduled as an ordinary process", why=f"{error.strerror}: CAP_SYS_NICE")
        return
    credit = Credit(_prefer)
    trio.lowlevel.add_instrument(credit)
    try:
        await trio.sleep_forever()
    finally:
        trio.lowlevel.remove_instrument(credit)
        _prefer(False)


def _prefer(yes: bool) -> None:
    policy = os.SCHED_RR if yes else os.SCHED_OTHER
    lowest = os.sched_param(os.sched_get_priority_min(policy))
    os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, lowest)
