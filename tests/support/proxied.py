"""Proxies on one host, and the agent's end of their conversation in a test's hands: what it is
asked is kept and answered."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from m2m.protocol.flow import Flow
from nf_adapters.sockets import SIZE, Kind, Message, decode, encode
from nf_adapters.sockets.library import BUILT
from tests.support.namespaces import Namespace, NamespaceFactory

Answer = Callable[[Message], Message | None]

_USUAL = {
    Kind.CONNECTING: Kind.READY,
    Kind.REVOKED: Kind.GONE,
    Kind.LEAVE: Kind.LEAVING,
    Kind.PASSED: Kind.LEFT,
}

CLIENT, PROXY, SERVER = "10.7.0.1", "10.7.0.2", "10.7.0.3"
PORT, PORT_OF_PROXY = 80, 3128

# What every program begins with. SO_ORIGINAL_DST is asked for as proxies do.
PRELUDE = f"""
import errno, json, os, select, signal, socket, struct, subprocess, sys, threading, time
def original(sock):
    raw = sock.getsockopt(socket.SOL_IP, 80, 16)
    port, address = struct.unpack("!2xH4s8x", raw)
    return socket.inet_ntoa(address), port
def tell(*what):
    print(json.dumps(what), flush=True)
def refused(address):
    try:
        socket.create_connection(address).close()
    except OSError as error:
        return errno.errorcode[error.errno]
listener = socket.create_server(("{PROXY}", {PORT_OF_PROXY}), backlog=64)
PORT, SERVER = {PORT}, "{SERVER}"
tell("ready")
"""


def host(netns: NamespaceFactory) -> Namespace:
    """Client, proxy and server on one host; what is sent to the server comes to the proxy."""
    made = netns("proxied")
    for address in (CLIENT, PROXY, SERVER):
        made.run("ip", "address", "add", f"{address}/32", "dev", "lo")
    made.run(
        "nft",
        "add table ip nat; add chain ip nat output { type nat hook output priority -100; };"
        f"add rule ip nat output ip saddr {CLIENT} ip daddr {SERVER} tcp dport {PORT}"
        f" dnat to {PROXY}:{PORT_OF_PROXY}",
    )
    return made


class Agent:
    """Answers that each accepted connection is of a session of its own, and all is ready."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: list[Message] = []
        self.lines = 0  # connections that there have been
        self.answer: Answer = self.usual
        self.waits_for: dict[Kind, trio.Event] = {}  # before it answers
        self.sessions: dict[Flow, int] = {}
        self._changed = trio.Event()

    def usual(self, asked: Message) -> Message:
        if asked.kind is Kind.ACCEPTED:
            assert asked.flow is not None
            session = self.sessions.setdefault(asked.flow, len(self.sessions) + 1)
            return Message(Kind.FOUND, asked.number, session, asked.flow)
        return asked._replace(kind=_USUAL[asked.kind])

    def of(self, kind: Kind) -> list[Message]:
        """What was said of this kind."""
        return [message for message in self.heard if message.kind is kind]

    async def until(self, kind: Kind, count: int = 1) -> list[Message]:
        """Wait until that has been said so often."""
        with trio.fail_after(30):
            while len(self.of(kind)) < count:
                await self._changed.wait()
        return self.of(kind)

    async def serve(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            line, _ = await listener.accept()
            self.lines += 1
            nursery.start_soon(self._converse, line)

    async def _converse(self, line: trio.socket.SocketType) -> None:
        with line:
            try:
                while data := await line.recv(SIZE + 1):
                    asked = decode(data)
                    self.heard.append(asked)
                    self._changed.set()
                    self._changed = trio.Event()
                    if asked.kind in self.waits_for:
                        await self.waits_for[asked.kind].wait()
                    answer = self.answer(asked)
                    if answer is not None:
                        await line.send(encode(answer))
            except OSError:
                pass  # the program has ended in the middle of it


@asynccontextmanager
async def agent(path: Path) -> AsyncIterator[Agent]:
    """One that listens at *path*; whoever may reach the file may ask."""
    made = Agent(path)
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_SEQPACKET) as listener:
        await listener.bind(str(path))
        os.chmod(path, 0o666)
        listener.listen(128)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.serve, listener, nursery)
            yield made
            nursery.cancel_scope.cancel()
    os.unlink(path)


class Program:
    """A Python program that runs with the library, and what it tells."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdout is not None
        self._lines = process.stdout
        self._buffer = b""
        self.process = process

    async def told(self) -> list:
        with trio.fail_after(30):
            while b"\n" not in self._buffer:
                more = await self._lines.receive_some()
                assert more, "the program has ended"
                self._buffer += more
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    async def ended(self) -> int:
        with trio.fail_after(30):
            return await self.process.wait()


@asynccontextmanager
async def running(place: Namespace, path: Path, text: str, **more: str) -> AsyncIterator[Program]:
    program = PRELUDE + textwrap.dedent(text)
    process = await trio.lowlevel.open_process(
        place.command(sys.executable, "-c", program), stdout=subprocess.PIPE,
        env={**os.environ, "LD_PRELOAD": str(BUILT), "M2M_SOCKETS": str(path), **more},
    )  # fmt: skip
    try:
        found = Program(process)
        assert await found.told() == ["ready"]
        yield found
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def client(place: Namespace) -> socket.socket:
    """One that meant to go to the server, and has come to the proxy."""

    def connect() -> socket.socket:
        made = place.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.settimeout(20)
        made.bind((CLIENT, 0))
        made.connect((SERVER, PORT))
        return made

    return await trio.to_thread.run_sync(connect)


def supersession(sock: socket.socket) -> Flow:
    return Flow.of(6, *sock.getsockname(), SERVER, PORT)


def outgoing(sock: socket.socket) -> Flow:
    """What the server's end of a connection shows of its beginning."""
    return Flow.of(6, *sock.getpeername(), *sock.getsockname())
