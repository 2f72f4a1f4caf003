"""Rewriting packets: the core's incremental arithmetic against packets built anew."""

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m2m.protocol.flow import Flow, Proto
from m2m.protocol.translation import Action, Hook
from tests.support import packets
from tests.support.core import IPV4, translation
from tests.support.vectors import Vector, vectors

address = st.binary(min_size=4, max_size=4).map(lambda raw: IPV4 + raw) | st.sampled_from(
    [IPV4 + b"\0\0\0\0", IPV4 + b"\xff\xff\xff\xff"]
)
port = st.integers(0, 65535) | st.sampled_from([0, 65535])
payload = st.binary(max_size=65)


@pytest.mark.parametrize("vector", vectors(), ids=lambda vector: vector.name)
def test_packets_are_translated_to_the_octet(vector: Vector) -> None:
    """Those of which every implementation makes the same."""
    hook, entry = vector.entry.hook, vector.entry
    made = translation(
        hook, entry.match, entry.rewrite, action=entry.action, mss=entry.mss, ifindex=1
    )
    assert made.rewrite(vector.before) == vector.after


def flows(proto: int) -> st.SearchStrategy[Flow]:
    return st.builds(Flow, st.just(proto), address, port, address, port)


TCP_OLD = Flow.of(6, "10.0.1.1", 40000, "10.0.9.1", 80)
TCP_NEW = Flow.of(6, "10.0.1.1", 61001, "10.0.2.1", 62001)


@given(flows(Proto.TCP), flows(Proto.TCP), payload, st.integers(0, 2**32 - 1))
def test_tcp(old: Flow, new: Flow, data: bytes, seq: int) -> None:
    before = packets.tcp(old, payload=data, seq=seq, options=b"\1\1\1\1")
    after = translation(Hook.OUT, old, new).rewrite(before)
    assert after == packets.tcp(new, payload=data, seq=seq, options=b"\1\1\1\1")


@given(flows(Proto.UDP), flows(Proto.UDP), payload)
def test_udp(old: Flow, new: Flow, data: bytes) -> None:
    before = packets.udp(old, payload=data)
    assert translation(Hook.OUT, old, new).rewrite(before) == packets.udp(new, payload=data)


@given(flows(Proto.UDP), flows(Proto.UDP), payload)
def test_udp_without_checksum_stays_without(old: Flow, new: Flow, data: bytes) -> None:
    before = packets.udp(old, payload=data, with_checksum=False)
    after = translation(Hook.OUT, old, new).rewrite(before)
    assert after == packets.udp(new, payload=data, with_checksum=False)


@given(flows(Proto.UDP), flows(Proto.UDP), st.booleans())
def test_udp_sum_of_zero_is_sent_as_ones(old: Flow, new: Flow, before_too: bool) -> None:
    """RFC 768: a checksum that comes out zero is sent as 0xffff; zero would say "none"."""
    target = old if before_too else new
    bare = packets.udp(target, payload=b"\0\0")
    # The payload takes the place of the checksum: the sum of everything is then zero.
    filler = packets.checksum(_summed(bare))
    data = struct.pack("!H", filler)
    assert packets.udp(target, payload=data)[26:28] == b"\xff\xff"
    after = translation(Hook.OUT, old, new).rewrite(packets.udp(old, payload=data))
    assert after == packets.udp(new, payload=data)


def _summed(datagram: bytes) -> bytes:
    """What the checksum of a UDP packet covers, its own field zero."""
    udp = datagram[20:26] + b"\0\0" + datagram[28:]
    return datagram[12:20] + struct.pack("!BBH", 0, 17, len(udp)) + udp


@pytest.mark.parametrize("ttl", [2, 64, 255])
@pytest.mark.parametrize("proto", Proto)
def test_passing_through_costs_a_hop(proto: Proto, ttl: int) -> None:
    build = packets.tcp if proto is Proto.TCP else packets.udp
    old, new = TCP_OLD._replace(proto=proto), TCP_NEW._replace(proto=proto)
    transit = translation(Hook.IN, old, new, action=Action.SEND, ifindex=1)
    assert transit.rewrite(build(old, ttl=ttl)) == build(new, ttl=ttl - 1)
    leaving = translation(Hook.OUT, old, new, action=Action.SEND, ifindex=1)
    assert leaving.rewrite(build(old, ttl=ttl)) == build(new, ttl=ttl)


@given(flows(Proto.TCP), flows(Proto.TCP), st.integers(1, 255), st.integers(0, 65535))
def test_ip_checksum_through_a_hop(old: Flow, new: Flow, ttl: int, ident: int) -> None:
    transit = translation(Hook.IN, old, new, action=Action.SEND, ifindex=1)
    after = transit.rewrite(packets.tcp(old, ttl=ttl, ident=ident))
    assert after == packets.tcp(new, ttl=ttl - 1, ident=ident)


