"""Captured frames get their supersession's headers: link types, protocols, short captures."""

from __future__ import annotations

import mmap
import struct

import pytest

from m2m.protocol.flow import Flow
from nf_adapters.pcap._mapping import MIN_CELLS, Restorer, Table, lay_out, size_of
from tests.support import packets

ETHERNET, RAW, SLL, IPV4, SLL2 = 1, 12, 113, 228, 276
AS_IT_WAS, RESTORED, AGAIN = 0, 1, 2

WIRE = Flow.of(6, "10.0.2.1", 61001, "10.0.3.1", 62001)
NAME = Flow.of(6, "10.0.1.1", 40000, "10.0.9.1", 80)
UDP_WIRE, UDP_NAME = WIRE._replace(proto=17), NAME._replace(proto=17)
LEFT = WIRE._replace(sport=61002)
ROUTER = Flow.of(1, "10.0.3.254", 0, "10.0.2.1", 0)

LINKS = {
    "ethernet": (ETHERNET, bytes(12) + b"\x08\x00"),
    "vlan": (ETHERNET, bytes(12) + b"\x81\x00\x00\x05\x08\x00"),
    "qinq": (ETHERNET, bytes(12) + b"\x88\xa8\x00\x05\x81\x00\x00\x06\x08\x00"),
    "raw": (RAW, b""),
    "ipv4": (IPV4, b""),
    "sll": (SLL, bytes(14) + b"\x08\x00"),
    "sll2": (SLL2, b"\x08\x00" + bytes(18)),
    "sll vlan": (SLL, bytes(14) + b"\x81\x00\x00\x05\x08\x00"),
    "sll2 vlan": (SLL2, b"\x81\x00" + bytes(18) + b"\x00\x05\x08\x00"),
}


@pytest.fixture
def restorer() -> Restorer:
    memory = mmap.mmap(-1, size_of(MIN_CELLS))
    lay_out(memory, MIN_CELLS, 0, 0)
    table = Table(memory)
    table.publish(WIRE, NAME, False, 0)
    table.publish(UDP_WIRE, UDP_NAME, False, 0)
    table.publish(LEFT, NAME, True, 0)
    return Restorer(table)


def bodies(flow: Flow) -> dict[str, bytes]:
    if flow.proto == 17:
        return {
            "udp": packets.udp(flow, payload=b"query"),
            "udp without checksum": packets.udp(flow, payload=b"q", with_checksum=False),
        }
    return {
        "syn": packets.tcp(flow, flags=packets.SYN, options=b"\2\4\5\xb4"),
        "data": packets.tcp(flow, payload=b"odd", seq=7, ack=9, ttl=3, ident=77),
    }


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize(("wire", "name"), [(WIRE, NAME), (UDP_WIRE, UDP_NAME)])
def test_every_link_type(restorer: Restorer, link: str, wire: Flow, name: Flow) -> None:
    number, header = LINKS[link]
    for which, packet in bodies(wire).items():
        expected = bodies(name)[which]
        assert restorer.restore(number, header + packet) == (header + expected, RESTORED), which
        assert restorer.restore(number, header + packet + b"padding")[0] == (
            header + expected + b"padding"
        )


def test_what_is_not_in_the_mapping_is_not_touched(restorer: Restorer) -> None:
    for packet in (
        packets.tcp(WIRE.reverse()),
        packets.udp(WIRE._replace(proto=17, sport=80)),
        packets.ipv4(WIRE._replace(proto=47), b"x" * 30),
        b"\x60" + bytes(60),
    ):
        assert restorer.restore(RAW, packet) == (packet, AS_IT_WAS)
    arp = bytes(12) + b"\x08\x06" + packets.tcp(WIRE)
    assert restorer.restore(ETHERNET, arp) == (arp, AS_IT_WAS)
    assert restorer.restore(105, arp) == (arp, AS_IT_WAS), "802.11"


def test_a_packet_sent_on_is_told_from_its_first_appearance(restorer: Restorer) -> None:
    assert restorer.restore(RAW, packets.tcp(LEFT)) == (packets.tcp(NAME), AGAIN)


@pytest.mark.parametrize("link", LINKS)
def test_short_captures(restorer: Restorer, link: str) -> None:
    """As much of the packet as was captured is what that much of the restored one is; but of half
    a checksum nobody can tell what it becomes."""
    number, header = LINKS[link]
    for wire, name, check in ((WIRE, NAME, 16), (UDP_WIRE, UDP_NAME, 6)):
        for which, packet in bodies(wire).items():
            whole = header + bodies(name)[which]
            for captured in range(len(whole)):
                cut = (header + packet)[:captured]
                expected = (whole[:captured], RESTORED)
                if captured < len(header) + 24:  # its ports were not captured
                    expected = (cut, AS_IT_WAS)
                if captured == len(header) + 20 + check + 1:
                    expected = (whole[: captured - 1] + cut[-1:], RESTORED)
                assert restorer.restore(number, cut) == expected, (which, captured)


