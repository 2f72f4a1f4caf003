"""ICMP errors about packets of sessions find their way back, in the terms of who has sent them."""

from __future__ import annotations

import socket
import struct

import pytest
import trio

from m2m.datapath.kmod import is_loaded
from m2m.protocol.flow import Proto
from m2m.protocol.translation import Position
from tests.support import line as on
from tests.support import packets
from tests.support.line import (
    CLIENT,
    CLIENT_PORT,
    PATIENCE,
    SERVER,
    SERVICE,
    Line,
    line,
    udp_socket,
)
from tests.support.namespaces import NamespaceFactory

pytestmark = pytest.mark.skipif(not is_loaded(), reason="the module m2m is not loaded here")

_UNREACHABLE, _PORT = 3, 3
# What an inline function sees of them: as in any network, errors between the session's own ends.
_WITNESS = f"""
table ip t {{
    counter own {{ }}
    counter strange {{ }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        ip protocol udp accept
        ip saddr {SERVER} ip daddr {CLIENT} icmp code port-unreachable counter name own accept
        counter name strange
    }}
}}
"""


def _seen(there: Line, counter: str) -> int:
    shown = there.middle.namespace.run("nft", "list", "counter", "ip", "t", counter).stdout
    words = shown.split()
    return int(words[words.index("packets") + 1])


@pytest.fixture(autouse=True)
def _kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on, "KIND", "kmod")


@pytest.mark.parametrize("position", [Position.TAP, Position.INLINE], ids=lambda p: p.name)
async def test_a_closed_port_is_told(netns: NamespaceFactory, position: Position) -> None:
    async with line(netns) as there:
        await there.steer(Proto.UDP, position)
        there.middle.namespace.run("nft", _WITNESS)
        raw = there.client.namespace.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        raw.setblocking(False)
        client = udp_socket(there.client, CLIENT, CLIENT_PORT)
        with raw, client, trio.fail_after(PATIENCE):
            await client.connect((SERVER, SERVICE))
            for size in (0, 1, 700):
                await client.send(bytes(size))
                with pytest.raises(ConnectionRefusedError):
                    await client.recv(100)
                data = raw.recv(2000)
                # From the server to the client, about what the client has sent, and whole.
                assert data[20:22] == bytes((_UNREACHABLE, _PORT))
                assert socket.inet_ntoa(data[12:16]) == SERVER
                assert socket.inet_ntoa(data[16:20]) == CLIENT
                assert packets.checksum(data[:20]) == 0
                assert packets.checksum(data[20:]) == 0
                quoted = data[28:]
                assert packets.checksum(quoted[:20]) == 0
                assert socket.inet_ntoa(quoted[12:16]) == CLIENT
                assert socket.inet_ntoa(quoted[16:20]) == SERVER
                assert struct.unpack("!HH", quoted[20:24]) == (CLIENT_PORT, SERVICE)
        for host in there.hosts:
            assert not await host.counted()
        assert _seen(there, "own") == (3 if position is Position.INLINE else 0)
        assert _seen(there, "strange") == 0


async def test_errors_about_other_flows_are_left_alone(netns: NamespaceFactory) -> None:
    async with line(netns) as there:
        await there.steer(Proto.UDP, Position.TAP)
        other = udp_socket(there.client, CLIENT, CLIENT_PORT + 1)
        with other, trio.fail_after(PATIENCE):
            await other.connect((SERVER, SERVICE))
            await other.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                await other.recv(100)
