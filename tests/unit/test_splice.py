"""What the splice of a proxy's two connections is, and when there can be none."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2m.datapath._core import apply_splice
from m2m.protocol.flow import Flow
from m2m.protocol.splice import NotSpliceable, Socket, Splice, splice_of
from tests.support import packets
from tests.support.spliced import STAMP, Option, Segment

RIGHT, LEFT = 0, 1
FLOW = Flow.of(6, "10.0.1.1", 40000, "10.0.9.1", 80)

number = st.integers(0, 2**32 - 1) | st.sampled_from([0, 2**31, 2**32 - 1])
scale = st.integers(0, 14)
sockets = st.builds(
    Socket, number, number, number, number, scale, scale, st.just(2**30), st.just(True),
    st.just(False),
)  # fmt: skip
SOCKET = Socket(1000, 2000, 30, 40, 7, 7, 65536, sack=True, ecn=False)


def travel(splice: Splice, toward: int, segment: Segment) -> tuple[int, int, int, int, int]:
    """Sequence and acknowledgement numbers, window, TSval and TSecr on the other side."""
    packet = apply_splice(splice.pack(), toward, segment.wire(FLOW))
    seq, ack, _, window = struct.unpack_from("!IIHH", packet, 24)
    return seq, ack, window, *struct.unpack_from("!II", packet, 42)


@given(sockets, sockets, st.integers(0, 2**20), st.integers(0, 2**20), st.integers(0, 2**16))
def test_both_ends_go_on_where_they_were(
    a: Socket, b: Socket, sent: int, answered: int, later: int
) -> None:
    """The client has sent so much since, and is answered, some time later."""
    assert a.clock is not None and b.clock is not None
    assert a.peer_clock is not None and b.peer_clock is not None
    splice = splice_of(a, b)
    asks = Segment(
        a.receives + sent, a.sends, 500, options=(Option(STAMP, (a.peer_clock + later, a.clock)),)
    )
    seq, ack, window, stamp, echo = travel(splice, RIGHT, asks)
    assert seq == (b.sends + sent) % 2**32
    assert ack == b.receives
    assert stamp == (b.clock + later) % 2**32  # not before anything that it has had
    assert echo == b.peer_clock
    assert window << b.scale <= 500 << a.peer_scale

    answers = Segment(
        b.receives + answered, seq, 500, options=(Option(STAMP, (b.peer_clock + later, stamp)),)
    )
    seq, ack, window, stamp, echo = travel(splice, LEFT, answers)
    assert seq == (a.sends + answered) % 2**32
    assert ack == (a.receives + sent) % 2**32
    assert stamp == (a.clock + later) % 2**32
    assert echo == (a.peer_clock + later) % 2**32  # a round trip is measured by one clock
    assert window << a.scale <= 500 << b.peer_scale


@given(sockets, sockets, sockets, sockets)
def test_a_second_proxy_leaves(a: Socket, b: Socket, c: Socket, d: Socket) -> None:
    """Of two proxies in a row, the middle connection is the one that is gone in the end."""
    c = c._replace(scale=b.peer_scale, peer_scale=b.scale)  # C is what B is connected to
    both = splice_of(a, b).and_then(splice_of(c, d))
    assert both.window == splice_of(a, d).window
    assert Splice.unpack(both.pack()) == both
    seq, ack, *_ = travel(
        both, RIGHT, Segment(a.receives, a.sends, 0, options=(Option(STAMP, (0, 0)),))
    )
    assert seq == (d.sends + b.sends - c.receives) % 2**32
    assert ack == (d.receives + b.receives - c.sends) % 2**32


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (SOCKET._replace(clock=None, peer_clock=None), "timestamps: agreed with the client only"),
        (SOCKET._replace(sack=False), "SACK: agreed with the client only"),
        (SOCKET._replace(ecn=True), "ECN: agreed with the server only"),
        (SOCKET._replace(scale=14), "units of 16384 octets, and have had 65535 at most"),
        (SOCKET._replace(peer_window=300), "units of 128 octets, and have had 300 at most"),
    ],
)
def test_two_that_do_not_go_together(other: Socket, why: str) -> None:
    with pytest.raises(NotSpliceable, match=why):
        splice_of(SOCKET._replace(peer_window=65535), other)


def test_without_timestamps_or_scales() -> None:
    plain = SOCKET._replace(clock=None, peer_clock=None, scale=0, peer_scale=0, peer_window=100)
    splice = splice_of(plain, plain._replace(sends=5))
    assert splice == Splice(((5 - 2000) % 2**32, (1000 - 2000) % 2**32), (0, 0), (0, 0))


def test_windows_that_no_scales_are_apart() -> None:
    with pytest.raises(ValueError, match="cannot be shifted"):
        Splice.unpack(Splice((0, 0), (0, 0), (15, 0)).pack())


def test_packets_of_these_tests_are_right() -> None:
    assert packets.has_right_checksums(Segment(1, 2, 3).wire(FLOW))
