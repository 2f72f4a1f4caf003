"""Sessions that begin here: their first packets wait in the kernel until their chains stand.

The hosts are chosen here; the node sets the session up and says what becomes of what waits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter

import structlog

from m2m.agent.api import EventKind
from m2m.agent.chain import Chains
from m2m.agent.journal import Journal
from m2m.agent.turn import Turn
from m2m.agent.watch import NoRoute
from m2m.datapath import Datapath, Verdict
from m2m.policy.choose import ChainError
from m2m.policy.rules import Fail
from m2m.protocol.commands import Refuse, Steer
from m2m.protocol.events import Event, Opened, Route
from m2m.protocol.flow import Address, Flow, format_address

__all__ = ["Openings"]

_log = structlog.get_logger()


class Openings:
    """What waits here, and since when."""

    def __init__(
        self,
        datapath: Datapath,
        chains: Chains,
        journal: Journal,
        turn: Turn,
        feed: Callable[[Event], Awaitable[None]],
        route_to: Callable[[Address], Route],
    ) -> None:
        """*route_to* raises :exc:`~m2m.agent.watch.NoRoute`."""
        self._datapath = datapath
        self._chains = chains
        self._journal = journal
        self._turn = turn
        self._feed = feed
        self._route_to = route_to
        self._since: dict[Flow, float] = {}

    async def held(self, flow: Flow) -> None:
        """The first packet of *flow* waits: find its chain and set it up."""
        chains = self._chains
        policy = chains.policy_of(flow)
        if policy is None or not policy.chain:  # the policy has changed since it was held
            async with self._turn:
                await self._datapath.release(flow, Verdict.PASS)
            return
        self._since.setdefault(flow, perf_counter())
        fail_open = policy.fail is Fail.OPEN
        try:
            hops = chains.for_new(policy, flow)
            if not hops:
                self._since.pop(flow, None)
                async with self._turn:
                    await self._datapath.release(flow, Verdict.PASS)
                return
            route = self._route_to(hops[0].address)
        except (ChainError, NoRoute) as error:
            async with self._turn:
                await self.refuse(Refuse(flow, fail_open, str(error), None))
            return
        chains.place(hops[:-1])
        await self._feed(Opened(flow, hops, fail_open, policy.id, chains.policy.generation, route))

    async def steer(self, command: Steer) -> None:
        """Its chain stands."""
        await self._datapath.release(command.flow, Verdict.STEER)
        since = self._since.pop(command.flow, None)
        if since is not None:
            self._journal.set_up_times.append(perf_counter() - since)

    async def refuse(self, command: Refuse) -> None:
        """It could not be set up, and the policy's ``fail`` decides."""
        flow, fail_open, why, blame, silent = command
        await self._datapath.release(flow, Verdict.PASS if fail_open else Verdict.DROP)
        self._since.pop(flow, None)
        if blame is not None and silent:
            self._chains.is_silent(blame, flow)
        self._tell_refused(flow, fail_open, why, blame)

    def _tell_refused(self, flow: Flow, fail_open: bool, why: str, blame: Address | None) -> None:
        fate = "passed on unsteered" if fail_open else "dropped"
        who = "" if blame is None else f" (at {format_address(blame)})"
        _log.warning("session refused", flow=str(flow), packets=fate, why=why + who)
        self._journal.tell(EventKind.REFUSED, f"{why}{who}; its packets are {fate}", None, flow)
