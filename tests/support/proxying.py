"""A chain in memory with a proxy in it: client, firewall, proxy, tap, server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import wait_all_tasks_blocked

from m2m.agent.api import Role
from m2m.agent.openings import Outcome
from m2m.agent.proxies import Proxies
from m2m.datapath.fake_kernel import Fate
from m2m.datapath.fake_packets import Tcp
from m2m.protocol.flow import Flow, format_address, parse_address
from m2m.protocol.session import Session
from m2m.protocol.translation import Hook
from tests.support.agents import CLIENT, FIREWALL, IDS, SERVER, Host, Wire, policy_set

PROXY = "10.0.0.5"
CLOSED, OPEN = 80, 81  # ports whose policies fail so

POLICY = f"""
nf firewall inline {{ fw1 = {FIREWALL} }}
nf cache proxy port=3129 {{ squid = {PROXY} }}
nf ids tap {{ ids1 = {IDS} }}
match(dstport={CLOSED} & proto=tcp) >> {{firewall -> cache -> ids}} fail=closed
match(dstport={OPEN} & proto=tcp) >> {{firewall -> cache -> ids}} fail=open
"""


class ProxyChain(Wire):
    """All know one policy; :meth:`come` opens a session, :meth:`go_on` is the proxy."""

    async def start(self, policy: str) -> None:
        self.client = self.host(CLIENT, Role.CLIENT)
        self.firewall = self.host(FIREWALL, Role.MIDDLEBOX)
        self.proxy = self.host(PROXY, Role.MIDDLEBOX)
        self.ids = self.host(IDS, Role.MIDDLEBOX)
        self.server = self.host(SERVER, Role.SERVER)
        self.proxies = Proxies(self.proxy.sessions)
        for host in self.all:
            await host.sessions.load_policy(policy_set(policy))
        await wait_all_tasks_blocked()

    @property
    def all(self) -> tuple[Host, ...]:
        return self.client, self.firewall, self.proxy, self.ids, self.server

    async def come(self, dport: int = CLOSED, sport: int = 40000) -> Session:
        """A session from the client to the proxy, as it is there."""
        assert self.client.open(dport, sport).fate is Fate.HELD
        await wait_all_tasks_blocked()
        found = self.proxies.find_accepted(self.client.flow(dport, sport))
        assert found is not None
        return found

    def outgoing(self, port: int = 50000, server: str = SERVER, dport: int = CLOSED) -> Flow:
        return Flow(6, parse_address(PROXY), port, parse_address(server), dport)

    async def go_on(self, came: Session, outgoing: Flow) -> Outcome:
        return await self.proxies.connect_half(came.id, outgoing)

    def opens(self, outgoing: Flow) -> tuple[Host, Flow]:
        """Its SYN leaves the proxy: where it arrives, and what it shows there."""
        return self.walk(self.proxy.datapath.packet(Hook.OUT, outgoing, flags=Tcp.SYN))

    def halves(self, host: Host) -> int:
        return len(host.sessions.node.sessions)

    def left_over(self) -> dict[str, tuple[int, int, int]]:
        """Per host that has something: sessions, entries, ports in use."""
        found = {}
        for host in self.all:
            node = host.sessions.node
            counts = (len(node.sessions), len(host.kernel.rows()), node.ports.in_use)
            if any(counts):
                found[format_address(host.address)] = counts
        return found


@asynccontextmanager
async def proxying(policy: str = POLICY) -> AsyncIterator[ProxyChain]:
    """A fresh chain that ends with the block."""
    async with trio.open_nursery() as nursery:
        chain = ProxyChain(nursery)
        await chain.start(policy)
        yield chain
        nursery.cancel_scope.cancel()
