"""A chain of real agents in namespaces, round a router that knows nothing of M2M.

::

    client 10.9.1.2 ──┐               ┌── server 10.9.4.2 (and the policy server)
                      ├─── router ────┤
    fw     10.9.2.2 ──┘  10.9.N.1     └── ids    10.9.3.2
    (inline)                              (tap)
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from m2m.agent.api import ChangeReport, EventKind
from m2m.auth import DomainKey
from m2m.datapath import kmod
from tests.support.live import PATIENCE, LiveAgent, module_keys
from tests.support.namespaces import Namespace, NamespaceFactory, run_prefix
from tests.support.processes import Daemon, run_program, start

CLOSED, OPEN, TAPPED = 80, 81, 82  # ports, by their policies

POLICY = f"""
nf firewall inline {{ fw1 = 10.9.2.2 }}
nf ids tap {{ ids1 = 10.9.3.2 }}
match(dstport={CLOSED} | dstport=5201) >> {{firewall -> ids}} fail=closed
match(dstport={OPEN}) >> {{firewall -> ids}} fail=open
match(dstport={TAPPED}) >> {{ids}} fail=closed
"""

USUAL = ("client", "fw", "ids", "server")
TRIES, BUSY = 5, ("timeout", "overflow")  # why a change is undone on a busy machine
_ENDS = {"client": "client", "server": "server"}  # roles; others are middleboxes


class LiveHost(LiveAgent):
    """A namespace and, most of the time, the agent in it."""

    def __init__(self, label: str, number: int, namespace: Namespace, run_dir: Path) -> None:
        name = run_prefix() + label
        super().__init__(name, run_dir / f"{name}.sock")
        self.label = label
        self.address = f"10.9.{number}.2"
        self.namespace = namespace
        self.run_dir = run_dir
        self.options: tuple[str, ...] = ()
        self.agent: Daemon | None = None

    async def start(self, *options: str) -> None:
        """Start the agent; *options* beside those of the first start."""
        self.agent = await start(
            self.namespace, self.run_dir, self.label, "m2m.cli.agent",
            "--role", _ENDS.get(self.label, "middlebox"), "--name", self.name,
            "--run-dir", str(self.run_dir),
            "--key-file", str(self.run_dir / "key"), "--policy-server", "10.9.4.2",
            "--sessions", "1000", *self.options, *options,
        )  # fmt: skip

    async def clean_up(self) -> None:
        """End the agent and take everything out of the kernel."""
        if self.agent is not None:
            await self.agent.stop()
        await run_program(
            self.namespace, self.run_dir / f"{self.label}.log", "m2m.cli.agent", "--cleanup",
            "--name", self.name, "--run-dir", str(self.run_dir),
        )  # fmt: skip

    def keys(self) -> set[bytes]:
        with self.namespace.entered():
            if kmod.has_state():
                return module_keys()
        return super().keys()

    def reserved_ports(self) -> str:
        return self.namespace.run("sysctl", "-n", "net.ipv4.ip_local_reserved_ports").stdout.strip()

    def socket(self, kind: int) -> trio.socket.SocketType:
        return trio.socket.from_stdlib_socket(self.namespace.socket(socket.AF_INET, kind))


class LiveChain:
    """The hosts, the router between them, and the policy server on the session server's."""

    def __init__(
        self, hosts: dict[str, LiveHost], router: Namespace, policy: Daemon, *serve: str
    ) -> None:
        self.hosts = hosts
        self.router = router
        self.policy = policy
        self._serve = serve
        self.client, self.fw = hosts["client"], hosts["fw"]
        self.ids, self.server = hosts["ids"], hosts["server"]

    async def listen(self, port: int) -> trio.socket.SocketType:
        listener = self.server.socket(socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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

    async def refusal(self, port: int) -> tuple[str, bool]:
        """Open a session that is refused: what the client's agent says, and whether the
        connection came to be all the same."""
        told: list[str] = []
        connected = False

        async with trio.open_nursery() as nursery:

            async def watch(*, task_status: trio.TaskStatus[None]) -> None:
                told.append(await self.client.until_told(EventKind.REFUSED, task_status))
                if not connected:
                    nursery.cancel_scope.cancel()

            await nursery.start(watch)
            with await self.listen(port), self.client.socket(socket.SOCK_STREAM) as here:
                await here.connect((self.server.address, port))
                connected = True
        return told[0], connected

    async def start_policy_server(self) -> None:
        """Start it again."""
        self.policy = await start(self.server.namespace, self.server.run_dir, *self._serve)

    async def load_policy(self, text: str) -> None:
        """Have the policy server push another policy; returns when all agents have it."""
        path = self.server.run_dir / "another.m2m"
        path.write_text(text)
        directory = self.server.run_dir
        await run_program(
            self.server.namespace, directory / "policy.log", "m2m.cli.policy", "load", str(path),
            "--key-file", str(directory / "key"),
        )  # fmt: skip

    async def until_empty(self) -> None:
        """Return when no host has a session, an entry or a held packet left."""
        async with trio.open_nursery() as nursery:
            for host in self.hosts.values():
                nursery.start_soon(host.until_empty)


async def change_chain(asked: LiveHost, session: str, **wish: object) -> ChangeReport:
    """Have a chain changed. On a busy machine that may take longer than packets are held for:
    then it is undone, and asked for again."""
    for _ in range(TRIES):
        report = await asked.change(sessions=(session,), **wish)
        if report.cause not in BUSY:
            break
        assert report.after == report.before
    assert report.error is None, report
    return report


@asynccontextmanager
async def live_chain(
    netns: NamespaceFactory,
    directory: Path,
    *options: str,
    more: Sequence[str] = (),
    text: str = POLICY,
) -> AsyncIterator[LiveChain]:
    """All agents ready, with *options* for each; everything is taken out at the end.

    Middleboxes of which there are *more* get the addresses 10.9.5.2, 10.9.6.2 and so on; *text* is
    the policy.
    """
    router = netns("router")
    hosts: dict[str, LiveHost] = {}
    for number, label in enumerate((*USUAL, *more), 1):
        namespace = netns(label)
        end = (f"to-{label}", f"10.9.{number}.1/24")
        netns.link(namespace, ("eth0", f"10.9.{number}.2/24"), router, end)
        namespace.route("default", "via", f"10.9.{number}.1")
        hosts[label] = LiveHost(label, number, namespace, directory)
        hosts[label].options = options
    router.sysctl("net.ipv4.ip_forward", 1)
    for label in ("fw", *more):
        hosts[label].namespace.sysctl("net.ipv4.ip_forward", 1)
    (directory / "policy.m2m").write_text(text)
    DomainKey.generate(directory / "key")
    serve = (
        "policy", "m2m.cli.policy", "serve", str(directory / "policy.m2m"),
        "--key-file", str(directory / "key"), "--store", str(directory / "policy.sqlite"),
    )  # fmt: skip
    policy = await start(hosts["server"].namespace, directory, *serve)
    chain = LiveChain(hosts, router, policy, *serve)
    try:
        async with trio.open_nursery() as nursery:
            for host in hosts.values():
                nursery.start_soon(host.start)
        yield chain
    finally:
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for host in hosts.values():
                    nursery.start_soon(host.clean_up)
            await chain.policy.stop()
