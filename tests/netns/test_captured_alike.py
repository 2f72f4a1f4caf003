"""What a tap sees by the patched libpcap, beside what stock libpcap sees of a session like it on a
plain path: the same packets, whatever the filter."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from m2m.lab.handover import CORE, RACKS
from m2m.lab.lab import Lab
from m2m.lab.programs import tool
from m2m.lab.topology import Ready
from tests.support.packets import ACK
from tests.support.passive import IDS, NEEDS, TCP_PORT, Session, passive_lab

pytestmark = [pytest.mark.needs(*NEEDS, "tcpdump"), pytest.mark.timeout(120)]

_PATIENCE = 20.0  # s
_LOOK = 0.1  # s between two looks at files, which tell of no event

PLAIN_PORT, OTHER_PORT = 7099, 7098  # of no rule of the policy
FILTERS = (
    "tcp port PORT",
    "host CLIENT and host SERVER and port PORT",
    "src host CLIENT and tcp dst port PORT",
    "src net NETWORK/24 and tcp[0:2] = PORT",
    "tcp port PORT and tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
    "port PORT and tcp[((tcp[12] & 0xf0) >> 2):4] = 0x68656c6c",
    "port PORT and greater 80",
    "port PORT and ip[16:4] = ADDRESS and len <= 100",
)


class Seen(NamedTuple):
    """A packet without what a path, a port or a clock gives it."""

    from_client: bool
    flags: int
    position: int  # in its direction's stream
    payload: bytes


def read(path: Path, port: int) -> list[Seen]:
    """All but bare acknowledgements: when those come depends on the kernel's timers."""
    data, at, found = path.read_bytes(), 24, []
    start: dict[bool, int] = {}
    while at + 16 <= len(data):
        (captured,) = struct.unpack_from("=8xI", data, at)
        if at + 16 + captured > len(data):
            break  # being written
        frame = data[at + 16 : at + 16 + captured]
        at += 16 + captured
        packet = frame[14 : 14 + int.from_bytes(frame[16:18], "big")]
        tcp = packet[(packet[0] & 15) * 4 :]
        _, dport, seq, offset, flags = struct.unpack_from("!HHI4xBB", tcp)
        payload = tcp[(offset >> 4) * 4 :]
        from_client = dport == port
        position = (seq - start.setdefault(from_client, seq)) & 0xFFFFFFFF
        if payload or flags != ACK:
            found.append(Seen(from_client, flags, position, payload))
    return found


class Tap:
    """Where one kind of session is captured, by each filter."""

    def __init__(self, lab: Lab, host: str, port: int, command: tuple[str, ...]) -> None:
        self.lab, self.host, self.port = lab, host, port
        self._command = command
        self._files = [lab.directory / f"{host}-{number}.pcap" for number in range(len(FILTERS))]

    async def start(self, client: str, server: str) -> None:
        address = "0x" + bytes(map(int, server.split("."))).hex()
        for path, text in zip(self._files, FILTERS, strict=True):
            for word, value in (
                ("PORT", str(self.port)), ("CLIENT", client), ("SERVER", server),
                ("NETWORK", server.rpartition(".")[0] + ".0"), ("ADDRESS", address),
            ):  # fmt: skip
                text = text.replace(word, value)
            await self.lab.start(
                self.host, path.stem, [*self._command, "-U", "-w", str(path), text],
                ready=Ready(log="listening on"),
            )  # fmt: skip

    def seen(self) -> list[list[Seen]]:
        """By each filter, so far: libpcap hands over what it has captured a second later."""
        return [read(path, self.port) for path in self._files]


async def talk_and_end(session: Session) -> None:
    await session.talk(10)
    for here, there in ((session.here, session.there), (session.there, session.here)):
        here.shutdown(1)
        assert await there.recv(1) == b""
    session.close()


async def test_a_chained_session_looks_like_a_plain_one() -> None:
    async with passive_lab() as here:
        probe = await here.connect(OTHER_PORT)
        client, server = probe.client[0], probe.server[0]
        tap = Tap(here.lab, IDS, TCP_PORT, patched())
        plain = Tap(here.lab, CORE, PLAIN_PORT, ("tcpdump", "-i", RACKS[0], "-n"))
        probe.close()
        for one in (tap, plain):
            await one.start(client, server)
        for one in (tap, plain):
            await talk_and_end(await here.connect(one.port))
        with trio.move_on_after(_PATIENCE):
            while not all(plain.seen()) or tap.seen() != plain.seen():  # noqa: ASYNC110  (files)
                await trio.sleep(_LOOK)
        for text, got, expected in zip(FILTERS, tap.seen(), plain.seen(), strict=True):
            assert got == expected, text
            assert got, text
        whole = tap.seen()[0]
        assert len(whole) == len([one for one in whole if one.payload]) + 4, "SYN and FIN each way"


def patched() -> tuple[str, ...]:
    return (tool("m2m-nf"), "run", "--once", "--", "tcpdump", "-i", "core", "-n")