def mss(value: int) -> bytes:
    return struct.pack("!BBH", 2, 4, value)


@given(
    st.integers(0, 65535), st.integers(1, 65535), st.integers(0, 3),
    st.sampled_from([b"", b"\x03\x03\x07", b"\x04\x02", b"\x08\x0a" + b"\x55" * 8]),
)  # fmt: skip
@example(1460, 1400, 1, b"")
def test_mss_is_clamped_wherever_it_stands(
    offered: int, limit: int, nops: int, other: bytes
) -> None:
    def syn(flow: Flow, value: int) -> bytes:
        options = other + b"\1" * nops + mss(value)
        return packets.tcp(flow, flags=packets.SYN, options=options)

    clamp = translation(Hook.OUT, TCP_OLD, TCP_NEW, mss=limit)
    assert clamp.rewrite(syn(TCP_OLD, offered)) == syn(TCP_NEW, min(offered, limit))


def test_mss_is_left_alone_without_a_limit_and_outside_of_syns() -> None:
    option = mss(9000)
    plain = translation(Hook.OUT, TCP_OLD, TCP_NEW)
    syn = packets.tcp(TCP_OLD, flags=packets.SYN, options=option)
    assert plain.rewrite(syn) == packets.tcp(TCP_NEW, flags=packets.SYN, options=option)
    clamp = translation(Hook.OUT, TCP_OLD, TCP_NEW, mss=1000)
    data = packets.tcp(TCP_OLD, options=option)
    assert clamp.rewrite(data) == packets.tcp(TCP_NEW, options=option)


@pytest.mark.parametrize(
    "options", [b"\x02", b"\x02\x00\x05\xb4", b"\x02\x09\x05\xb4", b"\0\2\4\xff"]
)
def test_broken_options_are_left_alone(options: bytes) -> None:
    clamp = translation(Hook.OUT, TCP_OLD, TCP_NEW, mss=100)
    # NOPs put the broken option at the end of the header.
    options = b"\1" * (4 - len(options)) + options
    syn = packets.tcp(TCP_OLD, flags=packets.SYN, options=options)
    assert clamp.rewrite(syn) == packets.tcp(TCP_NEW, flags=packets.SYN, options=options)


def test_ip_options_are_kept() -> None:
    segment = packets.tcp(TCP_OLD, payload=b"x")[20:]
    before = packets.ipv4(TCP_OLD, segment, options=b"\x94\x04\0\0")
    after = translation(Hook.OUT, TCP_OLD, TCP_NEW).rewrite(before)
    expected = packets.tcp(TCP_NEW, payload=b"x")[20:]
    assert after == packets.ipv4(TCP_NEW, expected, options=b"\x94\x04\0\0")


def test_later_fragments_have_no_ports() -> None:
    rest = bytes(range(40))
    before = packets.ipv4(TCP_OLD, rest, fragment=185)
    after = translation(Hook.OUT, TCP_OLD, TCP_NEW).rewrite(before)
    assert after == packets.ipv4(TCP_NEW, rest, fragment=185)


def test_there_and_back_again() -> None:
    packet = packets.tcp(TCP_OLD, payload=b"hello", seq=7)
    there = translation(Hook.OUT, TCP_OLD, TCP_NEW).rewrite(packet)
    assert packets.has_right_checksums(there)
    assert translation(Hook.IN, TCP_NEW, TCP_OLD).rewrite(there) == packet


@pytest.mark.parametrize("length", [0, 1, 19, 20, 27, 39])
def test_headers_cut_short_are_refused(length: int) -> None:
    packet = packets.tcp(TCP_OLD)[:length]
    with pytest.raises(ValueError, match=r"empty|past the end"):
        translation(Hook.OUT, TCP_OLD, TCP_NEW).rewrite(packet)


@pytest.mark.parametrize("first", [0x65, 0x05])
def test_other_versions_are_refused(first: int) -> None:
    packet = bytes([first]) + packets.tcp(TCP_OLD)[1:]
    with pytest.raises(ValueError, match="not an IPv4 packet"):
        translation(Hook.OUT, TCP_OLD, TCP_NEW).rewrite(packet)


def test_other_protocols_are_refused() -> None:
    packet = packets.ipv4(TCP_OLD._replace(proto=1), b"\x08\0" + b"\0" * 30)
    with pytest.raises(ValueError, match="not an IPv4 packet of TCP"):
        translation(Hook.OUT, TCP_OLD, TCP_NEW).rewrite(packet)
