"""Timers of sessions, one of each kind, in one heap, served by one task.

Setting and cancelling are dictionary and heap operations: a timer that was replaced stays in
the heap and is skipped when its time comes. So 100 k sessions cost no tasks and no cancel scopes.

Times are rounded up to a common grid: most timers are cancelled before they fire, and without it
each would wake the agent in the middle of some other session's set-up. Short ones are not: they
are set by changes that hold packets back.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import AsyncIterator
from typing import TypeAlias

import trio

from m2m.protocol.events import Timer

Key: TypeAlias = tuple[int, Timer]  # a session, and what its timer is for

_GRID = 256  # deadlines per second
_SHORT = 0.015  # s: up to here a delay is kept to
_BURST = 32  # timers that fire before other tasks get their turn


class Timers:
    """Deadlines by session and kind; :meth:`expired` tells which have come."""

    def __init__(self) -> None:
        self._deadlines: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []
        self._sleep: trio.CancelScope | None = None

    def __len__(self) -> int:
        return len(self._deadlines)

    def set(self, session: int, delay: float, timer: Timer = Timer.SESSION) -> None:
        """Fire for *session* once, *delay* seconds from now or (but for short delays) up to 4 ms
        later, and forget its earlier timer of this kind."""
        key, deadline = (session, timer), trio.current_time() + delay
        if delay > _SHORT:
            deadline = math.ceil(deadline * _GRID) / _GRID
        self._deadlines[key] = deadline
        heapq.heappush(self._heap, (deadline, key))
        if len(self._heap) > 64 + 2 * len(self._deadlines):  # mostly timers that were replaced
            self._heap = [(when, key) for key, when in self._deadlines.items()]
            heapq.heapify(self._heap)
        if self._sleep is not None and deadline < self._sleep.deadline:
            self._sleep.deadline = deadline

    def cancel(self, session: int, timer: Timer = Timer.SESSION) -> None:
        """Forget the timer of *session*, if it has one of this kind."""
        self._deadlines.pop((session, timer), None)

    async def expired(self) -> AsyncIterator[Key]:
        """Timers that run out, as they do; one consumer."""
        while True:
            now, turn = trio.current_time(), 0
            while self._heap and self._heap[0][0] <= now:
                deadline, key = heapq.heappop(self._heap)
                if self._deadlines.get(key) == deadline:
                    del self._deadlines[key]
                    yield key
                turn += 1
                if turn % _BURST == 0:  # answers may be waiting that make other timers void
                    await trio.lowlevel.checkpoint()
            with trio.CancelScope(deadline=self._heap[0][0] if self._heap else math.inf) as sleep:
                self._sleep = sleep
                await trio.sleep_forever()
            self._sleep = None
