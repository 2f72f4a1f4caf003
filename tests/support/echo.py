"""A TCP session that is busy both ways, every byte of which is checked when it comes back."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tests.support.chain import LiveChain
from tests.support.live import PATIENCE

_PATTERN = os.urandom(1 << 20)  # nothing in it could be mistaken for something else, or squeezed
_WINDOW = 1 << 18  # bytes under way
_PIECE = 1 << 16


class Echo:
    """The client's end sends, the server's end sends it back."""

    def __init__(
        self, here: trio.socket.SocketType, there: trio.socket.SocketType, pattern: bytes
    ) -> None:
        self.checked = 0  # bytes that have come back, and were right
        self._pattern = pattern
        self._sent = 0
        self._here, self._there = here, there
        self._moved = trio.Event()

    async def goes_on(self, size: int = 4 * _WINDOW) -> None:
        """Return when *size* more bytes have come back; fails the test when they do not."""
        target = self.checked + size
        with trio.fail_after(PATIENCE):
            while self.checked < target:
                await self._moved.wait()

    async def send(self) -> None:
        while True:
            while self._sent - self.checked >= _WINDOW:
                await self._moved.wait()
            start = self._sent % len(self._pattern)
            self._sent += await self._here.send(self._pattern[start : start + _PIECE])

    async def echo(self) -> None:
        while data := await self._there.recv(_PIECE):
            view = memoryview(data)
            while view:
                view = view[await self._there.send(view) :]

    async def check(self) -> None:
        while data := await self._here.recv(_PIECE):
            start = self.checked % len(self._pattern)
            doubled = self._pattern[start:] + self._pattern[: len(data)]
            assert doubled.startswith(data), f"wrong bytes behind {self.checked}"
            self.checked += len(data)
            self._moved.set()
            self._moved = trio.Event()


@asynccontextmanager
async def an_echo(chain: LiveChain, port: int, pattern: bytes = _PATTERN) -> AsyncIterator[Echo]:
    """A session from the chain's client to *port* of its server that runs while the block does.

    What is sent is *pattern*, at least as long as a piece, again and again.
    """
    here, there = await chain.connect(port)
    with here, there:
        async with trio.open_nursery() as nursery:
            made = Echo(here, there, pattern)
            for task in (made.send, made.echo, made.check):
                nursery.start_soon(task)
            await made.goes_on()
            yield made
            nursery.cancel_scope.cancel()
