"""Squid, unmodified, leaves sessions whose response it may not keep (docs/splicing.md)."""

from __future__ import annotations

import hashlib
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.support.chain import LiveChain, live_chain
from tests.support.live import PATIENCE
from tests.support.namespaces import NamespaceFactory
from tests.support.real_proxies import USER, Proxy, library_installed
from tests.support.streams import both_ways

pytestmark = [
    pytest.mark.needs("netns", "bpffs", "nfqueue", "nft", "iptables", "squid"),
    pytest.mark.timeout(180),
]

LISTENS, PORT = 3129, 80
AFTER = 1_000_000  # octets of a response, after which Squid leaves
SIZE = 50_000_000

POLICY = f"""
nf firewall inline {{ fw1 = 10.9.2.2 }}
nf cache proxy port={LISTENS} {{ cache1 = 10.9.5.2 }}
nf ids tap {{ ids1 = 10.9.3.2 }}
match(dstport={PORT} & proto=tcp) >> {{firewall -> cache -> ids}} allow={{operator, nf, policy}}
"""


UPGRADE = b"GET / HTTP/1.1\r\nHost: 10.9.4.2\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
SWITCHES = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"


def block(number: int) -> bytes:
    return hashlib.shake_128(b"%d" % number).digest(1000) * 100


class Web:
    """Serves what no cache may keep: ``/SIZE/CACHE-CONTROL``."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def converse(self, stream: trio.SocketStream) -> None:
        async with stream:
            buffer = b""
            async for data in stream:
                buffer += data
                while b"\r\n\r\n" in buffer:
                    head, buffer = buffer.split(b"\r\n\r\n", 1)
                    await self._answer(stream, head.split()[1].decode())

    async def _answer(self, stream: trio.SocketStream, path: str) -> None:
        self.asked.append(path)
        _, size, control = path.split("/")
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nCache-Control: {control}\r\n\r\n"
        await stream.send_all(head.encode())
        for number in range(int(size) // 100_000):
            await stream.send_all(block(number))


class Browser:
    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = b""

    async def get(self, *paths: str) -> list[bytes]:
        """The headers of the responses, all asked for at once; bodies are looked at block by
        block."""
        asked = "".join(f"GET {path} HTTP/1.1\r\nHost: 10.9.4.2\r\n\r\n" for path in paths)
        await self.stream.send_all(asked.encode())
        return [await self._reply(int(path.split("/")[1])) for path in paths]

    async def _reply(self, size: int) -> bytes:
        with trio.fail_after(PATIENCE):
            while b"\r\n\r\n" not in self._buffer:
                self._buffer += await self._more()
            head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
            assert head.startswith(b"HTTP/1.1 200"), head
            for number in range(size // 100_000):
                expected = block(number)
                while len(self._buffer) < len(expected):
                    self._buffer += await self._more()
                assert self._buffer[: len(expected)] == expected, number
                self._buffer = self._buffer[len(expected) :]
        return head

    async def _more(self) -> bytes:
        data = await self.stream.receive_some()
        assert data, "the connection was closed"
        return bytes(data)


async def head_of(stream: trio.SocketStream) -> bytes:
    """A header, of which nothing comes behind it yet."""
    head = b""
    with trio.fail_after(PATIENCE):
        while not head.endswith(b"\r\n\r\n"):
            head += await stream.receive_some()
    return head


@pytest.fixture
async def chain(netns: NamespaceFactory) -> AsyncIterator[tuple[LiveChain, Path]]:
    folder = Path(tempfile.mkdtemp(prefix="m2m-proxies-"))  # workers of Squid must get there
    options = ("--linger", "0.5", "--proxy-group", USER)
    try:
        async with live_chain(netns, folder, *options, more=("cache",), text=POLICY) as made:
            yield made, folder / "proxy"
    finally:
        shutil.rmtree(folder)


async def browse(chain: LiveChain) -> Browser:
    here = chain.client.socket(socket.SOCK_STREAM)
    with trio.fail_after(PATIENCE):
        await here.connect((chain.server.address, PORT))
    return Browser(trio.SocketStream(here))


@asynccontextmanager
async def squid(live: LiveChain, home: Path, workers: int = 0) -> AsyncIterator[None]:
    """It leaves sessions after :data:`AFTER` octets."""
    cache = live.hosts["cache"]
    proxy = Proxy(cache.namespace, home, cache.control, LISTENS, "--leave", str(AFTER))
    with library_installed():
        async with proxy.squid(workers):
            yield


async def until_left(live: LiveChain) -> None:
    """The session has one half, and Squid's host is out of it."""
    await live.hosts["cache"].until_empty()
    (session,) = live.client.sessions()
    path = await trio.to_thread.run_sync(live.fw.path, session.id)
    assert path.complete
    assert [hop.nf for hop in path.hops[1:-1]] == ["firewall/fw1", "ids/ids1"]


@pytest.mark.parametrize("workers", [0, 2])
async def test_in_the_middle_of_a_response(chain: tuple[LiveChain, Path], workers: int) -> None:
    live, home = chain
    cache, web = live.hosts["cache"], Web()

    async def serve(listener: trio.socket.SocketType) -> None:
        async with trio.open_nursery() as conversations:
            while True:
                there, _ = await listener.accept()
                conversations.start_soon(web.converse, trio.SocketStream(there))

    async with squid(live, home, workers), trio.open_nursery() as nursery:
        nursery.start_soon(serve, await live.listen(PORT))
        # What may be kept is, and Squid stays.
        browser = await browse(live)
        await browser.get("/5000000/max-age=1000")
        (came, half) = cache.sessions()
        assert {came.position, half.position} == {"proxy"}
        # What may not is none of its business, unless it has read another request.
        heads = await browser.get(f"/{SIZE // 5}/no-store", f"/{SIZE}/no-store")
        assert all(b"squid" in head for head in heads)
        await until_left(live)
        # The client goes on, with the server itself.
        (head,) = await browser.get("/1000000/no-store")
        assert b"squid" not in head
        await browser.stream.aclose()
        nursery.cancel_scope.cancel()
    await live.until_empty()


async def test_a_connection_that_has_switched_protocols(chain: tuple[LiveChain, Path]) -> None:
    """Behind 101 Squid is a tunnel, both ways."""
    live, home = chain
    async with squid(live, home):
        with await live.listen(PORT) as listener, trio.fail_after(PATIENCE):
            client = (await browse(live)).stream
            await client.send_all(UPGRADE)
            server = trio.SocketStream((await listener.accept())[0])
        assert b"Upgrade: echo" in await head_of(server)
        await server.send_all(SWITCHES)
        assert (await head_of(client)).startswith(b"HTTP/1.1 101")
        await both_ways(client, server, 4 * AFTER)
        await until_left(live)
        await both_ways(client, server, AFTER)
        await client.aclose()
        assert await server.receive_some() == b""
        await server.aclose()
    await live.until_empty()
