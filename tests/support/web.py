"""A web server that writes down who asked for what, and clients that say who they are."""

from __future__ import annotations

import ssl
from email.utils import formatdate
from typing import NamedTuple, Self

import trio

from tests.support.live import PATIENCE

End = tuple[str, int]


class Asked(NamedTuple):
    """A request, as it came to the server."""

    peer: End  # the other end of the connection, as the server's socket has it
    who: str  # what the client calls itself
    path: str


class Server:
    """Answers any path with itself. ``/kept...`` may be cached, all else may not."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []

    def by_peer(self) -> dict[End, set[str]]:
        """Who has asked over each connection."""
        found: dict[End, set[str]] = {}
        for one in self.asked:
            found.setdefault(one.peer, set()).add(one.who)
        return found

    async def serve(self, listener: trio.socket.SocketType) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                sock, peer = await listener.accept()
                nursery.start_soon(self._converse, trio.SocketStream(sock), peer[:2])

    async def _converse(self, stream: trio.SocketStream, peer: End) -> None:
        reader = _Reader(stream)
        try:
            async with stream:
                while (head := await reader.head()) is not None:
                    lines = head.split("\r\n")
                    path = lines[0].split()[1]
                    self.asked.append(Asked(peer, _fields(lines)["x-who"], path))
                    age = "max-age=3600" if path.startswith("/kept") else "no-store"
                    await stream.send_all(
                        f"HTTP/1.1 200 OK\r\nDate: {formatdate(usegmt=True)}\r\n"
                        f"Cache-Control: {age}\r\n"
                        f"Content-Length: {len(path)}\r\n\r\n{path}".encode()
                    )
        except trio.BrokenResourceError:
            pass


class Reply(NamedTuple):
    """What a client has got."""

    status: int
    body: str
    hit: bool  # from a cache, by its own word


class Browser:
    """One connection of a client, which calls itself by its own end of it."""

    def __init__(self, stream: trio.abc.Stream, who: str, host: str) -> None:
        self._stream = stream
        self._reader = _Reader(stream)
        self._host = host
        self.who = who

    @classmethod
    async def open(
        cls, sock: trio.socket.SocketType, address: End, tls: ssl.SSLContext | None = None
    ) -> Self:
        with trio.fail_after(PATIENCE):
            await sock.connect(address)
        name = "{}:{}".format(*sock.getsockname())
        plain = trio.SocketStream(sock)
        stream = plain if tls is None else trio.SSLStream(plain, tls, https_compatible=True)
        host, port = address
        return cls(stream, name, host if port == 80 else f"{host}:{port}")

    async def ask(self, *paths: str) -> None:
        """Send requests, all at once."""
        await self._stream.send_all(
            "".join(
                f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\nX-Who: {self.who}\r\n\r\n"
                for path in paths
            ).encode()
        )

    async def reply(self) -> Reply:
        with trio.fail_after(PATIENCE):
            head = await self._reader.head()
            assert head is not None, "the connection was closed"
            lines = head.split("\r\n")
            fields = _fields(lines)
            body = await self._reader.exactly(int(fields.get("content-length", "0")))
        return Reply(int(lines[0].split()[1]), body, fields.get("x-cache", "").startswith("HIT"))

    async def get(self, path: str) -> Reply:
        await self.ask(path)
        return await self.reply()

    async def close(self) -> None:
        await self._stream.aclose()


class _Reader:
    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._buffer = b""

    async def head(self) -> str | None:
        """Up to the empty line; None: there is no more."""
        while b"\r\n\r\n" not in self._buffer:
            if not await self._more():
                return None
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        return head.decode()

    async def exactly(self, size: int) -> str:
        while len(self._buffer) < size:
            assert await self._more(), "the connection was closed"
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found.decode()

    async def _more(self) -> bool:
        data = await self._stream.receive_some()
        self._buffer += data
        return bool(data)


def _fields(lines: list[str]) -> dict[str, str]:
    found = (line.partition(":") for line in lines[1:])
    return {name.lower(): value.strip() for name, _, value in found}
