"""Programs that copy all they are sent leave sessions, unmodified (docs/splicing.md)."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.support.chain import LiveChain, live_chain
from tests.support.live import PATIENCE
from tests.support.namespaces import NamespaceFactory
from tests.support.real_proxies import Proxy
from tests.support.streams import both_ways, receive, send

pytestmark = [
    pytest.mark.needs(
        "netns", "bpffs", "nfqueue", "nft", "iptables", "haproxy", "socat", "tinyproxy"
    ),
    pytest.mark.timeout(180),
]

LISTENS, PORT = 3129, 80
AFTER = 1_000_000  # octets, after which the program leaves
SIZE = 10_000_000

POLICY = f"""
nf firewall inline {{ fw1 = 10.9.2.2 }}
nf balancer proxy port={LISTENS} {{ balancer1 = 10.9.5.2 }}
nf ids tap {{ ids1 = 10.9.3.2 }}
match((dstport={PORT} | dstport={LISTENS}) & proto=tcp) >> {{firewall -> balancer -> ids}} \
    allow={{operator, nf, policy}}
"""


@pytest.fixture
async def chain(netns: NamespaceFactory, tmp_path: Path) -> AsyncIterator[LiveChain]:
    async with live_chain(
        netns, tmp_path, "--linger", "0.5", more=("balancer",), text=POLICY
    ) as made:
        yield made


@pytest.fixture
def proxy(chain: LiveChain, tmp_path: Path) -> Proxy:
    host = chain.hosts["balancer"]
    return Proxy(host.namespace, tmp_path, host.control, LISTENS, "--leave", str(AFTER), "--tunnel")


Ends = tuple[trio.SocketStream, trio.SocketStream]


async def connect(chain: LiveChain, to: tuple[str, int] | None = None) -> Ends:
    """A session and what continues it. *to*: whom the client addresses, else the server."""
    with await chain.listen(PORT) as listener, trio.fail_after(PATIENCE):
        here = chain.client.socket(socket.SOCK_STREAM)
        await here.connect(to or (chain.server.address, PORT))
        there, peer = await listener.accept()
    assert peer == here.getsockname()
    return trio.SocketStream(here), trio.SocketStream(there)


def octets(chain: LiveChain) -> int:
    """All that has come to the host of the program."""
    text = chain.hosts["balancer"].namespace.run("cat", "/sys/class/net/eth0/statistics/rx_bytes")
    return int(text.stdout)


async def until_left(chain: LiveChain) -> None:
    """The session has one half, and the host of the program is out of it."""
    await chain.hosts["balancer"].until_empty()
    (session,) = chain.client.sessions()
    path = await trio.to_thread.run_sync(chain.fw.path, session.id)
    assert path.complete
    assert [hop.nf for hop in path.hops[1:-1]] == ["firewall/fw1", "ids/ids1"]


async def all_of(one: trio.SocketStream, other: trio.SocketStream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, one, SIZE)
        nursery.start_soon(receive, other, SIZE)


async def end(one: trio.SocketStream, other: trio.SocketStream) -> None:
    """The end of a stream comes through."""
    await one.send_eof()
    with trio.fail_after(PATIENCE):
        assert await other.receive_some() == b""


async def seen_through(
    chain: LiveChain, client: trio.SocketStream, server: trio.SocketStream
) -> None:
    """A download, which the program leaves, and what comes then; packets at its host stop."""
    await all_of(server, client)
    await until_left(chain)
    before = octets(chain)
    await both_ways(client, server, SIZE)
    assert octets(chain) - before < AFTER
    await client.aclose()
    assert await server.receive_some() == b""
    await server.aclose()
    await chain.until_empty()


async def test_in_the_middle_of_a_download(chain: LiveChain, proxy: Proxy) -> None:
    async with proxy.haproxy("tcp"):
        await seen_through(chain, *await connect(chain))


async def test_a_program_that_is_the_server_its_client_means(
    chain: LiveChain, proxy: Proxy
) -> None:
    """The session goes to the program's own host, and ends at another one in the end."""
    async with proxy.socat((chain.server.address, PORT)):
        own = chain.hosts["balancer"].address, LISTENS
        await seen_through(chain, *await connect(chain, own))


async def test_connect(chain: LiveChain, tmp_path: Path) -> None:
    """What a proxy's client has asked it to connect to: behind the headers, a tunnel."""
    host = chain.hosts["balancer"]
    proxy = Proxy(host.namespace, tmp_path, host.control, LISTENS, "--leave", str(AFTER))
    async with proxy.tinyproxy():
        with await chain.listen(PORT) as listener, trio.fail_after(PATIENCE):
            here = chain.client.socket(socket.SOCK_STREAM)
            await here.connect((host.address, LISTENS))
            client = trio.SocketStream(here)
            target = f"{chain.server.address}:{PORT}"
            await client.send_all(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += await client.receive_some()
            assert b" 200 " in head
            server = trio.SocketStream((await listener.accept())[0])
        await both_ways(client, server, 1000)
        await seen_through(chain, client, server)


async def test_half_closed(chain: LiveChain, proxy: Proxy) -> None:
    """HAProxy leaves in the middle of an upload, whose end comes later; and where it has passed
    the end of one direction on before."""
    async with proxy.haproxy("tcp"):
        client, server = await connect(chain)
        await all_of(client, server)
        await until_left(chain)
        await end(client, server)
        await all_of(server, client)
        await end(server, client)
        await chain.until_empty()
        for first in ("client", "server"):
            client, server = await connect(chain)
            ends, goes_on = (client, server) if first == "client" else (server, client)
            await both_ways(client, server, 1000)
            await end(ends, goes_on)
            await all_of(goes_on, ends)
            await until_left(chain)
            await all_of(goes_on, ends)
            await end(goes_on, ends)
            await chain.until_empty()
