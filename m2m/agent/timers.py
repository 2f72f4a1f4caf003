"""One timer per session, in one heap, served by one task.

Setting and cancelling are dictionary and heap operations: a timer that was replaced stays in
the heap and is skipped when its time comes. So 100 k sessions cost no tasks and no cancel scopes.

Times are rounded up to a common grid: most timers are cancelled before they fire, and without it
each would wake the agent in the middle of some other session's set-up.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import AsyncIterator

import trio

_GRID = 256  # deadlines per second
_BURST = 32  # timers that fire before other tasks get their turn


class Timers:
    """Deadlines by session; :meth:`expired` tells which have come."""

    def __init__(self) -> None:
        self._deadlines: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []
        self._sleep: trio.CancelScope | None = None

    def __len__(self) -> int:
        return len(self._deadlines)

    def set(self, session: int, delay: float) -> None:
        """Fire for *session* once, *delay* seconds from now or up to 4 ms later, and forget its
        earlier timer."""
        deadline = math.ceil((trio.current_time() + delay) * _GRID) / _GRID
        self._deadlines[session] = deadline
        heapq.heappush(self._heap, (deadline, session))
        if len(self._heap) > 64 + 2 * len(self._deadlines):  # mostly timers that were replaced
            self._heap = [(when, session) for session, when in self._deadlines.items()]
            heapq.heapify(self._heap)
        if self._sleep is not None and deadline < self._sleep.deadline:
            self._sleep.deadline = deadline

    def cancel(self, session: int) -> None:
        """Forget the timer of *session*, if it has one."""
        self._deadlines.pop(session, None)

    async def expired(self) -> AsyncIterator[int]:
        """Sessions whose timers run out, as they do; one consumer."""
        while True:
            now, turn = trio.current_time(), 0
            while self._heap and self._heap[0][0] <= now:
                deadline, session = heapq.heappop(self._heap)
                if self._deadlines.get(session) == deadline:
                    del self._deadlines[session]
                    yield session
                turn += 1
                if turn % _BURST == 0:  # answers may be waiting that make other timers void
                    await trio.lowlevel.checkpoint()
            with trio.CancelScope(deadline=self._heap[0][0] if self._heap else math.inf) as sleep:
                self._sleep = sleep
                await trio.sleep_forever()
            self._sleep = None
