"""A proxy in a real chain: what it accepts and what it opens are one session to all others.

The chain of :mod:`tests.support.chain` with two middleboxes more: ``cache`` runs a small proxy
(:mod:`tests.support.proxy_program`), ``filter`` an inline function behind it.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from m2m.lab.pace import SLOWNESS
from tests.support.chain import LiveChain, LiveHost, live_chain
from tests.support.live import PATIENCE
from tests.support.namespaces import NamespaceFactory
from tests.support.own_proxies import OwnProxy, own_proxy

pytestmark = [
    pytest.mark.needs("netns", "bpffs", "nfqueue", "nft", "iptables"),
    pytest.mark.timeout(120),
]

CLOSED, OPEN, SHUT = 80, 81, 83  # ports: policies that fail so, and one where nobody listens
LISTENS = 3129

POLICY = f"""
nf firewall inline {{ fw1 = 10.9.2.2 }}
nf cache proxy port={LISTENS} {{ cache1 = 10.9.5.2 }}
nf filter inline {{ filter1 = 10.9.6.2 }}
nf ids tap {{ ids1 = 10.9.3.2 }}
match((dstport={CLOSED} | dstport={SHUT}) & proto=tcp) >> {{firewall -> cache -> filter -> ids}}
match(dstport={OPEN} & proto=tcp) >> {{cache -> ids}} fail=open
"""

COUNTERS = """
table ip seen {
    counter named { }
    counter other { }
    chain forward {
        type filter hook forward priority 0
        ip saddr 10.9.1.2 ip daddr 10.9.4.2 tcp dport { 80, 83 } counter name named
        ip saddr 10.9.5.2 counter name other
    }
}
"""


class Proxied:
    """The chain, the proxy in it, and a server that says who it thinks has asked."""

    def __init__(self, chain: LiveChain, proxy: OwnProxy) -> None:
        self.chain = chain
        self.cache: LiveHost = chain.hosts["cache"]
        self.proxy = proxy

    async def connect(self, port: int, server: str = "10.9.4.2", sport: int = 0) -> Client:
        here = self.chain.client.socket(socket.SOCK_STREAM)
        here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await here.bind((self.chain.client.address, sport))
        with trio.fail_after(PATIENCE):
            await here.connect((server, port))
        return Client(here)

    async def serve(self, port: int, nursery: trio.Nursery) -> None:
        listener = await self.chain.listen(port)
        nursery.start_soon(self._accept, listener)

    async def _accept(self, listener: trio.socket.SocketType) -> None:
        with listener:
            async with trio.open_nursery() as nursery:
                while True:
                    sock, peer = await listener.accept()
                    nursery.start_soon(self._converse, sock, peer)

    async def _converse(self, sock: trio.socket.SocketType, peer: tuple[str, int]) -> None:
        stream = trio.SocketStream(sock)
        async with stream:
            async for data in stream:
                for name in data.decode().split():
                    await stream.send_all(f"{name} {peer[0]}:{peer[1]}\n".encode())

    def rules(self) -> str:
        return self.cache.namespace.run("iptables-save", "-t", "nat").stdout

    async def until_empty(self, *labels: str) -> None:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for label in labels or self.chain.hosts:
                    nursery.start_soon(self.chain.hosts[label].until_empty)


class Client:
    """One connection, which asks line by line."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._stream = trio.SocketStream(sock)
        self.name = "{}:{}".format(*sock.getsockname())

    async def ask(self, line: str) -> str:
        with trio.fail_after(PATIENCE):
            await self._stream.send_all(f"{line}\n".encode())
            answer = b""
            while not answer.endswith(b"\n"):
                data = await self._stream.receive_some()
                assert data, f"the connection was closed after {answer!r}"
                answer += data
            return answer.decode().strip()

    async def close(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def chain_with_proxy(
    netns: NamespaceFactory, tmp_path: Path, policy: str = POLICY
) -> AsyncIterator[Proxied]:
    async with (
        live_chain(
            netns, tmp_path, "--linger", "0.5", more=("cache", "filter"), text=policy
        ) as chain,
        own_proxy(chain.hosts["cache"], "proxy_program", LISTENS) as proxy,
        trio.open_nursery() as nursery,
    ):
        made = Proxied(chain, proxy)
        for port in (CLOSED, OPEN):
            await made.serve(port, nursery)
        yield made
        nursery.cancel_scope.cancel()


@pytest.fixture
async def proxied(netns: NamespaceFactory, tmp_path: Path) -> AsyncIterator[Proxied]:
    async with chain_with_proxy(netns, tmp_path) as made:
        yield made


def count_behind(proxied: Proxied) -> None:
    behind = proxied.chain.hosts["filter"]
    behind.namespace.run("sh", "-c", f"nft -f - <<'END'{COUNTERS}END")


def counted_behind(proxied: Proxied) -> dict[str, int]:
    """What the filter behind the proxy has seen, of packets that name the client, and others."""
    listed = proxied.chain.hosts["filter"].namespace.run("nft", "list", "counters").stdout
    parts = listed.split("counter ")[1:]
    return {part.split()[0]: int(part.split("packets ")[1].split()[0]) for part in parts}


async def test_many_at_once_are_all_told_apart(proxied: Proxied) -> None:
    """I3, I9: the server sees each client, so does what is behind the proxy; hits stay hits."""
    chain, count = proxied.chain, 50 if SLOWNESS == 1 else 10
    count_behind(proxied)
    seen: dict[str, str] = {}

    async def one(number: int) -> None:
        client = await proxied.connect(CLOSED)
        if number % 10 == 0:
            assert await client.ask(f"GET hit{number}") == f"cached hit{number}"
        else:
            for what in ("first", "second"):
                name, seen[client.name] = (await client.ask(f"GET {what}{number}")).split()
                assert name == f"{what}{number}"
        await client.close()

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)
    assert len(seen) == count * 9 // 10
    assert {mine for mine, its in seen.items() if its != mine} == set()
    answers = [line["answer"] for line in proxied.proxy.told("connecting")]
    assert answers == [["READY", ""]] * len(seen)
    assert {line["found"][0] for line in proxied.proxy.told("accepted")} == {"FOUND"}
    packets = counted_behind(proxied)
    assert packets["named"] >= 6 * len(seen)
    assert packets["other"] == 0
    await proxied.until_empty()
    assert [host.entries() for host in chain.hosts.values()] == [0] * 6
    assert proxied.cache.stats().ports == 0


