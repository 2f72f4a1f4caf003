"""Octets put into a stream: whatever is repeated, cut up or late, the receiver gets them once, and
the sender is told of what it has sent."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m2m.protocol.flow import Flow
from nf_adapters.skb import seen_by
from nf_adapters.skb.insertion import Insertion
from nf_adapters.skb.packet import layout
from nf_adapters.skb.seen_by import LINE, SeenBy
from tests.support import packets
from tests.support.packets import ACK, FIN, SYN
from tests.support.spliced import SACK, STAMP, Added, Option, Segment

FLOW = Flow.of(6, "10.9.1.2", 40000, "10.9.4.2", 80)
WRAP = 1 << 32
TEXT = b"put in"
STREAM = bytes(range(200))

starts = st.sampled_from([0, 1000, WRAP - 100, WRAP - 1]) | st.integers(0, WRAP - 1)
places = st.integers(1, len(STREAM))
cuts = st.lists(st.tuples(places, places), max_size=8)


def onward(insertion: Insertion, segment: Segment) -> Segment:
    packet = segment.wire(FLOW)
    at = layout(packet)
    assert at is not None
    made = insertion.onward(packet, at)
    assert packets.has_right_checksums(made)
    return read(made)


def back(insertion: Insertion, segment: Segment) -> Segment:
    packet = segment.wire(FLOW.reverse())
    at = layout(packet)
    assert at is not None
    made = insertion.back(packet, at)
    assert packets.has_right_checksums(made)
    return read(made)


def read(packet: bytes) -> Segment:
    """A segment without its options."""
    at = layout(packet)
    assert at is not None
    tcp = packet[at.transport :]
    return Segment(
        int.from_bytes(tcp[4:8]), int.from_bytes(tcp[8:12]), int.from_bytes(tcp[14:16]), tcp[13],
        payload=packet[at.payload :],
    )  # fmt: skip


@given(starts, places, cuts, st.randoms(use_true_random=False))
@example(0, 1, [], random.Random(1))
@example(WRAP - 1, 200, [(1, 200), (9, 9)], random.Random(1))
def test_any_segments_make_the_same_stream(
    start: int, place: int, cut: list[tuple[int, int]], rng: random.Random
) -> None:
    """As long as nothing is acknowledged; in any order, and repeated in other pieces."""
    insertion = Insertion((start + place) % WRAP, TEXT)
    expected = STREAM[:place] + TEXT + STREAM[place:]
    pieces = [(0, place), (place, len(STREAM)), *map(sorted, cut)]
    rng.shuffle(pieces)
    got: dict[int, int] = {}
    for first, last in pieces:
        sent = Segment((start + first) % WRAP, 7, 500, payload=STREAM[first:last])
        came = onward(insertion, sent)
        begins = (came.seq - start) % WRAP
        got |= dict(enumerate(came.payload, begins if begins < WRAP // 2 else begins - WRAP))
    assert got == dict(enumerate(expected))
    assert not insertion.settled


@given(starts, places, st.integers(0, len(STREAM) + len(TEXT)))
def test_an_acknowledgement_counts_what_was_sent(start: int, place: int, number: int) -> None:
    insertion = Insertion((start + place) % WRAP, TEXT)
    said = back(insertion, Segment(9, (start + number) % WRAP, 500))
    counted = number if number <= place else max(place, number - len(TEXT))
    assert (said.ack - start) % WRAP == counted
    assert insertion.settled == (number >= place + len(TEXT))


def test_without_an_acknowledgement_nothing_is_settled() -> None:
    insertion = Insertion(1000, TEXT)
    reset = back(insertion, Segment(9, 0, 0, packets.RST))
    assert (reset.ack, insertion.settled) == (0, False)


OPTIONS = (Option(1), Option(1), Option(STAMP, (1, 2)), Option(SACK, (3000, 4000, 5000, 6000)))


@given(starts, st.integers(0, 2**31 - 10_000), st.binary(max_size=50))
def test_once_settled_it_is_what_a_splice_makes_of_it(
    start: int, further: int, payload: bytes
) -> None:
    """So packets may go through the function or past it."""
    insertion, sums = Insertion(start, TEXT), Added((len(TEXT), 0), (0, 0), (0, 0))
    back(insertion, Segment(9, (start + len(TEXT)) % WRAP, 500))
    number = (start + further) % WRAP
    there = Segment(number, 5, 500, ACK | FIN, OPTIONS[:3], payload=payload)
    here = Segment(5, number, 500, ACK, OPTIONS)
    for segment, toward in ((there, 0), (here, 1)):
        packet = segment.wire(FLOW)
        at = layout(packet)
        assert at is not None
        made = (insertion.back if toward else insertion.onward)(packet, at)
        assert made == sums.carry(segment, toward).wire(FLOW)


def test_options_that_cannot_be_read_stay() -> None:
    insertion = Insertion(0, TEXT)
    segment = Segment(9, 100, 500, tail=b"\1\1\1\5")
    packet = segment.wire(FLOW)
    at = layout(packet)
    assert at is not None
    assert insertion.back(packet, at)[at.payload - 4 :] == b"\1\1\1\5"


REQUEST = b"GET / HTTP/1.1\r\nHost: m2m\r\n\r\n"


def begin(function: SeenBy, flow: Flow = FLOW) -> None:
    syn = Segment(WRAP - 1, 0, 500, SYN).wire(flow)
    assert function.carry(syn) is syn


def conversation(first: bytes) -> tuple[SeenBy, list[Flow], bytes]:
    """What becomes of a connection's first segment."""
    asked: list[Flow] = []
    function = SeenBy(asked.append)
    begin(function)
    return function, asked, function.carry(Segment(0, 1, 500, payload=first).wire(FLOW))


def test_the_line_stands_behind_the_first_and_the_function_asks_to_leave_once() -> None:
    function, asked, packet = conversation(REQUEST)
    assert read(packet).payload == b"GET / HTTP/1.1\r\n" + LINE + b"Host: m2m\r\n\r\n"
    for _ in range(2):
        ack = Segment(1, len(REQUEST) + len(LINE), 500).wire(FLOW.reverse())
        assert read(function.carry(ack)).ack == len(REQUEST)
    assert asked == [FLOW]
    later = Segment(len(REQUEST), 1, 500, payload=REQUEST).wire(FLOW)
    assert read(function.carry(later)).seq == len(REQUEST) + len(LINE)
    function.has_left(FLOW)
    assert function.carry(later) is later
    assert function.counts == {"inserted": 1, "left": 1}


def test_what_is_no_request_or_is_too_large_goes_as_it_is() -> None:
    for first in (b"\x16\x03\x01", b"GET / HTTP", REQUEST.ljust(1230, b"x")):
        function, _, packet = conversation(first)
        assert read(packet).payload == first
        again = Segment(0, 1, 500, payload=REQUEST).wire(FLOW)
        assert function.carry(again) is again
    assert function.carry(datagram := packets.udp(FLOW._replace(proto=17))) is datagram


def test_of_too_many_that_ask_nothing_the_oldest_gets_no_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(seen_by, "_MOST", 2)
    function = SeenBy(lambda _flow: None)
    flows = [FLOW._replace(sport=port) for port in (1, 2, 3)]
    for flow in (*flows[:2], flows[0], flows[2]):  # the first begins again
        begin(function, flow)
    requests = [Segment(0, 1, 500, payload=REQUEST).wire(flow) for flow in flows]
    changed = [function.carry(request) is not request for request in requests]
    assert changed == [True, False, True]
