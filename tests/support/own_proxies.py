"""The tests' own proxies, each beside an agent of a live chain, and what they tell: programs
:mod:`tests.support.proxy_program` and :mod:`tests.support.leaving_program`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.support.chain import LiveHost
from tests.support.live import PATIENCE

ROOT = Path(__file__).parents[2]


class OwnProxy:
    """What one has told so far, line by line, through a pipe; it holds 64 KiB that nobody has
    looked at, which is more than any test has told."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._rest = b""
        self._lines: list[dict[str, Any]] = []

    def told(self, what: str) -> list[dict[str, Any]]:
        """What it has told of that by now."""
        try:
            while data := os.read(self._pipe, 1 << 16):
                *lines, self._rest = (self._rest + data).split(b"\n")
                self._lines += map(json.loads, lines)
            raise AssertionError("the proxy has ended")
        except BlockingIOError:
            pass
        return [line for line in self._lines if what in line]

    async def until_told(self, what: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until it has told of that so often."""
        with trio.fail_after(PATIENCE):
            while len(told := self.told(what)) < count:
                await trio.lowlevel.wait_readable(self._pipe)
        return told


@asynccontextmanager
async def own_proxy(
    host: LiveHost, program: str, port: int, *arguments: str
) -> AsyncIterator[OwnProxy]:
    """The *program* of that name on *host*, listening, while the block runs."""
    agent = host.run_dir / f"{host.name}.proxy"
    command = host.namespace.command(
        sys.executable, "-m", f"tests.support.{program}", str(port), str(agent), *arguments
    )
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert isinstance(process.stdout, trio.lowlevel.FdStream)
    try:
        made = OwnProxy(process.stdout.fileno())
        await made.until_told("listening")
        yield made
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()
