"""A proxy leaves live sessions (docs/splicing.md).

The chain of :mod:`tests.support.chain` with two middleboxes more: ``cache`` runs a small proxy
(:mod:`tests.support.leaving_program`), ``filter`` an inline function behind it.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio

from nf_adapters.sockets import SIZE as MESSAGE
from nf_adapters.sockets import Kind, Message, decode, encode
from tests.support.chain import LiveChain, LiveHost, live_chain
from tests.support.leaving_program import TO_CLIENT, TO_SERVER
from tests.support.live import PATIENCE
from tests.support.namespaces import NamespaceFactory
from tests.support.own_proxies import OwnProxy, own_proxy
from tests.support.streams import both_ways, exactly, receive, send

pytestmark = [
    pytest.mark.needs("netns", "bpffs", "nfqueue", "nft", "iptables"),
    pytest.mark.timeout(120),
]

PORT, LISTENS = 80, 3129
AFTER = 200_000  # bytes of a session, after which the proxy leaves it
SIZE = 60_000_000  # long enough that a busy agent comes to leave in the middle of it

POLICY = f"""
nf firewall inline {{ fw1 = 10.9.2.2 }}
nf cache proxy port={LISTENS} {{ cache1 = 10.9.5.2 }}
nf filter inline {{ filter1 = 10.9.6.2 }}
nf ids tap {{ ids1 = 10.9.3.2 }}
match(dstport={PORT} & proto=tcp) >> {{firewall -> cache -> filter -> ids}} \
    allow={{operator, nf, policy}}
"""


class Proxied:
    """The chain, and the proxy in it."""

    def __init__(self, chain: LiveChain, proxy: OwnProxy) -> None:
        self.chain = chain
        self.cache: LiveHost = chain.hosts["cache"]
        self.proxy = proxy

    async def connect(self) -> tuple[trio.SocketStream, trio.SocketStream]:
        """A session: both its ends, past what the proxy says first."""
        with await self.chain.listen(PORT) as listener, trio.fail_after(PATIENCE):
            here = self.chain.client.socket(socket.SOCK_STREAM)
            await here.connect((self.chain.server.address, PORT))
            there, peer = await listener.accept()
        assert peer == here.getsockname()
        client, server = trio.SocketStream(here), trio.SocketStream(there)
        assert await exactly(client, len(TO_CLIENT)) == TO_CLIENT
        assert await exactly(server, len(TO_SERVER)) == TO_SERVER
        return client, server


def leaving_proxy(chain: LiveChain) -> AbstractAsyncContextManager[OwnProxy]:
    return own_proxy(chain.hosts["cache"], "leaving_program", LISTENS, str(AFTER))


@pytest.fixture
async def proxied(netns: NamespaceFactory, tmp_path: Path) -> AsyncIterator[Proxied]:
    async with (
        live_chain(
            netns, tmp_path, "--linger", "0.5", more=("cache", "filter"), text=POLICY
        ) as chain,
        leaving_proxy(chain) as proxy,
    ):
        yield Proxied(chain, proxy)


async def test_in_the_middle_of_a_download(proxied: Proxied) -> None:
    client, server = await proxied.connect()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, server, SIZE)
        nursery.start_soon(receive, client, SIZE)
    (left,) = await proxied.proxy.until_told("left")
    assert left["copied"] < SIZE
    await both_ways(client, server, 1_000_000)
    await client.aclose()
    assert await server.receive_some() == b""
    await server.aclose()


async def test_all_know_one_session_and_the_host_goes(proxied: Proxied) -> None:
    chain = proxied.chain
    client, server = await proxied.connect()
    await send(server, AFTER)
    await receive(client, AFTER)
    await proxied.proxy.until_told("left")
    (session,) = chain.client.sessions()
    with trio.fail_after(PATIENCE):
        for host in chain.hosts.values():
            while {one.id for one in host.sessions()} - {session.id}:  # noqa: ASYNC110
                await trio.sleep(0.02)
    await both_ways(client, server, 1_000_000)
    await proxied.cache.until_empty()
    path = await trio.to_thread.run_sync(chain.fw.path, session.id)
    assert path.complete
    assert [hop.nf for hop in path.hops[1:-1]] == ["firewall/fw1", "filter/filter1", "ids/ids1"]
    assert proxied.cache.entries() == 0
    await both_ways(client, server, 1_000_000)
    # What changes later adds up with it.
    report = await chain.client.change(do="remove", old=("firewall",), sessions=(session.id,))
    assert report.error is None, report
    await both_ways(client, server, 1_000_000)
    report = await chain.client.change(
        do="insert", new=("firewall",), after="client", sessions=(session.id,)
    )
    assert report.error is None, report
    await both_ways(client, server, 1_000_000)
    await client.aclose()
    assert await server.receive_some() == b""
    await server.aclose()
    await chain.until_empty()
    assert {host.label: host.stats().ports for host in chain.hosts.values()} == dict.fromkeys(
        chain.hosts, 0
    )


@pytest.mark.parametrize("first", ["client", "server"])
async def test_one_end_is_over_before(proxied: Proxied, first: str) -> None:
    """A half-closed session goes on in the other direction."""
    client, server = await proxied.connect()
    ends, goes_on = (client, server) if first == "client" else (server, client)
    await ends.send_eof()
    with trio.fail_after(PATIENCE):
        assert await goes_on.receive_some() == b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, goes_on, SIZE)
        nursery.start_soon(receive, ends, SIZE)
    await proxied.proxy.until_told("left")
    await goes_on.send_eof()
    with trio.fail_after(PATIENCE):
        assert await ends.receive_some() == b""
    await ends.aclose()
    await goes_on.aclose()
    await proxied.chain.until_empty()


async def test_many_at_once(proxied: Proxied) -> None:
    """What passes while they leave is whole; the proxy's host goes from all, and nothing stays."""
    count = 150 if os.environ.get("M2M_HEAVY") == "1" else 40
    chain = proxied.chain
    pairs = [await proxied.connect() for _ in range(count)]
    async with trio.open_nursery() as nursery:
        for client, server in pairs:
            nursery.start_soon(both_ways, client, server, AFTER)
    told = await proxied.proxy.until_told("left", count)
    assert len({one["left"] for one in told}) == count
    async with trio.open_nursery() as nursery:
        for client, server in pairs:
            nursery.start_soon(both_ways, client, server, AFTER)
    await proxied.cache.until_empty()
    async with trio.open_nursery() as nursery:
        for client, server in pairs:
            nursery.start_soon(both_ways, client, server, AFTER)
    for client, server in pairs:
        await client.aclose()
        assert await server.receive_some() == b""
        await server.aclose()
    await chain.until_empty()
    assert {host.label: host.stats().ports for host in chain.hosts.values()} == dict.fromkeys(
        chain.hosts, 0
    )


