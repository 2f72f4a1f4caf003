"""The module while everything around it goes: rows, agents, devices, namespaces, itself.

Packets of a session never stop meanwhile, on every processor. What is looked for is what the kernel
would complain of (``tests/vm/with-module`` fails then), and what does not work afterwards.
"""

from __future__ import annotations

import itertools
import os
import platform
import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from m2m.datapath import DatapathError, Held, Verdict
from m2m.datapath.kmod import is_loaded
from m2m.protocol.flow import Flow, Proto
from m2m.protocol.translation import Action, Position, Toward
from tests.support import line as on
from tests.support.line import CLIENT, PATIENCE, SERVER, Host, Line, line, udp_socket
from tests.support.namespaces import NamespaceFactory, run
from tests.support.rig import Listener
from tests.support.sessions import policy_set

pytestmark = pytest.mark.skipif(not is_loaded(), reason="the module m2m is not loaded here")

_BUILT = Path(os.environ.get("M2M_KMOD", Path.home() / ".cache/m2m/headers/built"))
# A kernel that looks for mistakes is many times slower, and finds them sooner.
_CHANGES = 8 if Path("/sys/kernel/debug/kmemleak").exists() else 40


@pytest.fixture(autouse=True)
def _kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on, "KIND", "kmod")


@asynccontextmanager
async def heard(host: Host) -> AsyncIterator[Listener]:
    """An agent is there."""
    listener = Listener()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.run, host.datapath)
        await trio.testing.wait_all_tasks_blocked()
        yield listener
        nursery.cancel_scope.cancel()


@contextmanager
def flooded(there: Line, flow: Flow) -> Iterator[None]:
    """Datagrams of *flow* from both ends, each as fast as one thread can."""
    ends = []
    for host, address, port in (
        (there.client, CLIENT, flow.sport), (there.server, SERVER, flow.dport),
    ):  # fmt: skip
        sock = host.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((address, port))
        ends.append(sock)
    peers = (SERVER, flow.dport), (CLIENT, flow.sport)
    enough = threading.Event()

    def send(sock: socket.socket, peer: tuple[str, int]) -> None:
        for number in itertools.count():
            if enough.is_set():
                return
            with suppress(OSError):  # dropped, refused, unreachable: all of that happens here
                sock.sendto(struct.pack("=Q", number) * (1 + number % 300), peer)

    threads = [
        threading.Thread(target=send, args=(sock, peer))
        for sock, peer in zip(ends, peers, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        enough.set()
        for thread in threads:
            thread.join(PATIENCE)
        for sock in ends:
            sock.close()


async def passes(there: Line, flow: Flow) -> None:
    """A datagram gets through, and its answer."""
    client = udp_socket(there.client, CLIENT, flow.sport)
    server = udp_socket(there.server, SERVER, flow.dport)
    with client, server, trio.fail_after(PATIENCE):
        await client.sendto(b"still there?", (SERVER, flow.dport))
        while (await server.recvfrom(4096))[0] != b"still there?":
            pass  # of the flood
        await server.sendto(b"yes", (CLIENT, flow.sport))
        while (await client.recvfrom(4096))[0] != b"yes":
            pass


async def test_rows_come_and_go_under_packets(netns: NamespaceFactory) -> None:
    async with line(netns) as there, heard(there.middle):
        flow = await there.steer(Proto.UDP, Position.TAP)
        rows = [row.entry for row in await there.middle.rows()]
        keys = [row.key for row in rows]
        datapath = there.middle.datapath
        with flooded(there, flow):
            for _ in range(_CHANGES):
                await datapath.hold(keys)
                await datapath.redirect(rows)
                await datapath.remove(keys[:1])
                await datapath.install(rows[:1])
                await datapath.hold(keys)
                await datapath.resume(keys[1:])
                await datapath.remove(keys)
                await datapath.install(rows)
        await passes(there, flow)


async def test_agents_come_and_go_under_packets(netns: NamespaceFactory) -> None:
    async with line(netns) as there:
        flow = await there.steer(Proto.UDP, Position.INLINE)
        rows = [row.entry for row in await there.middle.rows()]
        keys = [row.key for row in rows if row.action is Action.SEND]
        with flooded(there, flow):
            for number in range(_CHANGES // 4):
                async with heard(there.middle):
                    await there.middle.datapath.hold(keys)
                keep = number % 2 == 0
                await there.middle.close(keep=keep)
                await there.middle.open()
                if not keep:
                    await there.middle.install(rows)
        await passes(there, flow)


async def test_a_device_goes_under_packets(netns: NamespaceFactory) -> None:
    """With packets held for it: no reference may keep it."""
    async with line(netns) as there, heard(there.middle):
        flow = await there.steer(Proto.UDP, Position.TAP)
        keys = [row.entry.key for row in await there.middle.rows()]
        with flooded(there, flow):
            await there.middle.datapath.hold(keys)
            there.middle.namespace.run("ip", "link", "delete", "eth1")
            await there.middle.datapath.resume(keys)
            with pytest.raises(DatapathError, match="interface that is not there"):
                await there.middle.datapath.install(
                    [row.entry for row in await there.middle.rows()]
                )
        assert "eth1" not in there.middle.namespace.run("ip", "link").stdout


async def test_namespaces_go_under_packets(netns: NamespaceFactory) -> None:
    async with line(netns) as there:
        flow = await there.steer(Proto.UDP, Position.TAP)
        keys = [
            row.entry.key for row in await there.middle.rows() if row.entry.toward is Toward.RIGHT
        ]
        async with heard(there.middle):
            with flooded(there, flow):
                await there.middle.datapath.hold(keys)
                run("ip", "netns", "delete", there.middle.namespace.name)
        there.middle.datapath._let_go()  # type: ignore[attr-defined]
        there.middle.close = _nothing  # type: ignore[method-assign]


async def _nothing(*, keep: bool = False) -> None:
    pass


async def test_held_first_packets_of_a_killed_agent(netns: NamespaceFactory) -> None:
    """By the policy, and at once; those of an agent that is there wait."""
    async with line(netns) as there:
        client = there.client
        await client.datapath.load_policy(policy_set(on.SERVICE))
        sock = udp_socket(client, CLIENT, 41000)
        with sock:
            async with heard(client) as agent:
                await sock.sendto(b"x", (SERVER, on.SERVICE))
                held = await agent.next()
                assert isinstance(held, Held)
                await client.datapath.release(held.flow, Verdict.PASS)
            with flooded(there, Flow.of(17, CLIENT, 40000, SERVER, on.SERVICE)):
                for _ in range(_CHANGES // 4):
                    client.datapath._let_go()  # type: ignore[attr-defined]
                    await client.open()
                    async with heard(client) as agent:
                        pass


async def test_the_module_goes_under_packets(netns: NamespaceFactory) -> None:
    async with line(netns) as there:
        flow = await there.steer(Proto.UDP, Position.TAP)
        keys = [row.entry.key for row in await there.middle.rows()]
        async with heard(there.middle):
            with flooded(there, flow):
                await there.middle.datapath.hold(keys)
                run("rmmod", "m2m")
                run("insmod", str(_BUILT / platform.release() / "m2m.ko"))
        for host in there.hosts:
            host.datapath._let_go()  # type: ignore[attr-defined]
            host.close = _nothing  # type: ignore[method-assign]
    netns.remove_all()
    async with line(netns) as there:
        await passes(there, await there.steer(Proto.UDP, Position.TAP))
