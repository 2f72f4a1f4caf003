"""A chain of real agents in namespaces, round a router that knows nothing of M2M.

::

    client 10.9.1.2 ──┐               ┌── server 10.9.4.2 (and the policy server)
                      ├─── router ────┤
    fw     10.9.2.2 ──┘  10.9.N.1     └── ids    10.9.3.2
    (inline)                              (tap)
"""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from m2m.agent.api import AgentInfo, EventKind, PathInfo, PolicyInfo, SessionInfo, Stats
from m2m.agent.dialogue import (
    AgentsItem,
    AskAgents,
    AskPath,
    AskPolicy,
    AskSessions,
    AskStats,
    EventItem,
    Item,
    PathItem,
    PolicyItem,
    SessionItem,
    Snapshot,
    StatsItem,
    Watch,
)
from m2m.cli.query import ask, one
from m2m.datapath._bpf import Map
from m2m.datapath.layout import session_of
from m2m.datapath.pins import directory_of
from tests.support.namespaces import Namespace, NamespaceFactory, run, run_prefix
from tests.support.processes import Daemon, daemon, start

PATIENCE = 20.0  # s for what must happen
CLOSED, OPEN, TAPPED = 80, 81, 82  # ports, by their policies

POLICY = f"""
nf firewall inline {{ fw1 = 10.9.2.2 }}
nf ids tap {{ ids1 = 10.9.3.2 }}
match(dstport={CLOSED} | dstport=5201) >> {{firewall -> ids}} fail=closed
match(dstport={OPEN}) >> {{firewall -> ids}} fail=open
match(dstport={TAPPED}) >> {{ids}} fail=closed
"""

_ROLES = {"client": "client", "fw": "middlebox", "ids": "middlebox", "server": "server"}


class LiveHost:
    """A namespace and, most of the time, the agent in it."""

    def __init__(self, label: str, number: int, namespace: Namespace, run_dir: Path) -> None:
        self.label = label
        self.name = run_prefix() + label
        self.address = f"10.9.{number}.2"
        self.namespace = namespace
        self.run_dir = run_dir
        self.options: tuple[str, ...] = ()
        self.agent: Daemon | None = None

    async def start(self, *options: str) -> None:
        """Start the agent; *options* beside those of the first start."""
        self.agent = await start(
            self.namespace, self.run_dir, self.label, "m2m.cli.agent",
            "--role", _ROLES[self.label], "--name", self.name, "--run-dir", str(self.run_dir),
            "--key-file", str(self.run_dir / "key"), "--policy-server", "10.9.4.2",
            "--sessions", "1000", *self.options, *options,
        )  # fmt: skip

    async def clean_up(self) -> None:
        """End the agent and take everything out of the kernel."""
        if self.agent is not None:
            await self.agent.stop()
        await trio.to_thread.run_sync(
            self.namespace.run, sys.executable, "-m", "m2m.cli.agent", "--cleanup",
            "--name", self.name, "--run-dir", str(self.run_dir),
        )  # fmt: skip

    @property
    def control(self) -> Path:
        return self.run_dir / f"{self.name}.sock"

    def stats(self) -> Stats:
        return one(self.control, AskStats(), StatsItem).stats

    def sessions(self) -> list[SessionInfo]:
        items = ask(self.control, AskSessions())
        return [item.session for item in items if isinstance(item, SessionItem)]

    def policy(self) -> PolicyInfo:
        return one(self.control, AskPolicy(), PolicyItem).policy

    def agents(self) -> tuple[AgentInfo, ...]:
        return one(self.control, AskAgents(), AgentsItem).agents

    def path(self, session: str) -> PathInfo:
        return one(self.control, AskPath(session), PathItem).path

    def entries(self) -> int:
        """How many rows of sessions the translation table has, whoever is there to tell."""
        return len(self.keys())

    def keys(self) -> set[bytes]:
        """The keys of those rows."""
        flows = Map.pinned(directory_of(self.name) / "flows")
        found, key = set(), flows.next_key()
        while key is not None:
            value = flows.lookup(key)
            if value is not None and session_of(value) != 0:
                found.add(key)
            key = flows.next_key(key)
        flows.close()
        return found

    def reserved_ports(self) -> str:
        return self.namespace.run("sysctl", "-n", "net.ipv4.ip_local_reserved_ports").stdout.strip()

    def socket(self, kind: int) -> trio.socket.SocketType:
        return trio.socket.from_stdlib_socket(self.namespace.socket(socket.AF_INET, kind))

    async def until(self, seen: Callable[[Snapshot], bool]) -> Snapshot:
        """Watch the agent until a snapshot is as wanted."""
        async with self._watch() as watched:
            while True:
                item = await watched.next()
                if isinstance(item, Snapshot) and seen(item):
                    return item

    async def until_told(self, kind: EventKind, task_status: trio.TaskStatus[None]) -> str:
        """Started when the agent is watched: the text of the first event of *kind*."""
        async with self._watch() as watched:
            while not isinstance(item := await watched.next(), Snapshot):
                pass
            task_status.started()
            while not (isinstance(item, EventItem) and item.event.kind is kind):
                item = await watched.next()
            return item.event.text

    async def until_empty(self) -> None:
        """Return when no session is left here, nor an entry of one."""
        await self.until(lambda snapshot: snapshot.stats.sessions == 0)

    @asynccontextmanager
    async def _watch(self) -> AsyncIterator[_Watched]:
        with trio.fail_after(PATIENCE):
            async with await trio.open_unix_socket(str(self.control)) as stream:
                await stream.send_all(msgspec.json.encode(Watch(0.1)) + b"\n")
                yield _Watched(stream)


