"""Connections that fetch their bytes, with a real server on the loopback interface."""

from __future__ import annotations

import socket
import struct

import pytest
import trio

from m2m.lab.prefix_flows import Flow
from m2m.lab.traffic import fetches


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


async def started(nursery: trio.Nursery, capsys: pytest.CaptureFixture[str], port: int) -> None:
    nursery.start_soon(fetches.serve, port)
    while "listening" not in capsys.readouterr().out:
        await trio.lowlevel.checkpoint()


async def test_each_gets_its_own_bytes_from_its_own_port_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    server, *ports = free_ports(61)
    flows = [Flow(n, "127.0.0.1", port, 1000 * n + 1) for n, port in enumerate(ports)]
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await started(nursery, capsys, server)
            for _ in range(2):  # the very same addresses and ports again
                found = await fetches.fetch("127.0.0.1", server, flows)
                assert [one.bytes for one in found] == [flow.size for flow in flows]
                assert all(one.right and not one.error for one in found)
            nursery.cancel_scope.cancel()


async def test_flows_have_different_bytes() -> None:
    assert fetches.content(1, 200_000) != fetches.content(2, 200_000)
    assert len(fetches.content(1, 200_000)) == 200_000


async def test_what_fails_is_told_and_keeps_nobody_else() -> None:
    """A server that gives the first flow less than it asked for, and the second one all."""
    server, first, second = free_ports(3)

    async def answer(stream: trio.SocketStream) -> None:
        number, size = struct.unpack("!HI", await stream.receive_some(6))
        await stream.send_all(fetches.content(number, size)[: size - 1 + number])
        if number:
            await stream.receive_some(1)
        await stream.aclose()

    listeners = await trio.open_tcp_listeners(server, host="127.0.0.1")
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, answer, listeners)
            flows = [Flow(0, "127.0.0.1", first, 100), Flow(1, "127.0.0.1", second, 100)]
            found = await fetches.fetch("127.0.0.1", server, flows)
            assert [(one.bytes, one.right) for one in found] == [(99, False), (100, True)]
            nursery.cancel_scope.cancel()
    refused = await fetches.fetch("127.0.0.1", server, flows[:1])
    assert not refused[0].right and "refused" in refused[0].error
