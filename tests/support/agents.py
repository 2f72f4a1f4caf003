"""Hosts in memory: the agent's session handling over fake datapaths and a wire of its own."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import ClassVar

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from m2m.agent.api import Role
from m2m.agent.asking import Asking
from m2m.agent.functions import Functions
from m2m.agent.journal import Journal
from m2m.agent.path import Paths
from m2m.agent.sessions import Sessions
from m2m.agent.turn import Turn
from m2m.agent.watch import Link, NoRoute, Way
from m2m.datapath.fake import FakeDatapath
from m2m.datapath.fake_kernel import FakeKernel, Fate, Outcome
from m2m.datapath.fake_packets import Tcp
from m2m.identity import Identity
from m2m.policy.compile import compile_policy
from m2m.policy.language import parse_source
from m2m.policy.rules import PolicySet
from m2m.policy.source import Source
from m2m.protocol.flow import Address, Flow, format_address, parse_address
from m2m.protocol.node import Node, Settings
from m2m.protocol.ports import PortAllocator
from m2m.protocol.translation import Hook, NextHop
from m2m.protocol.wire import Message, PathRep, PathReq
from nf_adapters.state import StateAdapter

CLIENT, FIREWALL, IDS, SERVER = "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"

POLICY = f"""
nf firewall inline {{ fw1 = {FIREWALL} }}
nf ids tap {{ ids1 = {IDS} }}
match(dstport=80) >> {{firewall -> ids}} fail=closed
match(dstport=81) >> {{firewall -> ids}} fail=open
"""


def policy_set(text: str = POLICY, generation: int = 1) -> PolicySet:
    return compile_policy(parse_source(Source("test.m2m", text)), generation)


class NfState(StateAdapter):
    """What an inline network function knows: of every session, who has let it pass."""

    kind: ClassVar[str] = "test"

    def __init__(self, address: str) -> None:
        self.address = address
        self.known: dict[Flow, bytes] = {}

    async def quiesce(self, flow: Flow) -> None:
        self.known.setdefault(flow, self.address.encode())

    async def export(self, flow: Flow) -> bytes:
        return self.known[flow]

    async def import_(self, flow: Flow, state: bytes) -> None:
        self.known[flow] = state + b" " + self.address.encode()

    async def release(self, flow: Flow, *, keep: bool) -> None:
        if not keep:
            self.known.pop(flow, None)

    async def close(self) -> None:
        """Nothing is open."""


class Routes:
    """What :class:`~m2m.agent.watch.Network` tells, made up: all hosts share one link."""

    def __init__(self, own: Address, mtu: int = 1500) -> None:
        self.own = own
        self.mtu = mtu
        self.ifindex = 2
        self.cut: set[Address] = set()  # hosts without a route
        self.unread = False  # that it has its present address
        self.links: dict[int, Link] = {}

    def has(self, address: Address) -> bool:
        return False

    def home(self, address: Address) -> int | None:
        return None if self.is_lost(address) else self.ifindex

    def is_lost(self, address: Address) -> bool:
        return address != self.own or self.unread

    def way_to(self, destination: Address) -> Way:
        if destination in self.cut or destination == self.own:
            raise NoRoute(f"no route to {format_address(destination)}: ENETUNREACH")
        return Way(self.own, NextHop(self.ifindex, destination, self.mtu))


class NothingKept:
    """In place of addresses that are kept alive: there are none in memory."""

    kept: frozenset[Address] = frozenset()
    lasting: frozenset[Address] = frozenset()

    def keep(self, address: Address, interfaces: Iterable[str]) -> None:
        pass

    def silence(self, interfaces: Iterable[str]) -> None:
        pass

    def may_be_over(self) -> None:
        pass


class Host:
    """One agent without its sockets."""

    def __init__(
        self, wire: Wire, address: str, role: Role, kernel: FakeKernel, *, holds: bool = True
    ) -> None:
        self.wire = wire
        self.address = parse_address(address)
        self.role = role
        self.kernel = kernel
        self.datapath = FakeDatapath(kernel)
        self.routes = Routes(self.address)
        self.journal = Journal()
        self.forwards = True
        self.nf_state = NfState(address)
        rng = random.Random(address)
        identity = Identity(rng.randbytes(32))
        self.device = identity.device
        self._devices: dict[Address, bytes] = {}
        self.sessions = Sessions(
            Node(Settings(), PortAllocator(61000, 65535, rng), rng, identity, self._devices),
            self.datapath,
            self.routes,  # type: ignore[arg-type]  # has what is used of it
            self.send,
            self.journal,
            lambda: self.forwards,
            NothingKept(),  # type: ignore[arg-type]  # has what is used of it
            Turn(),
            role=Role.CLIENT if holds else Role.MIDDLEBOX,
            open_state=self._open_state,
        )
        self.paths = Paths(address, role, self.sessions, self.send, Functions())
        self.asking = Asking(address, self.sessions, self.paths)
        self.inbox, self._inbox = trio.open_memory_channel[tuple[Address, Message]](1000)

    def send(self, peer: Address, message: Message, _source: Address | None = None) -> None:
        self.wire.carry(self.address, peer, message)

    async def _open_state(self) -> StateAdapter:
        return self.nf_state

    async def run(self) -> None:
        await self.datapath.attach([self.routes.ifindex])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._messages)
            nursery.start_soon(self._events)
            nursery.start_soon(self.sessions.run_timers)
            nursery.start_soon(self.sessions.states.run)

    async def _messages(self) -> None:
        async for peer, message in self._inbox:
            device = self._devices[peer] = self.wire.hosts[peer].device
            if isinstance(message, PathReq):
                await self.paths.asked(peer, message, self.address)
            elif isinstance(message, PathRep):
                self.paths.answered(peer, message)
            else:
                await self.sessions.received(peer, message, device)

    def open(self, dport: int, sport: int = 40000) -> Outcome:
        """The first packet of a TCP session to the server leaves here."""
        flow = self.flow(dport, sport)
        return self.datapath.packet(Hook.OUT, flow, flags=Tcp.SYN)

    def flow(self, dport: int, sport: int = 40000) -> Flow:
        return Flow(6, self.address, sport, parse_address(SERVER), dport)

    async def _events(self) -> None:
        async for event in self.datapath.events():
            await self.sessions.told(event)


class Wire:
    """Carries messages between hosts, and packets along their translations.

    ``lose`` decides which messages are lost; ``seen`` has all that were sent.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self.hosts: dict[Address, Host] = {}
        self.seen: list[tuple[Address, Address, Message]] = []
        self.lose: Callable[[Address, Address, Message], bool] = lambda *_: False
        self._nursery = nursery
        self._scopes: dict[Address, trio.CancelScope] = {}

    def host(self, address: str, role: Role, kernel: FakeKernel | None = None) -> Host:
        """A host starts, or (with its old *kernel*) its agent does."""
        made = Host(self, address, role, kernel or FakeKernel())
        self.hosts[made.address] = made
        self._nursery.start_soon(self._run, made)
        return made

    def kill(self, host: Host) -> FakeKernel:
        """End a host's agent as SIGKILL would; what it leaves in the kernel."""
        del self.hosts[host.address]
        self._scopes[host.address].cancel()
        return host.kernel

    def carry(self, sender: Address, receiver: Address, message: Message) -> None:
        self.seen.append((sender, receiver, message))
        host = self.hosts.get(receiver)
        if host is not None and not self.lose(sender, receiver, message):
            host.inbox.send_nowait((sender, message))

    async def _run(self, host: Host) -> None:
        with trio.CancelScope() as scope:
            self._scopes[host.address] = scope
            await host.run()

    def walk(self, outcome: Outcome) -> tuple[Host, Flow]:
        """Follow a packet that was sent on to the host that keeps it; the flow it shows there."""
        while outcome.fate is Fate.SENT:
            host = self.hosts[outcome.flow.dst]
            outcome = host.datapath.packet(Hook.IN, outcome.flow)
            if outcome.fate is Fate.DELIVERED and host.kernel.rows([(Hook.OUT, outcome.flow)]):
                outcome = host.datapath.packet(Hook.OUT, outcome.flow)  # through its inline NF
        assert outcome.fate is Fate.DELIVERED, outcome
        return host, outcome.flow


class Chain(Wire):
    """Client, inline firewall, tap, server; the client has :data:`POLICY`."""

    async def start(self) -> None:
        self.client = self.host(CLIENT, Role.CLIENT)
        self.firewall = self.host(FIREWALL, Role.MIDDLEBOX)
        self.ids = self.host(IDS, Role.MIDDLEBOX)
        self.server = self.host(SERVER, Role.SERVER)
        for host in self.all:
            await host.sessions.load_policy(policy_set())
        await wait_all_tasks_blocked()

    @property
    def all(self) -> tuple[Host, ...]:
        return self.client, self.firewall, self.ids, self.server

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
async def running() -> AsyncIterator[Chain]:
    """A fresh chain that ends with the block."""
    async with trio.open_nursery() as nursery:
        chain = Chain(nursery)
        await chain.start()
        yield chain
        nursery.cancel_scope.cancel()


async def pass_time(seconds: float) -> None:
    """Let virtual time pass; needs the autojump clock."""
    assert isinstance(trio.lowlevel.current_clock(), MockClock)
    await trio.sleep(seconds)
