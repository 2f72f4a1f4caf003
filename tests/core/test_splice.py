"""Packets through a splice: the core's arithmetic against packets built anew."""

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m2m.datapath import _core
from m2m.protocol.flow import Flow
from m2m.protocol.splice import Splice
from tests.support import packets
from tests.support.spliced import SACK, STAMP, Added, Option, Segment

FLOW = Flow.of(6, "10.0.1.1", 40000, "10.0.9.1", 80)
EDGES = [0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]

number = st.integers(0, 2**32 - 1) | st.sampled_from(EDGES)
bits = st.integers(-14, 14)
direction = st.sampled_from([0, 1])
splices = st.builds(
    Added, st.tuples(number, number), st.tuples(number, number), st.tuples(bits, bits)
)
flags = st.integers(0, 255).map(lambda given: given & ~packets.SYN)
option = st.one_of(
    st.just(Option(1)),
    st.tuples(number, number).map(lambda fields: Option(STAMP, fields)),
    st.sampled_from([2, 4, 6, 8])
    .flatmap(lambda edges: st.tuples(*[number] * edges))
    .map(lambda fields: Option(SACK, fields)),
    # others, and these two of lengths that they cannot have
    st.tuples(
        st.sampled_from([2, 3, 19, 30, 254]) | st.sampled_from([STAMP, SACK]),
        st.sampled_from([b"", b"\7" * 4, b"odd", b"\7" * 12]),
    ).map(lambda drawn: Option(drawn[0], rest=drawn[1])),
)
# The end of the list, behind which nothing counts; or what ends it because it cannot be.
tail = st.sampled_from(
    [b"", b"\0", b"\0\x08\x0a12345678", b"\x08", b"\x08\x0a123", b"\x08\1" + b"x" * 9, b"\5\0"]
)


def fitting(options: list[Option], tail: bytes) -> tuple[tuple[Option, ...], bytes]:
    """As many of these as there is room for."""
    kept: list[Option] = []
    room = 40
    for one in options:
        room -= len(one.wire())
        if room < 0:
            return tuple(kept), b""
        kept.append(one)
    return tuple(kept), tail if len(tail) <= room else b""


anything = st.builds(fitting, st.lists(option, max_size=12), tail)
# As nearly all segments have it (RFC 7323, appendix A).
aligned = st.tuples(number, number).map(
    lambda fields: ((Option(1), Option(1), Option(STAMP, fields)), b"")
)


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    options, end = draw(aligned | anything)
    return Segment(
        draw(number), draw(number), draw(st.integers(0, 65535)), draw(flags), options, end,
        draw(st.binary(max_size=9)),
    )  # fmt: skip


def apply(added: Added, toward: int, packet: bytes) -> bytes:
    return _core.apply_splice(Splice(*added).pack(), toward, packet)


WRAPPING = Segment(
    2**32 - 1, 1, 1, options=(Option(1), Option(STAMP, (2**32 - 1, 0)), Option(SACK, (0, 1))),
    payload=b"odd",
)  # fmt: skip


@given(splices, direction, segments())
@example(Added((1, 2), (3, 4), (0, 0)), 0, WRAPPING)
@example(Added((1, 2), (3, 4), (-1, 14)), 1, WRAPPING)
def test_numbers_to_the_octet(added: Added, toward: int, segment: Segment) -> None:
    carried = added.carry(segment, toward)
    assert apply(added, toward, segment.wire(FLOW)) == carried.wire(FLOW)


@given(splices, direction, segments(), st.integers(0, 2**16 - 1))
def test_a_wrong_checksum_stays_as_wrong(
    added: Added, toward: int, segment: Segment, damage: int
) -> None:
    damaged = bytearray(segment.wire(FLOW))
    damaged[36:38] = struct.pack("!H", damage)
    right = packets.has_right_checksums(bytes(damaged))
    assert packets.has_right_checksums(apply(added, toward, bytes(damaged))) == right


@given(splices, direction, segments())
def test_there_and_back_again(added: Added, toward: int, segment: Segment) -> None:
    added = added._replace(window=(0, 0))
    back = Added(
        (-added.seq[0] % 2**32, -added.seq[1] % 2**32),
        (-added.stamp[0] % 2**32, -added.stamp[1] % 2**32), (0, 0),
    )  # fmt: skip
    packet = segment.wire(FLOW)
    assert apply(back, toward, apply(added, toward, packet)) == packet


@given(splices, splices, direction, segments())
def test_two_splices_are_as_one(left: Added, right: Added, toward: int, segment: Segment) -> None:
    """But for windows, which lose less by one shift than by two."""
    first, second = (left, right) if toward == 0 else (right, left)
    twice = apply(second, toward, apply(first, toward, segment.wire(FLOW)))
    both = _core.add_splice(Splice(*left).pack(), Splice(*right).pack())
    assert both == Splice(*left).and_then(Splice(*right)).pack()
    once = _core.apply_splice(both, toward, segment.wire(FLOW))
    window = slice(34, 38)  # and checksum
    assert once[: window.start] + once[window.stop :] == (
        twice[: window.start] + twice[window.stop :]
    )
    assert packets.has_right_checksums(once)


@given(st.integers(0, 65535), st.integers(-32, 32))
def test_a_window_is_never_more_than_there_is(window: int, shift: int) -> None:
    shifted = _core.shift_window(window, shift)
    there_is = window * 2**shift
    assert shifted <= there_is
    assert shifted == 65535 or there_is < shifted + 1


def test_a_later_fragment_has_no_numbers() -> None:
    added = Added((1, 2), (3, 4), (5, 6))
    fragment = packets.ipv4(FLOW, bytes(range(40)), fragment=185)
    assert apply(added, 0, fragment) == fragment


@pytest.mark.parametrize("flags", [packets.SYN, packets.SYN | packets.ACK])
def test_no_connection_begins_in_a_splice(flags: int) -> None:
    with pytest.raises(ValueError, match="connection that stands"):
        apply(Added((0, 0), (0, 0), (0, 0)), 0, packets.tcp(FLOW, flags=flags))


@pytest.mark.parametrize("length", [0, 1, 19, 20, 39, 41])
def test_headers_cut_short_are_refused(length: int) -> None:
    packet = packets.tcp(FLOW, options=b"\1" * 4)[:length]
    with pytest.raises(ValueError, match=r"empty|past the end"):
        apply(Added((0, 0), (0, 0), (0, 0)), 0, packet)
