"""Bytes that are never the same twice, through connections of any kind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import trio

from tests.support.live import PATIENCE

_ONCE = 1 << 18


def stream(size: int, seed: bytes) -> Iterator[bytes]:
    """So many bytes that are never the same twice."""
    block = hashlib.shake_128(seed).digest(_ONCE)
    for start in range(0, size, _ONCE):
        yield (start.to_bytes(8, "big") + block[8:])[: size - start]


async def send(to: trio.SocketStream, size: int, seed: bytes = b"") -> None:
    for piece in stream(size, seed):
        await to.send_all(piece)


async def exactly(one: trio.SocketStream, size: int) -> bytes:
    got = bytearray()
    with trio.fail_after(PATIENCE):
        while len(got) < size:
            data = await one.receive_some(size - len(got))
            assert data, f"it ended after {len(got)} of {size}"
            got += data
    return bytes(got)


async def receive(one: trio.SocketStream, size: int, seed: bytes = b"") -> None:
    """Take so many bytes, and see that they are the right ones."""
    for piece in stream(size, seed):
        assert await exactly(one, len(piece)) == piece


async def both_ways(client: trio.SocketStream, server: trio.SocketStream, size: int) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, server, size, b"down")
        nursery.start_soon(receive, client, size, b"down")
        nursery.start_soon(send, client, size, b"up")
        nursery.start_soon(receive, server, size, b"up")