class _Watched:
    """What an agent tells, line by line."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = b""
        self._decoder = msgspec.json.Decoder[Item](Item)

    async def next(self) -> Item:
        while b"\n" not in self._buffer:
            data = await self._stream.receive_some()
            assert data, "the agent has ended"
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return self._decoder.decode(line)


class LiveChain:
    """The four hosts, the router between them, and the policy server on the last."""

    def __init__(self, hosts: dict[str, LiveHost], router: Namespace, policy: Daemon) -> None:
        self.hosts = hosts
        self.router = router
        self.policy = policy
        self.client, self.fw = hosts["client"], hosts["fw"]
        self.ids, self.server = hosts["ids"], hosts["server"]

    async def listen(self, port: int) -> trio.socket.SocketType:
        listener = self.server.socket(socket.SOCK_STREAM)
        await listener.bind(("0.0.0.0", port))
        listener.listen()
        return listener

    async def connect(self, port: int) -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
        """A TCP session from client to server; its two sockets."""
        with await self.listen(port) as listener, trio.fail_after(PATIENCE):
            here = self.client.socket(socket.SOCK_STREAM)
            await here.connect((self.server.address, port))
            there, _ = await listener.accept()
        return here, there

    async def until_empty(self) -> None:
        """Return when no host has a session, an entry or a held packet left."""
        async with trio.open_nursery() as nursery:
            for host in self.hosts.values():
                nursery.start_soon(host.until_empty)


@asynccontextmanager
async def live_chain(
    netns: NamespaceFactory, directory: Path, *options: str
) -> AsyncIterator[LiveChain]:
    """All agents ready, with *options* for each; everything is taken out at the end."""
    router = netns("router")
    hosts: dict[str, LiveHost] = {}
    for number, label in enumerate(_ROLES, 1):
        namespace = netns(label)
        end = (f"to-{label}", f"10.9.{number}.1/24")
        netns.link(namespace, ("eth0", f"10.9.{number}.2/24"), router, end)
        namespace.route("default", "via", f"10.9.{number}.1")
        hosts[label] = LiveHost(label, number, namespace, directory)
        hosts[label].options = options
    router.sysctl("net.ipv4.ip_forward", 1)
    hosts["fw"].namespace.sysctl("net.ipv4.ip_forward", 1)
    (directory / "policy.m2m").write_text(POLICY)
    run(sys.executable, "-m", "m2m.cli.policy", "keygen", str(directory / "key"))
    serve = (
        "m2m.cli.policy", "serve", str(directory / "policy.m2m"),
        "--key-file", str(directory / "key"), "--store", str(directory / "policy.sqlite"),
    )  # fmt: skip
    async with daemon(hosts["server"].namespace, directory, "policy", *serve) as policy:
        try:
            async with trio.open_nursery() as nursery:
                for host in hosts.values():
                    nursery.start_soon(host.start)
            yield LiveChain(hosts, router, policy)
        finally:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    for host in hosts.values():
                        nursery.start_soon(host.clean_up)
