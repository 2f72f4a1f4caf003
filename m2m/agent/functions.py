"""The network functions that ``m2m-nf run`` runs on this host: what they are, and whether they have
got what they captured.

Each has a conversation on the socket for network functions that lasts as long as it runs. Before
a session's chain changes in an order-preserving way, the tap that it leaves is asked to have
delivered all that has been captured by then; its packets have passed by that time, and wait
nowhere else.
"""

from __future__ import annotations

import itertools

import structlog
import trio

from m2m.agent.dialogue import NfRun, Quiesce, Quiet

__all__ = ["Function", "Functions"]

_log = structlog.get_logger()

_PATIENCE = 0.5  # s; packets of the session wait meanwhile


class Function:
    """One that runs now. ``asks`` is what it is to be asked, :meth:`answered` takes its answers."""

    def __init__(self, about: NfRun) -> None:
        self.about = about
        self.delivered = 0  # packets, by its own last account
        self._send, self.asks = trio.open_memory_channel[Quiesce](16)
        self._waiting: dict[int, tuple[trio.Event, list[bool]]] = {}

    async def quiesce(self, number: int) -> bool:
        """Whether all that was captured until now has been delivered, within a short while."""
        answered, quiet = trio.Event(), [False]
        self._waiting[number] = answered, quiet
        try:
            with trio.move_on_after(_PATIENCE):
                await self._send.send(Quiesce(number))
                await answered.wait()
        finally:
            del self._waiting[number]
        return quiet[0]

    def answered(self, answer: Quiet) -> None:
        """It has said something; an answer that nobody waits for is its account alone."""
        self.delivered = answer.delivered
        waiting = self._waiting.get(answer.number)
        if waiting is not None:
            waiting[1][0] = answer.quiet
            waiting[0].set()


class Functions:
    """All that run now."""

    def __init__(self) -> None:
        self.running: set[Function] = set()
        self._numbers = itertools.count(1)

    def add(self, about: NfRun) -> Function:
        """One more; to be taken out by :meth:`remove`."""
        function = Function(about)
        self.running.add(function)
        _log.info("network function runs", program=about.program, pid=about.pid, nf=about.nf)
        return function

    def remove(self, function: Function) -> None:
        """It has ended, or its supervisor has."""
        self.running.discard(function)
        about = function.about
        _log.info("network function has ended", program=about.program, pid=about.pid, nf=about.nf)

    async def quiesce(self) -> None:
        """Return when all have got what was captured until now, or a short while later."""
        async with trio.open_nursery() as nursery:
            for function in self.running:
                nursery.start_soon(self._one, function)

    async def _one(self, function: Function) -> None:
        if not await function.quiesce(next(self._numbers)):
            _log.warning(
                "a network function has not read all it captured: the change goes on",
                program=function.about.program, pid=function.about.pid,
            )  # fmt: skip
