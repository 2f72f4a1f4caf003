"""Many connections at once from many addresses, each of which fetches its own bytes.

``python -m m2m.lab.traffic.fetches serve PORT`` serves until it is killed. ``... fetch ADDRESS
PORT`` reads a JSON list of :class:`~m2m.lab.prefix_flows.Flow` from standard input, has each fetch
from its own address and port what belongs to it, and prints a JSON list of :class:`Fetched` in the
same order. Some fetch at a time, but all stay open until the last one is through: how many
connections a host has had is then how many it has at once.

The server closes first: the client's address and port are free at once for the next time.
"""

from __future__ import annotations

import argparse
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import trio

from m2m.lab.pace import SLOWNESS
from m2m.lab.prefix_flows import Flow
from m2m.lab.traffic import blocks

_HEADER = struct.Struct("!HI")  # number of the flow, bytes wanted
_LAST = b"."  # the client has all, and so have the others
_AT_ONCE = 40  # connections that are fetching
_PATIENCE = 15.0 * SLOWNESS  # s for one of them


class Fetched(msgspec.Struct, frozen=True):
    """What became of one flow."""

    bytes: int
    right: bool  # all bytes came, and they are the right ones
    error: str = ""


def content(number: int, size: int) -> bytes:
    """The bytes of the flow with this *number*."""
    whole = b"".join(blocks.data(number, n) for n in range(-(-size // blocks.SIZE)))
    return whole[:size]


async def serve(port: int) -> None:
    """Give each connection what it asks for, for ever."""

    async def answer(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            asked = b""
            while len(asked) < _HEADER.size:
                more = await stream.receive_some(_HEADER.size - len(asked))
                if not more:
                    return
                asked += more
            await stream.send_all(content(*_HEADER.unpack(asked)))
            await stream.receive_some(len(_LAST))
        await stream.aclose()

    listeners = await trio.open_tcp_listeners(port, host="0.0.0.0", backlog=1024)
    print("listening", flush=True)
    await trio.serve_listeners(answer, listeners)


async def fetch(address: str, port: int, flows: Sequence[Flow]) -> list[Fetched]:
    """Have every one of *flows* fetch its bytes from the server there."""
    found: dict[int, Fetched] = {}
    limit = trio.CapacityLimiter(_AT_ONCE)
    through = trio.Event()

    async def one(flow: Flow) -> None:
        right = content(flow.number, flow.size)
        got = bytearray()
        error = ""
        with trio.socket.socket() as sock:
            try:
                async with limit:
                    with trio.fail_after(_PATIENCE):
                        await _connect(sock, flow, (address, port))
                        await sock.send(_HEADER.pack(flow.number, flow.size))
                        while len(got) < flow.size and (data := await sock.recv(blocks.SIZE)):
                            got += data
            except (OSError, trio.TooSlowError) as problem:
                error = str(problem) or type(problem).__name__
            found[flow.number] = Fetched(len(got), got == right, error)
            if len(found) == len(flows):
                through.set()
            await through.wait()
            if got != right:
                return
            try:
                with trio.fail_after(_PATIENCE):
                    await sock.send(_LAST)
                    if await sock.recv(1):
                        raise OSError("there is more than was asked for")
            except (OSError, trio.TooSlowError) as problem:
                found[flow.number] = Fetched(len(got), False, f"at its end: {problem}")

    async with trio.open_nursery() as nursery:
        for flow in flows:
            nursery.start_soon(one, flow)
    return [found[flow.number] for flow in flows]


async def _connect(sock: trio.socket.SocketType, flow: Flow, server: tuple[str, int]) -> None:
    sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
    await sock.bind((flow.address, flow.port))
    await sock.connect(server)


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``serve`` or ``fetch``."""
    parser = argparse.ArgumentParser(prog="m2m.lab.traffic.fetches")
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("serve").add_argument("port", type=int)
    client = parts.add_parser("fetch")
    client.add_argument("address")
    client.add_argument("port", type=int)
    options = parser.parse_args(argv)
    if options.part == "serve":
        trio.run(serve, options.port)
        return
    flows = msgspec.json.decode(sys.stdin.buffer.read(), type=list[Flow])
    found = trio.run(fetch, options.address, options.port, flows)
    print(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    main()
