"""Packets that pass a host, as a cooked capture of all its interfaces has them."""

from __future__ import annotations

import struct
from pathlib import Path

from m2m.lab.sightings import Seen, read
from m2m.lab.traffic.numbered import Number, burst, stamp
from m2m.protocol.flow import Proto

FIN, SYN, ACK = 0x01, 0x02, 0x10
LINKS = {3: "b", 4: "c"}
LEG = bytes((10, 0, 1, 1, 10, 0, 1, 2)) + struct.pack("!HH", 1000, 80)


def cooked(ip: bytes, interface: int = 3, way: int = 4, protocol: int = 0x0800) -> bytes:
    return struct.pack("!HHIHBB8s", protocol, 0, interface, 1, way, 6, bytes(8)) + ip


def ipv4(transport: bytes, payload: int, proto: int, ident: int = 7) -> bytes:
    length = 20 + len(transport) + payload
    header = struct.pack("!BBHHHBBH", 0x45, 0, length, ident, 0x4000, 64, proto, 0)
    return header + LEG[:8] + transport


def tcp(seq: int, payload: int, flags: int = ACK, ack: int = 99) -> bytes:
    header = struct.pack("!HHIIBBHHH", 1000, 80, seq, ack, 0x80, flags, 0, 0, 0) + bytes(12)
    return ipv4(header, payload, Proto.TCP)


def udp(data: bytes, more: int = 0) -> bytes:
    header = struct.pack("!HHHH", 1000, 80, 0, 0)
    return ipv4(header + data, more, Proto.UDP)


def numbered(number: int, size: int = 100) -> bytes:
    made = burst(size, 1)
    stamp(made, 0, Number(size, 5, number))
    return bytes(made)


def seen(tmp_path: Path, *packets: bytes) -> list[Seen]:
    file = tmp_path / "x.pcap"
    header = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 128, 276)
    records = (struct.pack("<IIII", 1, 5, len(p[:128]), len(p)) + p[:128] for p in packets)
    file.write_bytes(header + b"".join(records))
    return list(read(file, LINKS))


def test_a_burst_of_tcp(tmp_path: Path) -> None:
    (one,) = seen(tmp_path, cooked(tcp(1000, 64000)))
    assert one == Seen(
        time=1_000_000_005, link="b", outgoing=True, proto=Proto.TCP, leg=LEG, ident=7,
        first=1000, units=64000, ack=99, flow=None, syn=False,
    )  # fmt: skip


def test_links_and_directions(tmp_path: Path) -> None:
    packets = [cooked(tcp(0, 1), interface=i, way=w) for i, w in ((3, 4), (4, 0), (4, 4))]
    found = seen(tmp_path, *packets)
    assert [(s.link, s.outgoing) for s in found] == [("b", True), ("c", False), ("c", True)]


def test_syn_and_fin_take_a_number_each(tmp_path: Path) -> None:
    syn, fin, ack = seen(
        tmp_path, cooked(tcp(0, 0, SYN)), cooked(tcp(0, 10, FIN | ACK)), cooked(tcp(11, 0))
    )
    assert (syn.syn, syn.ack, syn.units) == (True, None, 1)
    assert (fin.syn, fin.ack, fin.units) == (False, 99, 11)
    assert ack.units == 0


def test_a_burst_of_datagrams_counts_as_many(tmp_path: Path) -> None:
    whole = numbered(40, size=100)
    one, many, rest = seen(
        tmp_path,
        cooked(udp(whole)),
        cooked(udp(whole, more=900)),
        cooked(udp(whole, more=50)),
    )
    assert (one.first, one.units, one.flow, one.ack) == (40, 1, 5, None)
    assert (many.first, many.units) == (40, 10)
    assert rest.units == 2


def test_what_is_something_else_is_left_out(tmp_path: Path) -> None:
    assert not seen(
        tmp_path,
        cooked(udp(b"no number, but long enough for one")),
        cooked(tcp(0, 1), interface=9),
        cooked(tcp(0, 1), protocol=0x0806),
        cooked(ipv4(bytes(8), 0, 1)),
        cooked(tcp(0, 0)[:30]),
        b"",
    )
