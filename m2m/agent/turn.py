"""Who may use node and datapath now: one task at a time, first come first served."""

from __future__ import annotations

from types import TracebackType

import trio

__all__ = ["Turn"]


class Turn:
    """A lock, first come first served, that is taken at once while nobody else wants it."""

    __slots__ = ("_taken", "_waiting")

    def __init__(self) -> None:
        self._taken = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        if self._taken:
            await self._waiting.park()  # whoever wakes us leaves it taken
        else:
            self._taken = True

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._waiting:
            self._waiting.unpark()
        else:
            self._taken = False