def test_wrong_checksums_stay_wrong(restorer: Restorer) -> None:
    packet = bytearray(packets.tcp(WIRE, payload=b"payload"))
    packet[-1] ^= 1
    restored, _ = restorer.restore(RAW, bytes(packet))
    assert not packets.has_right_checksums(restored)
    fixed = restored[:-1] + bytes([restored[-1] ^ 1])
    assert fixed == packets.tcp(NAME, payload=b"payload")


@pytest.mark.parametrize("proto", [6, 17])
def test_unfinished_checksums_stay_unfinished(restorer: Restorer, proto: int) -> None:
    """A device would have finished them: they hold the sum of the pseudo header alone."""

    def unfinished(flow: Flow) -> bytes:
        made = packets.tcp(flow, payload=b"xy") if proto == 6 else packets.udp(flow, payload=b"xy")
        at = 36 if proto == 6 else 26
        length = len(made) - 20
        pseudo = struct.pack("!4s4sBBH", flow.src[12:], flow.dst[12:], 0, proto, length)
        return made[:at] + struct.pack("!H", 0xFFFF - packets.checksum(pseudo)) + made[at + 2 :]

    wire, name = WIRE._replace(proto=proto), NAME._replace(proto=proto)
    assert restorer.restore(RAW, unfinished(wire), partial=True) == (unfinished(name), RESTORED)


def fragments(flow: Flow, ident: int) -> list[bytes]:
    whole = packets.udp(flow, payload=bytes(range(64)))[20:]
    return [
        packets.ipv4(flow, whole[:32], ident=ident, fragment=0x2000),
        packets.ipv4(flow, whole[32:64], ident=ident, fragment=0x2004),
        packets.ipv4(flow, whole[64:], ident=ident, fragment=8),
    ]


def test_fragments_follow_their_first(restorer: Restorer) -> None:
    for part, expected in zip(fragments(UDP_WIRE, 5), fragments(UDP_NAME, 5), strict=True):
        assert restorer.restore(RAW, part, 1000) == (expected, RESTORED)
    assert restorer.fragments == 0


def test_fragments_without_a_first_stay_and_are_counted(restorer: Restorer) -> None:
    first, middle, last = fragments(UDP_WIRE, 6)
    assert restorer.restore(RAW, last, 1000) == (last, AS_IT_WAS)
    assert restorer.fragments == 1
    restorer.restore(RAW, first, 1000)
    assert restorer.restore(RAW, middle, 31_000)[1] == RESTORED
    assert restorer.restore(RAW, last, 31_001) == (last, AS_IT_WAS), "half a minute later"


def test_another_datagram_with_the_same_id_is_not_taken_for_it(restorer: Restorer) -> None:
    restorer.restore(RAW, fragments(UDP_WIRE, 7)[0])
    stranger = fragments(UDP_WIRE._replace(sport=53), 7)
    for part in stranger:
        assert restorer.restore(RAW, part) == (part, AS_IT_WAS)


def icmp(outer: Flow, quoted: bytes, kind: int = 3) -> bytes:
    body = struct.pack("!BBHI", kind, 1, 0, 0) + quoted
    return packets.ipv4(outer, body[:2] + struct.pack("!H", packets.checksum(body)) + body[4:])


@pytest.mark.parametrize("quoted", [28, 40, 48])
def test_icmp_errors_quote_the_supersession(restorer: Restorer, quoted: int) -> None:
    """The router's own address stays, the addressee is the quoted packet's sender."""
    error = icmp(ROUTER, packets.tcp(WIRE, payload=b"12345678")[:quoted])
    expected = icmp(ROUTER._replace(dst=NAME.src), packets.tcp(NAME, payload=b"12345678")[:quoted])
    assert restorer.restore(RAW, error) == (expected, RESTORED)


def test_icmp_errors_of_an_end_itself(restorer: Restorer) -> None:
    """Port unreachable: the error comes from the quoted packet's destination."""
    ends = Flow(1, UDP_WIRE.dst, 0, UDP_WIRE.src, 0)
    expected = Flow(1, UDP_NAME.dst, 0, UDP_NAME.src, 0)
    assert restorer.restore(RAW, icmp(ends, packets.udp(UDP_WIRE, payload=b"abcd"))) == (
        icmp(expected, packets.udp(UDP_NAME, payload=b"abcd")),
        RESTORED,
    )


def test_other_icmp_is_left_alone(restorer: Restorer) -> None:
    quoted = packets.tcp(WIRE)[:28]
    for packet in (icmp(ROUTER, quoted, 8), icmp(ROUTER, quoted[:23]), icmp(ROUTER, b"")):
        assert restorer.restore(RAW, packet) == (packet, AS_IT_WAS)