async def test_the_proxy_and_agents_die_afterwards(netns: NamespaceFactory, tmp_path: Path) -> None:
    """I6: from then on the kernel alone carries the session. The next agents know what the killed
    ones had not told the others yet, and the proxy's host goes."""
    async with live_chain(
        netns, tmp_path, "--linger", "0.5", more=("cache", "filter"), text=POLICY
    ) as chain:
        cache, behind, ids = (chain.hosts[label] for label in ("cache", "filter", "ids"))
        async with leaving_proxy(chain) as proxy:
            client, server = await Proxied(chain, proxy).connect()
            silence = ("FORWARD", "-p", "udp", "-s", "10.9.6.2", "-d", "10.9.3.2", "-j", "DROP")
            chain.router.run("iptables", "-A", *silence)
            await send(server, AFTER)
            await receive(client, AFTER)
            await proxy.until_told("left")
            (session,) = chain.client.sessions()
            await behind.until(lambda now: [one.id for one in now.sessions] == [session.id])
            for host in (cache, behind, ids):
                assert host.agent is not None
                await host.agent.stop(signal.SIGKILL)
        await both_ways(client, server, 1_000_000)
        chain.router.run("iptables", "-D", *silence)
        async with trio.open_nursery() as nursery:
            for host in (ids, behind):
                nursery.start_soon(host.start)
        await cache.start()
        await cache.until_empty()
        assert not cache.rows("notes")
        assert len(behind.rows("notes")) == 1
        await both_ways(client, server, 1_000_000)
        await client.aclose()
        assert await server.receive_some() == b""
        await server.aclose()
        await chain.until_empty()


async def test_only_its_own_can_be_left(proxied: Proxied) -> None:
    """LEAVE is about connections of a session that has come to a proxy here."""
    client, server = await proxied.connect()
    path = proxied.cache.run_dir / f"{proxied.cache.name}.proxy"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.connect(str(path))
        one, other = socket.socketpair()
        with one, other:
            message = encode(Message(Kind.LEAVE, 1))
            socket.send_fds(line, [message], [one.fileno(), other.fileno()])
            answer = decode(await trio.to_thread.run_sync(line.recv, MESSAGE))
            assert (answer.kind, answer.number) == (Kind.STAYS, 1)
            line.send(encode(Message(Kind.PASSED, 2)))
            assert decode(await trio.to_thread.run_sync(line.recv, MESSAGE)).kind is Kind.STAYS
    await both_ways(client, server, AFTER // 4)
    for stream in (client, server):
        await stream.aclose()


async def test_what_is_no_socket_is_not_kept_open(proxied: Proxied) -> None:
    client, server = await proxied.connect()
    path = proxied.cache.run_dir / f"{proxied.cache.name}.proxy"
    assert proxied.cache.agent is not None
    files = f"/proc/{proxied.cache.agent.process.pid}/fd"
    before = len(os.listdir(files))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.connect(str(path))
        null = os.open(os.devnull, os.O_RDONLY)
        socket.send_fds(line, [encode(Message(Kind.LEAVE, 1))], [line.fileno(), null])
        os.close(null)
        assert await trio.to_thread.run_sync(line.recv, MESSAGE) == b""  # it is answered no more
        assert len(os.listdir(files)) == before
    await client.aclose()
    await server.aclose()
