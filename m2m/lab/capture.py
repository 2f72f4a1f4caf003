"""What travels on the links of a lab: tcpdump on each of them, and a reader for its files."""

from __future__ import annotations

import itertools
import struct
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from m2m.lab.lab import Lab
from m2m.lab.topology import Link, Ready
from m2m.protocol.flow import Flow, Proto, format_address

_SNAP = 128  # bytes of each packet: all headers
_NANOSECONDS = 0xA1B23C4D  # the magic number of a file with times to the nanosecond
_ETHERNET, _IPV4 = 14, 0x0800
_V4_MAPPED = b"\0" * 10 + b"\xff\xff"
_SYN, _ACK = 0x02, 0x10


class Packet(NamedTuple):
    """One captured TCP or UDP packet over IPv4."""

    flow: Flow
    length: int  # IP total length in bytes
    payload: int  # bytes behind the transport header
    opens: bool  # a TCP SYN without ACK
    seq: int = 0  # TCP's sequence number

    @property
    def ends(self) -> frozenset[str]:
        """The addresses of both hosts."""
        return frozenset((format_address(self.flow.src), format_address(self.flow.dst)))


@dataclass
class Way:
    """What went one way in a connection."""

    sizes: Counter[int] = field(default_factory=Counter)  # IP total length -> packets
    payload: int = 0  # bytes; what TCP has sent again, for whatever reason, counts once
    _end: int | None = None  # the sequence number behind the last new byte

    def add(self, packet: Packet) -> None:
        """Count *packet* in."""
        self.sizes[packet.length] += 1
        if self._end is None:
            self._end = packet.seq + 1  # a SYN takes one
        elif packet.payload:
            end = packet.seq + packet.payload
            ahead = (end - self._end + 2**31) % 2**32 - 2**31
            if ahead > 0:
                self.payload += ahead
                self._end = end

    @property
    def packets(self) -> int:
        return self.sizes.total()

    @property
    def bytes(self) -> int:
        """The sum of IP total lengths."""
        return sum(size * number for size, number in self.sizes.items())


class Connection(NamedTuple):
    """A TCP connection as it was seen at one place, in the direction of its SYN."""

    flow: Flow
    to_server: Way
    to_client: Way


def records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Time (ns since 1970) and captured bytes of each packet of a pcap file.

    A record still being written ends it.
    """
    with path.open("rb") as file:
        header = file.read(24)
        if len(header) < 24:
            return
        order = "<" if header[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
        (magic,) = struct.unpack_from(order + "I", header)
        fraction = 1 if magic == _NANOSECONDS else 1000
        fields = struct.Struct(order + "IIII")
        while len(record := file.read(16)) == 16:
            seconds, parts, captured, _ = fields.unpack(record)
            data = file.read(captured)
            if len(data) < captured:
                return
            yield seconds * 10**9 + parts * fraction, data


def read(path: Path) -> Iterator[Packet]:
    """The TCP and UDP packets of a pcap file of an Ethernet interface."""
    return (packet for _, data in records(path) if (packet := _packet(data)))


def _packet(data: bytes) -> Packet | None:
    if len(data) < _ETHERNET + 20 or int.from_bytes(data[12:14], "big") != _IPV4:
        return None
    ip = data[_ETHERNET:]
    start, proto = (ip[0] & 0xF) * 4, ip[9]
    if proto not in (Proto.TCP, Proto.UDP) or len(ip) < start + 8:
        return None
    length = int.from_bytes(ip[2:4], "big")
    sport, dport = struct.unpack_from("!HH", ip, start)
    flow = Flow(proto, _V4_MAPPED + ip[12:16], sport, _V4_MAPPED + ip[16:20], dport)
    if proto == Proto.UDP:
        return Packet(flow, length, length - start - 8, opens=False)
    if len(ip) < start + 20:
        return None
    payload = length - start - (ip[start + 12] >> 4) * 4
    opens = ip[start + 13] & (_SYN | _ACK) == _SYN
    return Packet(flow, length, payload, opens, int.from_bytes(ip[start + 4 : start + 8], "big"))


def connections(packets: Iterable[Packet]) -> list[Connection]:
    """The TCP connections whose opening is among *packets*."""
    found: dict[Flow, Connection] = {}
    for packet in packets:
        if packet.opens:
            found.setdefault(packet.flow, Connection(packet.flow, Way(), Way()))
        if connection := found.get(packet.flow):
            connection.to_server.add(packet)
        elif connection := found.get(packet.flow.reverse()):
            connection.to_client.add(packet)
    return list(found.values())


class LinkCapture:
    """tcpdump on one link, seen from *host*'s end of it."""

    def __init__(self, link: Link, host: str, file: Path) -> None:
        self.link = link
        self.host = host
        self.file = file

    def packets(self) -> list[Packet]:
        """What has been captured so far."""
        return list(read(self.file))


_numbers = itertools.count(1)


@asynccontextmanager
async def on_links(
    lab: Lab, links: Iterable[Link], which: str = "tcp or udp"
) -> AsyncIterator[list[LinkCapture]]:
    """Capture on *links* during the block; *which* packets is an expression for tcpdump.

    A link is watched from the end that has no agent, if there is one: what is seen there has
    come over the wire.
    """
    captures: list[tuple[str, LinkCapture]] = []
    run = next(_numbers)
    for link in links:
        host = min(link.between, key=lambda end: lab.topology.hosts[end].role is not None)
        name = f"capture{run}-{link.other(host)}"
        capture = LinkCapture(link, host, lab.directory / f"{host}-{name}.pcap")
        await lab.start(
            host,
            name,
            ["tcpdump", "-i", link.other(host), "-n", "-U", "--immediate-mode", "-Z", "root",
             "-B", "16384", "-s", str(_SNAP), "-w", str(capture.file), which],
            ready=Ready(log="listening on"),
        )  # fmt: skip
        captures.append((name, capture))
    try:
        yield [capture for _, capture in captures]
    finally:
        for name, capture in captures:
            await lab.stop(capture.host, name)