async def test_a_connection_after_the_other_and_one_that_fails(proxied: Proxied) -> None:
    chain = proxied.chain
    client = await proxied.connect(CLOSED)
    for number in range(3):
        assert await client.ask(f"NEW one{number}") == f"one{number} {client.name}"
    (left,) = chain.client.sessions()
    halves = {one.id: one for one in proxied.cache.sessions()}
    assert {one.position for one in halves.values()} == {"proxy"}
    assert halves[left.id].local is None and halves[left.id].halves
    path = await trio.to_thread.run_sync(chain.fw.path, left.id)
    assert [hop.position for hop in path.hops] == ["client", "inline", "proxy"]
    newest = path.behind[-1]
    assert halves[newest.session].supersession == left.supersession
    assert halves[newest.session].local != left.supersession
    assert path.complete and newest.complete
    assert [hop.nf for hop in newest.hops] == ["cache/cache1", "filter/filter1", "ids/ids1", None]
    await client.close()
    await proxied.until_empty()

    client = await proxied.connect(SHUT)  # the proxy accepts, and the server does not
    assert await client.ask("GET two") == "failed ConnectionRefusedError"
    assert proxied.proxy.told("connecting")[-1]["answer"] == ["READY", ""]
    await proxied.until_empty("filter", "ids", "server")
    assert len(proxied.cache.sessions()) == 1
    await client.close()
    await proxied.until_empty("cache")

    # One port of a client to two servers: led to one port of the proxy, connection tracking gives
    # one of the two another source port.
    chain.server.namespace.address("eth0", "10.9.4.3/24")
    first = await proxied.connect(CLOSED, sport=45000)
    second = await proxied.connect(CLOSED, "10.9.4.3", sport=45000)
    for client in (first, second):
        assert await client.ask("GET it") == "it 10.9.1.2:45000"
    peers = [tuple(line["accepted"]) for line in proxied.proxy.told("accepted")[-2:]]
    assert len(set(peers)) == 2, "they were no trouble"
    assert [line["found"][0] for line in proxied.proxy.told("accepted")[-2:]] == ["FOUND"] * 2
    assert len(proxied.cache.sessions()) == 4
    for one in proxied.cache.sessions():
        (other,) = one.halves
        assert other != one.id
    for client in (first, second):
        await client.close()
    await proxied.until_empty()


async def test_a_proxy_shows_its_own_connections(netns: NamespaceFactory, tmp_path: Path) -> None:
    """The server sees the proxy, by way of the rest of the chain, where the policy says so."""
    policy = POLICY.replace(f"port={LISTENS}", f"port={LISTENS} shows=proxy")
    async with chain_with_proxy(netns, tmp_path, policy) as proxied:
        count_behind(proxied)
        client = await proxied.connect(CLOSED)
        assert (await client.ask("GET one")).startswith("one 10.9.5.2:")
        packets = counted_behind(proxied)
        assert (packets["named"], packets["other"] > 0) == (0, True)
        await client.close()
        await proxied.until_empty()


async def test_agents_that_are_away(proxied: Proxied) -> None:
    """One behind: the policy's fail decides, and sessions that need no server do not notice."""
    ids = proxied.chain.ids
    assert ids.agent is not None
    await ids.agent.stop(signal.SIGKILL)
    for port, answer in ((CLOSED, "failed ConnectionRefusedError"), (OPEN, None)):
        client = await proxied.connect(port)
        assert await client.ask("GET hit") == "cached hit"
        told = await client.ask("GET it")
        assert told == answer or (answer is None and told.startswith("it 10.9.5.2:"))
        await client.close()
    answers = [line["answer"][0] for line in proxied.proxy.told("connecting")]
    assert answers == ["REFUSED", "UNKNOWN"]
    await ids.start()
    await proxied.until_empty()

    # I6: the proxy's own agent, in mid-session
    cache = proxied.cache
    old, young = await proxied.connect(CLOSED), await proxied.connect(CLOSED)
    assert await old.ask("GET before") == f"before {old.name}"
    assert cache.agent is not None
    await cache.agent.stop(signal.SIGKILL)
    assert "M2M-PROXY" in proxied.rules()
    assert await old.ask("GET meanwhile") == f"meanwhile {old.name}"
    await cache.start()
    assert await old.ask("GET after") == f"after {old.name}"
    # One that the former agent had accepted goes on by the new one, and so do new ones.
    assert await young.ask("GET it") == f"it {young.name}"
    newest = await proxied.connect(CLOSED)
    assert await newest.ask("GET it") == f"it {newest.name}"
    assert proxied.rules().count("-j M2M-PROXY") == 1
    for client in (old, young, newest):
        await client.close()
    await proxied.until_empty()
    await cache.clean_up()
    assert "M2M-PROXY" not in proxied.rules()
    await cache.start()
