"""Cutting TCP packets at a sequence number, held against packets built from scratch."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2m.datapath import split
from m2m.protocol.flow import Flow, Proto
from tests.support import packets
from tests.support.packets import ACK, FIN

FLOW = Flow.of(Proto.TCP, "10.1.2.3", 40000, "10.4.5.6", 80)
WHOLE, COPY = 1, 2
IN, OUT = 0, 1
NEEDS_SUM, SUM_IS_RIGHT = 1, 2
TCPV4 = 1
OPTIONS = bytes.fromhex("0101080a 00000001 00000002")


def frame(
    payload: bytes, *, seq: int = 1000, flags: int = ACK, kind: int = WHOLE, hook: int = IN,
    segment: int = 0, summed: int = 0, options: bytes = b"", ack: int = 77,
) -> bytes:  # fmt: skip
    """As the device where packets wait hands it over."""
    packet = packets.tcp(
        FLOW, payload=payload, seq=seq, ack=ack, flags=flags, options=options, ident=500
    )
    if summed & NEEDS_SUM:
        packet = with_pseudo_sum(packet)
    ethernet = bytes(6) + bytes((0x02, 0x4D, 0x32, kind, 0, hook)) + b"\x08\x00"
    headers = len(ethernet) + 40 + len(options)
    vnet = struct.pack(
        "=BBHHHH", summed, TCPV4 if segment else 0, headers, segment, 34, 16
    )  # fmt: skip
    return vnet + ethernet + packet


def with_pseudo_sum(packet: bytes) -> bytes:
    """The checksum field as it is when a device is to complete it."""
    pseudo = packet[12:20] + struct.pack("!BBH", 0, Proto.TCP, len(packet) - 20)
    check = ~packets.checksum(pseudo) & 0xFFFF
    return packet[:36] + struct.pack("!H", check) + packet[38:]


def parsed(data: bytes) -> split.Frame:
    found = split.parse(data)
    assert found is not None
    return found


def packet_of(part: split.Frame) -> bytes:
    return part.ip + part.tcp + part.payload


def completed(part: split.Frame) -> bytes:
    """The packet as a device would send it."""
    packet = packet_of(part)
    if part.vnet[0] & NEEDS_SUM:
        assert packet == with_pseudo_sum(packet)
        packet = packet[:36] + b"\0\0" + packet[38:]
        pseudo = packet[12:20] + struct.pack("!BBH", 0, Proto.TCP, len(packet) - 20)
        packet = (
            packet[:36] + struct.pack("!H", packets.checksum(pseudo + packet[20:])) + packet[38:]
        )
    return packet


def numbers(part: split.Frame) -> tuple[int, int, int]:
    seq, ack = struct.unpack_from("!II", part.tcp, 4)
    return seq, ack, part.tcp[13]


def test_a_frame_is_taken_apart_and_put_together() -> None:
    data = frame(b"payload", hook=OUT, options=OPTIONS)
    found = parsed(data)
    assert (found.payload, found.seq, found.is_copy) == (b"payload", 1000, False)
    assert found.key == FLOW.pack()[:37] + bytes((OUT, 0, 0))
    # By its source address it meets its hook again.
    assert found.pack() == data[:16] + bytes.fromhex("024d32000001") + data[22:]
    assert parsed(frame(b"", kind=COPY)).is_copy


def test_padding_of_a_short_frame_is_no_payload() -> None:
    assert parsed(frame(b"ab") + bytes(6)).payload == b"ab"


def test_what_is_no_whole_tcp_packet_is_none() -> None:
    data = frame(b"payload")
    for size in range(len(data)):
        assert split.parse(data[:size]) is None
    assert split.parse(data[:24] + b"\x65" + data[25:]) is None  # another version
    assert split.parse(data[:33] + b"\x11" + data[34:]) is None  # UDP
    assert split.parse(data[:56] + b"\x40" + data[57:]) is None  # a header shorter than any
    assert split.parse(data[:56] + b"\xf0" + data[57:]) is None  # longer than the packet


@given(
    payload=st.binary(min_size=1, max_size=300),
    cut=st.integers(1, 300),
    seq=st.one_of(st.integers(0, 0xFFFFFFFF), st.integers(0xFFFFFF00, 0xFFFFFFFF)),
    segment=st.sampled_from([0, 1, 7, 100, 1000]),
    summed=st.sampled_from([0, NEEDS_SUM, SUM_IS_RIGHT]),
    options=st.sampled_from([b"", OPTIONS]),
    fin=st.booleans(),
)
def test_i1_parts_are_what_was_cut(
    payload: bytes, cut: int, seq: int, segment: int, summed: int, options: bytes, fin: bool
) -> None:
    cut = min(cut, len(payload))
    number = (seq + cut) & 0xFFFFFFFF
    flags = ACK | (FIN if fin else 0)
    whole = parsed(
        frame(payload, seq=seq, flags=flags, segment=segment, summed=summed, options=options)
    )
    assert split.lies_across(whole, number)
    parts = split.split(whole, number)
    assert parts is not None
    first, second = parts
    assert (first.payload, second.payload) == (payload[:cut], payload[cut:])
    assert numbers(first) == (seq, 77, ACK)
    assert numbers(second) == (number, 77, flags)
    for part in parts:
        assert packets.has_right_checksums(completed(part))
        assert part.tcp[20:] == options
        kind, size = struct.unpack_from("=xBxxH", part.vnet)
        assert (kind, size) == ((TCPV4, segment) if len(part.payload) > segment > 0 else (0, 0))
        assert parsed(part.pack()) == part._replace(ethernet=parsed(part.pack()).ethernet)
    # A burst numbers its segments one after the other.
    (before,), (after,) = (struct.unpack_from("!H", part.ip, 4) for part in parts)
    assert after - before == (-(-cut // segment) if segment else 1)


@pytest.mark.parametrize("number", [1000, 999, 1008, 1009, 1000 + (1 << 31)])
def test_what_does_not_lie_across(number: int) -> None:
    assert not split.lies_across(parsed(frame(b"payload")), number)


def test_the_end_of_the_payload_parts_it_from_its_fin() -> None:
    whole = parsed(frame(b"payload", flags=ACK | FIN))
    assert split.lies_across(whole, 1007)
    parts = split.split(whole, 1007)
    assert parts is not None
    assert [part.payload for part in parts] == [b"payload", b""]
    assert [numbers(part) for part in parts] == [(1000, 77, ACK), (1007, 77, ACK | FIN)]


@pytest.mark.parametrize("summed", [0, NEEDS_SUM, SUM_IS_RIGHT])
def test_an_acknowledgement_by_itself(summed: int) -> None:
    whole = parsed(
        frame(b"payload", flags=ACK | FIN | 0x48, summed=summed, segment=3, options=OPTIONS)
    )
    found = split.acknowledgement(whole)
    assert found is not None
    assert (found.payload, numbers(found)) == (b"", (1000, 77, ACK | 0x40))  # ECE stays, PSH not
    assert found.tcp[20:] == OPTIONS
    assert packets.has_right_checksums(completed(found))


def test_damage_stays_visible() -> None:
    """What arrived with a wrong checksum must not leave with a right one."""
    data = frame(b"payload")
    damaged = parsed(data[:-1] + b"!")
    assert split.split(damaged, 1003) is None
    assert split.acknowledgement(damaged) is None
