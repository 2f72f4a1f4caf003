"""What passes a host of a lab on each of its links: one tcpdump per host, and a reader.

Everything that passes one host is in one file, in the order in which its kernel saw it, whatever
the link. Only headers are kept, so this goes along with 1 Gbit/s.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import trio

from m2m.lab import netns
from m2m.lab.capture import records
from m2m.lab.lab import Lab
from m2m.lab.netns import LabError
from m2m.lab.pace import SLOWNESS
from m2m.lab.topology import Ready
from m2m.lab.traffic import numbered
from m2m.protocol.flow import Proto

_SNAP = 128  # bytes of each packet: all headers, and the number of a numbered datagram
_COOKED = struct.Struct("!HxxIHB9x")  # LINUX_SLL2: protocol, interface, its type, which way
_IPV4, _OUTGOING = 0x0800, 4
_TCP = struct.Struct("!HHIIBB")
_FIN, _SYN, _ACK = 0x01, 0x02, 0x10
_DISCARD = ("127.0.0.1", 9)
_PATIENCE = 20.0 * SLOWNESS  # s until all that was captured is in the file


class Seen(NamedTuple):
    """One packet that passed: a TCP segment, or a burst of numbered datagrams.

    A burst that network cards would cut up travels whole between namespaces, and is one here too.
    """

    time: int  # ns since 1970
    link: str  # the host at the other end
    outgoing: bool
    proto: int
    leg: bytes  # source and destination address, source and destination port: 12 bytes
    ident: int  # IP identification: counts up from packet to packet of one TCP socket
    first: int  # sequence number, or number of the first datagram
    units: int  # bytes of the sequence space (SYN and FIN are one each), or datagrams
    ack: int | None  # None without one
    flow: int | None  # of datagrams
    syn: bool


def read(path: Path, links: Mapping[int, str]) -> Iterator[Seen]:
    """The packets of a LINUX_SLL2 pcap file; *links* says which interface leads to whom.

    Whatever is neither TCP nor a numbered datagram over IPv4, or on another interface, is left
    out.
    """
    start = _COOKED.size
    for time, data in records(path):
        if len(data) < start + 28:
            continue
        protocol, interface, _, way = _COOKED.unpack_from(data)
        link = links.get(interface)
        if protocol != _IPV4 or link is None:
            continue
        transport = start + (data[start] & 15) * 4
        total = int.from_bytes(data[start + 2 : start + 4], "big")
        ident = int.from_bytes(data[start + 4 : start + 6], "big")
        proto = data[start + 9]
        leg = data[start + 12 : start + 20] + data[transport : transport + 4]
        if proto == Proto.TCP and len(data) >= transport + 20:
            _, _, seq, ack, offset, flags = _TCP.unpack_from(data, transport)
            count = total - (transport - start) - (offset >> 4) * 4
            count += bool(flags & _SYN) + bool(flags & _FIN)
            yield Seen(
                time, link, way == _OUTGOING, proto, leg, ident, seq, count,
                ack if flags & _ACK else None, None, bool(flags & _SYN),
            )  # fmt: skip
        elif proto == Proto.UDP:
            header = numbered.header_of(data[transport + 8 :])
            if header is not None:
                payload = total - (transport - start) - 8
                yield Seen(
                    time, link, way == _OUTGOING, proto, leg, ident,
                    header.number, -(-payload // header.size), None, header.flow, False,
                )  # fmt: skip


class Watch:
    """What has passed one host; complete when the block of :func:`watch` has ended."""

    def __init__(self, host: str, file: Path, links: Mapping[int, str]) -> None:
        self.host = host
        self.file = file
        self._links = links

    def seen(self) -> list[Seen]:
        """All packets so far, in order."""
        return list(read(self.file, self._links))


_numbers = itertools.count(1)


@asynccontextmanager
async def watch(
    lab: Lab, hosts: Iterable[str], which: str = "tcp or udp"
) -> AsyncIterator[dict[str, Watch]]:
    """Capture on all links of *hosts* during the block; *which* is an expression for tcpdump.

    Raises :exc:`LabError` at the end of the block when the kernel had to leave packets out.
    """
    run = next(_numbers)
    name = f"watch{run}"
    watches: dict[str, Watch] = {}
    # Its own marker must get through the filter: see _flush.
    expression = f"({which}) or (udp and host {_DISCARD[0]} and port {_DISCARD[1]})"
    for host in hosts:
        shown = await lab.run(host, "ip", "-j", "link", "show")
        ends = {link.other(host) for link in lab.topology.links_of(host)}
        found = msgspec.json.decode(shown.out, type=list[_Interface])
        links = {one.ifindex: one.ifname for one in found if one.ifname in ends}
        file = lab.directory / f"{host}-{name}.pcap"
        await lab.start(
            host,
            name,
            ["tcpdump", "-i", "any", "-y", "LINUX_SLL2", "--time-stamp-precision", "nano",
             "-n", "-U", "--immediate-mode", "-Z", "root", "-B", "65536", "-s", str(_SNAP),
             "-w", str(file), expression],
            ready=Ready(log="listening on"),
        )  # fmt: skip
        watches[host] = Watch(host, file, links)
    try:
        yield watches
        for one in watches.values():
            await _flush(lab, one)
    finally:
        with trio.CancelScope(shield=True):
            for host in watches:
                await lab.stop(host, name)
    for host in watches:
        dropped = re.search(r"(\d+) packets dropped by kernel", lab.log(host, name).read_text())
        if dropped is None or int(dropped[1]):
            count = dropped[1] if dropped else "an unknown number of"
            raise LabError(f"tcpdump on {host} missed {count} packets: this machine is too busy")


class _Interface(msgspec.Struct):
    ifindex: int
    ifname: str


async def _flush(lab: Lab, one: Watch) -> None:
    """Return when all that has passed by now is in the file: packets are written in order."""
    marker = os.urandom(16)

    def mark() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(marker, _DISCARD)

    await trio.to_thread.run_sync(netns.inside, lab.namespace(one.host), mark)
    with trio.move_on_after(_PATIENCE):
        while marker not in _end_of(one.file):  # noqa: ASYNC110  (tcpdump tells of no event)
            await trio.sleep(0.01)
        return
    raise LabError(f"tcpdump on {one.host} did not write its file within {_PATIENCE:g} s")


def _end_of(file: Path, size: int = 1 << 20) -> bytes:
    with file.open("rb") as opened:
        opened.seek(max(0, os.fstat(opened.fileno()).st_size - size))
        return opened.read()
