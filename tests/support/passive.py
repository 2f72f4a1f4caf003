"""A lab in which passive network functions watch: a chain of two middleboxes, one that can be
replaced, and a client that can move.

::

    ue ── cells ── core ── fw (inline), ids and ids2 (taps), control ── racks ── srv
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import trio

from m2m.lab import netns
from m2m.lab.handover import CORE, PROBES_TCP, PROBES_UDP, SERVER, UE, handover
from m2m.lab.lab import Lab, open_lab
from m2m.lab.moves import Endpoint, endpoint
from m2m.lab.programs import tool
from m2m.lab.topology import GivenRoute, Host, Link, Ready, Role, Topology, checked

FIREWALL, IDS, OTHER_IDS = "fw", "ids", "ids2"
TCP_PORT, UDP_PORT = PROBES_TCP, PROBES_UDP

NEEDS = ("root", "netns", "bpf", "bpffs", "nfqueue", "iptables", "nft", "libpcap")


def topology() -> Topology:
    """The lab of mobility with a second tap; of a name that only this test run has."""
    agent = ("--linger", "1", "--udp-idle", "10", "--sessions", "1000")
    lab = handover(name=f"nf{os.getpid() % 1_000_000}", rate=None, agent=agent)
    link = Link((OTHER_IDS, CORE), ("10.0.99.2/24", "10.0.99.1/24"))
    routes = [GivenRoute("default", "10.0.99.1")]
    hosts = {**lab.hosts, OTHER_IDS: Host(role=Role.MIDDLEBOX, routes=routes, agent=[*agent])}
    return checked(Topology(lab.name, hosts, [*lab.links, link], lab.policy), "passive")


def both_taps(text: str) -> str:
    """The policy with the second tap as another instance."""
    return text.replace(f"{{ {IDS} = ", f"{{ {OTHER_IDS} = 10.0.99.2, {IDS} = ")


class Session(NamedTuple):
    """Both sockets of a session of the chain, and its 5-tuple as the applications see it."""

    here: trio.socket.SocketType
    there: trio.socket.SocketType
    client: tuple[str, int]
    server: tuple[str, int]

    async def talk(self, rounds: int = 3, text: bytes = b"hello, anybody there?") -> None:
        """So many questions and answers."""
        with trio.fail_after(20):
            for number in range(rounds):
                asked = b"%s %d\r\n" % (text, number)
                await _sent(self.here, asked)
                await _received(self.there, len(asked))
                await _sent(self.there, asked)
                await _received(self.here, len(asked))

    def close(self) -> None:
        self.here.close()
        self.there.close()


async def _sent(end: trio.socket.SocketType, data: bytes) -> None:
    assert await end.send(data) == len(data)


async def _received(end: trio.socket.SocketType, size: int) -> None:
    while size:
        data = await end.recv(size)
        assert data, "the session has ended"
        size -= len(data)


class PassiveLab:
    """The lab, its moving client, and what watches in it."""

    def __init__(self, lab: Lab, ue: Endpoint) -> None:
        self.lab = lab
        self.ue = ue

    async def connect(self, port: int = TCP_PORT) -> Session:
        """A session over TCP through the chain."""
        listener = self._socket(SERVER, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with listener, trio.fail_after(20):
            await listener.bind((self.lab.address(SERVER), port))
            listener.listen()
            here = self._socket(UE, socket.SOCK_STREAM)
            await here.connect((self.lab.address(SERVER), port))
            there, _ = await listener.accept()
        return Session(here, there, here.getsockname(), here.getpeername())

    async def datagrams(self, port: int = UDP_PORT) -> Session:
        """A session over UDP through the chain; its first datagrams are exchanged already."""
        there = self._socket(SERVER, socket.SOCK_DGRAM)
        await there.bind((self.lab.address(SERVER), port))
        here = self._socket(UE, socket.SOCK_DGRAM)
        await here.connect((self.lab.address(SERVER), port))
        with trio.fail_after(20):
            await here.send(b"first")
            _, client = await there.recvfrom(100)
            await there.connect(client)
        return Session(here, there, here.getsockname(), here.getpeername())

    def _socket(self, host: str, kind: int) -> trio.socket.SocketType:
        made = netns.inside(self.lab.namespace(host), lambda: socket.socket(socket.AF_INET, kind))
        return trio.socket.from_stdlib_socket(made)

    async def replace(self, old: str, new: str, mode: str = "op") -> None:
        """Have *new* take the place of *old* in all live sessions."""
        policy = self.lab.topology.policy
        assert policy is not None and policy.text is not None
        await self.lab.load_policy(both_taps(policy.text))
        done = await self.lab.run(
            UE, tool("m2mctl"), "replace", f"{IDS}/{old}", f"{IDS}/{new}", "--match", "any",
            "--mode", mode, check=False,
        )  # fmt: skip
        assert done.status == 0, done.out + done.err

    async def only(self, instance: str) -> None:
        """New sessions go by this tap."""
        policy = self.lab.topology.policy
        assert policy is not None and policy.text is not None
        addresses = {name: self.lab.address(name) for name in (IDS, instance)}
        text = policy.text.replace(
            f"{IDS} = {addresses[IDS]}", f"{instance} = {addresses[instance]}"
        )
        await self.lab.load_policy(text)

    def mapping(self, host: str) -> Path:
        """The file that the agent of *host* publishes."""
        return self.lab.control_socket(host).with_suffix(".map")

    async def watch(
        self, host: str, name: str, *command: str, says: str | None, options: Sequence[str] = ()
    ) -> Watcher:
        """Have a program watch at *host* from now on; ready when it *says* that it does."""
        argv = [tool("m2m-nf"), "run", *options, "--", *command]
        before = self._captures(host)
        await self.lab.start(host, name, argv, ready=Ready(log=says) if says else None)
        if says is None:
            with trio.fail_after(20):
                while self._captures(host) <= before:  # noqa: ASYNC110
                    await trio.sleep(0.02)  # the kernel has no event for it
        return Watcher(self.lab, host, name)

    def _captures(self, host: str) -> int:
        """How many packet sockets there are."""
        table = netns.inside(
            self.lab.namespace(host), lambda: Path("/proc/thread-self/net/packet").read_text()
        )
        return len(table.splitlines())


class Watcher:
    """A program that watches."""

    def __init__(self, lab: Lab, host: str, name: str) -> None:
        self._lab = lab
        self._host = host
        self._name = name

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._lab.log(self._host, self._name).read_text(errors="replace")

    @property
    def home(self) -> Path:
        """Where its files are."""
        return self._lab.home(self._host, self._name)

    async def stop(self, number: int = 15) -> str:
        """End it as its user would; what it has printed."""
        await self._lab.stop(self._host, self._name, number)
        return self.output


@asynccontextmanager
async def passive_lab() -> AsyncIterator[PassiveLab]:
    """Agents are ready; everything is taken down at the end."""
    async with open_lab(topology(), agents=False) as lab, endpoint(lab, UE) as ue:
        await lab.start_agents()
        yield PassiveLab(lab, ue)
