"""Sessions that begin here: something waits until their chain stands.

It is the first packet of a flow, which waits in the kernel, or a connection by which a proxy goes
on with a session that has come to it, which waits in its program (``docs/proxies.md``). The hosts
are chosen here; the node sets the session up and says what becomes of what waits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum
from time import perf_counter
from typing import NamedTuple

import structlog
import trio

from m2m.agent.api import EventKind
from m2m.agent.chain import Chains
from m2m.agent.journal import Journal
from m2m.agent.turn import Turn
from m2m.agent.watch import NoRoute
from m2m.datapath import Datapath, Verdict
from m2m.policy.choose import ChainError
from m2m.policy.rules import Fail, Shows
from m2m.protocol.commands import Refuse, Steer
from m2m.protocol.events import Event, Opened, Route
from m2m.protocol.flow import Address, Flow, format_address
from m2m.protocol.node import Node
from m2m.protocol.session import Session, State
from m2m.protocol.translation import entries_for

__all__ = ["Fate", "Openings", "Outcome"]

_log = structlog.get_logger()


class Fate(Enum):
    """What becomes of a proxy's connection."""

    STEERED = "steered"  # its half stands
    PASSED = "passed"  # on its own: no policy is about it, or it fails open
    REFUSED = "refused"  # its policy fails closed


class Outcome(NamedTuple):
    """The same, and why."""

    fate: Fate
    why: str = ""


class _Waiting:
    """A proxy's connection that waits."""

    def __init__(self) -> None:
        self._decided = trio.Event()
        self._outcome = Outcome(Fate.REFUSED)

    def decide(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._decided.set()

    async def outcome(self) -> Outcome:
        await self._decided.wait()
        return self._outcome


class Openings:
    """What waits here, and since when."""

    def __init__(
        self,
        node: Node,
        datapath: Datapath,
        chains: Chains,
        journal: Journal,
        turn: Turn,
        feed: Callable[[Event], Awaitable[None]],
        route_to: Callable[[Address], Route],
    ) -> None:
        """*route_to* raises :exc:`~m2m.agent.watch.NoRoute`."""
        self._node = node
        self._datapath = datapath
        self._chains = chains
        self._journal = journal
        self._turn = turn
        self._feed = feed
        self._route_to = route_to
        self._since: dict[Flow, float] = {}
        self._halves: dict[Flow, _Waiting] = {}  # by the flow of the proxy's socket

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
        chains.loads.begins(flow, hops[:-1])
        await self._feed(Opened(flow, hops, fail_open, policy.id, chains.policy.generation, route))

    async def go_on(self, came: Session, outgoing: Flow) -> Outcome:
        """A proxy's socket here, *outgoing*, is to go on with the session that *came* to it: set
        the rest of the chain up, by the policy in force.

        Takes no longer than setting up any session.
        """
        waiting = self._halves.get(outgoing)
        if waiting is not None:  # asked again
            return await waiting.outcome()
        chains = self._chains
        policy = chains.policy_of(came.supersession)
        if policy is None or not policy.chain:
            return Outcome(Fate.PASSED, "no policy is about it")
        fail_open = policy.fail is Fail.OPEN
        waiting = self._halves[outgoing] = _Waiting()
        self._since[outgoing] = perf_counter()
        try:
            proxy = chains.proxy_of(policy, came.view)
            name, local = _names(came.supersession, outgoing, proxy.shows)
            hops = chains.hops(policy, name, proxy.name)
            route = self._route_to(hops[0].address) if hops else None
        except (ChainError, NoRoute) as error:
            await self.refuse(Refuse(outgoing, fail_open, str(error), None))
            return await waiting.outcome()
        if route is None:
            del self._halves[outgoing], self._since[outgoing]
            return Outcome(Fate.PASSED, "it ends here")
        if local is not None and await self._is_in_use(name, outgoing):
            self._journal.counts["named after the proxy"] += 1
            name, local = outgoing, None
        chains.loads.begins(name, hops[:-1])
        await self._feed(
            Opened(name, hops, fail_open, policy.id, chains.policy.generation, route, local)
        )
        outcome = await waiting.outcome()
        if outcome.fate is not Fate.STEERED:
            chains.loads.ends(name)
        return outcome

    async def _is_in_use(self, name: Flow, outgoing: Flow) -> bool:
        """Whether another connection of a proxy here goes on by this name, and has not ended: the
        server could not tell the two apart."""
        for one in self._node.register.at_proxy((name.src, name.sport)):
            if one.local in (None, outgoing) or one.supersession != name:
                continue
            if one.state is State.OPENING:
                return True
            async with self._turn:
                rows = await self._datapath.rows([row.key for row in entries_for(one.view)])
            if not any(row.counters.fin or row.counters.rst for row in rows):
                return True
        return False

    async def steer(self, command: Steer) -> None:
        """Its chain stands."""
        waiting = self._halves.pop(command.flow, None)
        if waiting is None:
            await self._datapath.release(command.flow, Verdict.STEER)
        else:
            waiting.decide(Outcome(Fate.STEERED))
        since = self._since.pop(command.flow, None)
        if since is not None:
            self._journal.set_up_times.append(perf_counter() - since)

    async def refuse(self, command: Refuse) -> None:
        """It could not be set up, and the policy's ``fail`` decides."""
        flow, fail_open, why, blame, silent = command
        waiting = self._halves.pop(flow, None)
        if waiting is None:
            await self._datapath.release(flow, Verdict.PASS if fail_open else Verdict.DROP)
        else:
            waiting.decide(Outcome(Fate.PASSED if fail_open else Fate.REFUSED, why))
        self._since.pop(flow, None)
        self._chains.loads.ends(flow)
        if blame is not None and silent:
            self._chains.is_silent(blame, flow)
        self._tell_refused(flow, fail_open, why, blame)

    def _tell_refused(self, flow: Flow, fail_open: bool, why: str, blame: Address | None) -> None:
        fate = "passed on unsteered" if fail_open else "dropped"
        who = "" if blame is None else f" (at {format_address(blame)})"
        _log.warning("session refused", flow=str(flow), packets=fate, why=why + who)
        self._journal.tell(EventKind.REFUSED, f"{why}{who}; its packets are {fate}", None, flow)


def _names(came: Flow, outgoing: Flow, shows: Shows) -> tuple[Flow, Flow | None]:
    """What the half by which a session that *came* to a proxy goes on is called behind it, and
    what its socket has, if that is something else."""
    if shows is Shows.PROXY:
        return outgoing, None
    return came._replace(dst=outgoing.dst, dport=outgoing.dport), outgoing
