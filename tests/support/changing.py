"""A session in memory that lives while its chain changes: agents, fake kernels, packets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import wait_all_tasks_blocked

from m2m.agent.api import Role
from m2m.datapath.fake_kernel import Fate, Outcome
from m2m.policy.rules import PolicySet
from m2m.protocol.flow import Flow, parse_address
from m2m.protocol.translation import Hook
from tests.support.agents import FIREWALL, IDS, SERVER, Chain, Host, policy_set

OTHER = "10.0.0.5"
PORT = 80

NFS = f"""
nf firewall inline {{ fw1 = {FIREWALL}, fw2 = {OTHER} }}
nf ids tap {{ ids1 = {IDS}, ids2 = {OTHER} }}
"""


def larger_policy(options: str = "", generation: int = 1, chain: str = "firewall -> ids") -> (
    PolicySet
):  # fmt: skip
    """The policy by which the session was set up, with more instances, and with *options*."""
    return policy_set(f"{NFS}match(dstport={PORT}) >> {{{chain}}} {options}", generation)


class LiveSession(Chain):
    """A session over client, inline firewall, tap and server; and another host that can take the
    place of both middleboxes."""

    async def start(self) -> None:
        await super().start()
        self.other = self.host(OTHER, Role.MIDDLEBOX)
        self.client.open(PORT)
        await wait_all_tasks_blocked()
        (self.session,) = self.client.sessions.node.sessions
        await self.load(larger_policy())

    async def load(self, policy: PolicySet) -> None:
        """Every host hears of a policy, the client last."""
        for host in reversed(self.all):
            await host.sessions.load_policy(policy)

    @property
    def all(self) -> tuple[Host, ...]:
        found = *super().all, getattr(self, "other", None)
        return tuple(host for host in found if host is not None)

    def carries(self, *way: str) -> bool:
        """Whether packets in both directions go by these middleboxes; each acknowledges one."""
        flow = self.client.flow(PORT)
        middle = [parse_address(host) for host in way]
        return self._visited(self.client, flow) == [*middle, parse_address(SERVER)] and (
            self._visited(self.server, flow.reverse()) == [*middle[::-1], self.client.address]
        )

    def _visited(self, host: Host, flow: Flow) -> list[bytes]:
        """Whom a packet from an end meets."""

        def at(hook: Hook, flow: Flow) -> Outcome:
            return host.datapath.packet(hook, flow, payload=b"x", ack=1)

        outcome, seen = at(Hook.OUT, flow), []
        while outcome.fate is Fate.SENT:
            seen.append(outcome.flow.dst)
            host = self.hosts[outcome.flow.dst]
            outcome = at(Hook.IN, outcome.flow)
            if outcome.fate is Fate.DELIVERED and outcome.flow.dst != host.address:
                outcome = at(Hook.OUT, outcome.flow)  # through its inline function
        return seen


@asynccontextmanager
async def a_live_session() -> AsyncIterator[LiveSession]:
    """It ends with the block."""
    async with trio.open_nursery() as nursery:
        chain = LiveSession(nursery)
        await chain.start()
        yield chain
        nursery.cancel_scope.cancel()
