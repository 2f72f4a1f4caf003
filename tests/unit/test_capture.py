"""pcap files as tcpdump writes them, and the connections in them."""

from __future__ import annotations

import struct
from pathlib import Path

from m2m.lab.capture import Packet, connections, read, records
from m2m.protocol.flow import Flow, Proto

SYN, ACK = 0x02, 0x10
FLOW = Flow.of(Proto.TCP, "10.0.1.2", 40000, "10.0.2.2", 80)


def frame(flow: Flow, payload: int, flags: int = ACK, options: int = 12) -> bytes:
    """An Ethernet frame with headers only; *payload* is what they announce."""
    if flow.proto == Proto.TCP:
        offset = (20 + options) // 4 << 4
        transport = struct.pack("!HHIIBBHHH", flow.sport, flow.dport, 0, 0, offset, flags, 0, 0, 0)
        transport += bytes(options)
    else:
        transport = struct.pack("!HHHH", flow.sport, flow.dport, 8 + payload, 0)
    length = 20 + len(transport) + payload
    ip = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0, 64, flow.proto, 0)
    return bytes(12) + b"\x08\x00" + ip + flow.src[12:] + flow.dst[12:] + transport


def write(path: Path, frames: list[bytes], order: str = "<") -> Path:
    header = struct.pack(order + "IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 128, 1)
    records = (struct.pack(order + "IIII", 0, 0, len(f), len(f) + 999) + f for f in frames)
    path.write_bytes(header + b"".join(records))
    return path


def test_tcp_and_udp_packets(tmp_path: Path) -> None:
    udp = Flow.of(Proto.UDP, "10.0.1.2", 5262, "10.0.2.2", 5262)
    file = write(tmp_path / "x", [frame(FLOW, 0, SYN, 20), frame(FLOW, 64000), frame(udp, 100)])
    assert list(read(file)) == [
        Packet(FLOW, 60, 0, opens=True),
        Packet(FLOW, 64052, 64000, opens=False),
        Packet(udp, 128, 100, opens=False),
    ]


def test_either_byte_order(tmp_path: Path) -> None:
    (packet,) = read(write(tmp_path / "x", [frame(FLOW, 7)], order=">"))
    assert packet.payload == 7


def test_times_in_micro_and_nanoseconds(tmp_path: Path) -> None:
    record = struct.pack("<IIII", 7, 5, 3, 3) + b"abc"
    for magic, nanoseconds in ((0xA1B2C3D4, 5000), (0xA1B23C4D, 5)):
        file = tmp_path / f"{magic:x}"
        file.write_bytes(struct.pack("<IHHiIII", magic, 2, 4, 0, 0, 128, 1) + record)
        assert list(records(file)) == [(7 * 10**9 + nanoseconds, b"abc")]


def test_a_record_still_being_written_is_left_out(tmp_path: Path) -> None:
    file = write(tmp_path / "x", [frame(FLOW, 1), frame(FLOW, 2)])
    whole = file.read_bytes()
    for missing in range(1, len(frame(FLOW, 2)) + 16):
        file.write_bytes(whole[:-missing])
        assert [packet.payload for packet in read(file)] == [1]
    file.write_bytes(b"")
    assert list(read(file)) == []


def test_what_is_neither_tcp_nor_udp_over_ipv4_is_left_out(tmp_path: Path) -> None:
    arp = bytes(12) + b"\x08\x06" + bytes(28)
    ipv6 = bytes(12) + b"\x86\xdd" + bytes(60)
    icmp = frame(FLOW._replace(proto=1), 8)
    cut = frame(FLOW, 0)[:40]
    assert list(read(write(tmp_path / "x", [arp, ipv6, icmp, cut, b""]))) == []


def test_the_ends_of_a_packet_are_its_addresses() -> None:
    assert Packet(FLOW, 40, 0, opens=False).ends == {"10.0.1.2", "10.0.2.2"}


def test_connections_are_told_by_their_syn_and_counted_both_ways() -> None:
    other = FLOW._replace(sport=40001)
    packets = [
        Packet(other, 52, 0, opens=False),  # opened before the capture began
        Packet(FLOW, 60, 0, opens=True),
        Packet(FLOW.reverse(), 60, 0, opens=False, seq=2**32 - 2),
        Packet(FLOW, 152, 100, opens=False, seq=1),
        Packet(FLOW.reverse(), 1052, 1000, opens=False, seq=2**32 - 1),
        Packet(FLOW.reverse(), 1052, 1000, opens=False, seq=999),
        Packet(FLOW.reverse(), 1052, 1000, opens=False, seq=2**32 - 1),  # sent again
    ]
    (connection,) = connections(packets)
    assert connection.flow == FLOW
    assert connection.to_server.sizes == {60: 1, 152: 1}
    assert connection.to_client.sizes == {60: 1, 1052: 3}
    assert (connection.to_server.payload, connection.to_client.payload) == (100, 2000)
    assert (connection.to_client.packets, connection.to_client.bytes) == (4, 3216)


def test_a_repeated_syn_opens_no_second_connection() -> None:
    syn = Packet(FLOW, 60, 0, opens=True)
    (connection,) = connections([syn, syn])
    assert connection.to_server.packets == 2
