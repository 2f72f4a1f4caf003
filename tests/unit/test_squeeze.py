"""The format of the pair that squeezes payloads: what is restored is what was squeezed."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from m2m.protocol.flow import Flow
from nf_adapters.skb.squeeze import MARK, Garbled, is_squeezed, restore, squeeze
from tests.support import packets
from tests.support.packets import ACK, FIN, RST, SYN

TCP = Flow.of(6, "10.9.1.2", 40000, "10.9.4.2", 7000)
UDP = Flow.of(17, "10.9.1.2", 40000, "10.9.4.2", 7000)
TEXT = b"GET / HTTP/1.1\r\nHost: " + b"x" * 200

payloads = st.one_of(
    st.binary(max_size=1500),
    st.builds(lambda piece, times: piece * times, st.binary(min_size=1, max_size=40),
              st.integers(1, 300)),
)  # fmt: skip
tosses = st.integers(0, 255).filter(lambda tos: tos >> 2 != MARK)
segments = st.builds(
    lambda payload, seq, options: packets.tcp(TCP, payload=payload, seq=seq, options=options),
    payloads, st.integers(0, 2**32 - 1), st.binary(max_size=40),
)  # fmt: skip
datagrams = st.builds(
    lambda payload, summed: packets.udp(UDP, payload=payload, with_checksum=summed),
    payloads, st.booleans(),
)  # fmt: skip


def with_tos(packet: bytes, tos: int) -> bytes:
    at = (packet[0] & 15) * 4
    header = packet[:1] + bytes([tos]) + packet[2:10] + b"\0\0" + packet[12:at]
    return header[:10] + struct.pack("!H", packets.checksum(header)) + header[12:] + packet[at:]


@given(st.one_of(segments, datagrams), tosses)
@example(packets.udp(UDP, payload=bytes(30)), 0)
@example(packets.tcp(TCP, payload=b"a" * (0xFFFF - 40)), 0)  # as long as a packet can be
def test_a_packet_comes_back_as_it_was(packet: bytes, tos: int) -> None:
    packet = with_tos(packet, tos)
    squeezed = squeeze(packet)
    assume(squeezed is not None)
    assert squeezed is not None
    assert len(squeezed) < len(packet)
    assert is_squeezed(squeezed)
    assert squeezed[1] & 3 == packet[1] & 3, "congestion is told on the stretch too"
    assert packets.has_right_checksums(squeezed)
    assert packets.flow_of(squeezed) == packets.flow_of(packet)
    assert restore(squeezed) == packet


@given(st.one_of(segments, datagrams), st.binary(min_size=2, max_size=2))
def test_a_wrong_checksum_stays_wrong(packet: bytes, check: bytes) -> None:
    at = 20 + (16 if packet[9] == 6 else 6)
    packet = packet[:at] + check + packet[at + 2 :]
    assume(not packets.has_right_checksums(packet))
    squeezed = squeeze(packet)
    assume(squeezed is not None)
    assert squeezed is not None
    assert not packets.has_right_checksums(squeezed)
    assert not packets.has_right_checksums(restore(squeezed))


def test_congestion_that_was_marked_on_the_stretch_stays_marked() -> None:
    squeezed = squeeze(with_tos(packets.tcp(TCP, payload=TEXT), 0x0A))
    assert squeezed is not None
    assert restore(with_tos(squeezed, squeezed[1] | 3))[1] == 0x0B


def _later(packet: bytes) -> bytes:
    return packet[:6] + b"\x20\x00" + packet[8:]


@pytest.mark.parametrize(
    "packet",
    [
        packets.tcp(TCP),
        packets.tcp(TCP, payload=bytes(range(200))),
        packets.udp(UDP, payload=b"a" * 12),
        *(packets.tcp(TCP, payload=TEXT, flags=ACK | flag) for flag in (SYN, FIN, RST)),
        _later(packets.udp(UDP, payload=TEXT)),
        packets.udp(UDP, payload=TEXT)[:100],  # as much as was copied of it
        packets.ipv4(Flow.of(17, "10.9.1.2", 0, "10.9.4.2", 0)._replace(proto=1), bytes(100)),
        with_tos(packets.udp(UDP, payload=TEXT), MARK << 2),
        b"",
        b"\x60" + bytes(100),
    ],
)
def test_what_goes_as_it_is(packet: bytes) -> None:
    assert squeeze(packet) is None


@given(st.one_of(st.binary(max_size=100), segments, datagrams), st.binary(max_size=4))
def test_garbage_never_does_more_than_stay(packet: bytes, tail: bytes) -> None:
    made = squeeze(packet[: len(packet) // 2] + tail)
    assert made is None or len(made) < len(packet)


def test_an_acknowledgement_made_from_a_squeezed_segment_loses_the_mark() -> None:
    """M2M sends it ahead where the segment itself has to wait."""
    plain = packets.tcp(TCP, seq=7, ack=9, options=bytes(12))
    assert restore(with_tos(plain, MARK << 2 | 2)) == with_tos(plain, 2)


@given(
    st.binary(max_size=200),
    st.sampled_from([packets.tcp, packets.udp]),
)
def test_garbage_with_the_mark_is_refused(payload: bytes, make: Callable[..., bytes]) -> None:
    flow = TCP if make is packets.tcp else UDP
    assume(payload or flow is UDP)
    with pytest.raises(Garbled):
        restore(with_tos(make(flow, payload=payload), MARK << 2))
    with pytest.raises(Garbled):
        restore(payload)


@given(st.data())
def test_no_part_of_a_squeezed_packet_is_taken_for_a_whole(data: st.DataObject) -> None:
    """As where a datapath cuts a segment in two, or one is put together with the next."""
    squeezed = squeeze(packets.tcp(TCP, payload=TEXT * 3, seq=1000))
    assert squeezed is not None
    payload = packets.payload_of(squeezed)
    cut = data.draw(st.integers(1, len(payload) - 1))
    for part in (payload[:cut], payload[cut:], payload + payload[:cut], payload + payload):
        with pytest.raises(Garbled):
            restore(with_tos(packets.tcp(TCP, payload=part), MARK << 2))


@given(st.data())
def test_a_flipped_bit_is_seen(data: st.DataObject) -> None:
    """By the pair, or by the receiver's checksum."""
    squeezed = squeeze(packets.tcp(TCP, payload=TEXT * 3))
    assert squeezed is not None
    bit = data.draw(st.integers(40 * 8, len(squeezed) * 8 - 1))
    damaged = bytearray(squeezed)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        restored = restore(bytes(damaged))
    except Garbled:
        return
    assert not packets.has_right_checksums(restored)


def test_a_payload_that_would_grow_beyond_any_packet_is_refused() -> None:
    squeezed = squeeze(packets.tcp(TCP, payload=bytes(0xFFFF - 40)))
    assert squeezed is not None
    longer = with_tos(
        packets.tcp(TCP, payload=packets.payload_of(squeezed), options=bytes(4)), MARK << 2
    )
    with pytest.raises(Garbled, match="too long"):
        restore(longer)
