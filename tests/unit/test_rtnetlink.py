"""What the kernel says of the network, read from bytes: also from bytes that are no such thing."""

import socket
import struct

from hypothesis import given
from hypothesis import strategies as st

from m2m.agent import rtnetlink
from m2m.agent.rtnetlink import Found, Heading, Link, Message
from m2m.datapath.rtnl import attribute
from m2m.protocol.flow import parse_address

HERE, THERE = parse_address("10.0.0.1"), parse_address("10.0.0.2")


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body


def number(value: int) -> bytes:
    return struct.pack("=I", value)


LINK = (
    struct.pack("=BxHiII", 0, 1, 7, 0x1043, 0)
    + attribute(3, b"eth7\0")
    + attribute(4, number(1400))
)


def test_a_datagram_holds_several_messages() -> None:
    data = message(16, b"12345") + bytes(3) + message(3, b"")
    assert list(rtnetlink.messages(data)) == [Message(16, b"12345"), Message(3, b"")]


def test_a_link() -> None:
    assert rtnetlink.link(LINK) == Link(7, "eth7", 1400, True, True, False)
    port_of_a_bridge = bytes((socket.AF_BRIDGE,)) + LINK[1:]
    assert rtnetlink.link(port_of_a_bridge) is None


def test_an_address() -> None:
    head = struct.pack("=BBBBI", socket.AF_INET, 24, 0, 0, 7)
    far, own = attribute(1, THERE[12:]), attribute(2, HERE[12:])
    assert rtnetlink.local_address(head + far + own) == Found(7, HERE)  # a point-to-point link
    assert rtnetlink.local_address(head + own) == Found(7, HERE)
    assert rtnetlink.local_address(head + far) == Found(7, THERE)
    assert rtnetlink.local_address(head) is None
    assert rtnetlink.local_address(bytes((socket.AF_INET6,)) + head[1:] + own) is None


def test_a_route() -> None:
    head = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, 254, 0, 0, 1, 0)
    metrics = attribute(8 | 0x8000, attribute(2, number(1380)))
    body = head + attribute(4, number(7)) + attribute(5, THERE[12:]) + attribute(7, HERE[12:])
    assert rtnetlink.route(body + metrics) == Heading(True, 7, THERE, HERE, 1380)
    assert rtnetlink.route(head) == Heading(True, None, None, None, None)
    local = head[:7] + b"\2" + head[8:]
    assert rtnetlink.route(local) == Heading(False, None, None, None, None)


def test_an_error() -> None:
    assert Message(rtnetlink.ERROR, struct.pack("=i", -101) + bytes(16)).error == 101
    assert Message(rtnetlink.ERROR, b"").error == 0
    assert Message(rtnetlink.NEWROUTE, struct.pack("=i", -101)).error == 0


@given(st.binary(max_size=200), st.integers(0, 60))
def test_whatever_comes_is_read_or_left(noise: bytes, cut: int) -> None:
    for data in (noise, LINK[:cut], LINK[:cut] + noise):
        for found in rtnetlink.messages(data):
            assert len(found.body) <= len(data)
        rtnetlink.link(data)
        rtnetlink.local_address(data)
        rtnetlink.route(data)
