"""What became of packets between two places, from what passed both of them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2m.lab.passage import Crossing, Passage, crossings, total
from m2m.lab.sightings import Seen
from m2m.protocol.flow import Proto

A, B, C, D = (bytes((10, 0, 0, n)) for n in range(1, 5))
NAMES = {A: "a", B: "b", C: "c", D: "d"}
ISN = (1 << 32) - 3000  # wraps soon


def leg(src: bytes, dst: bytes, sport: int = 1000, dport: int = 80) -> bytes:
    return src + dst + struct.pack("!HH", sport, dport)


class Line:
    """Two places, and a clock that each packet moves on."""

    def __init__(self, isn: int = ISN, peer: int = 5000, port: int = 1000) -> None:
        self.near: list[Seen] = []
        self.far: list[Seen] = []
        self.isn, self.peer, self.port = isn, peer, port
        self.time = 0
        self.ident = 65530  # wraps soon

    def segment(self, at: int, size: int = 100, *, up: bool = True, ident: int | None = None,
                ack: int = 0) -> Seen:  # fmt: skip
        """A packet with the bytes from *at* on; its next identification unless one is given."""
        if ident is None:
            self.ident = (self.ident + 1) % (1 << 16)
            ident = self.ident
        first, other = (self.isn, self.peer) if up else (self.peer, self.isn)
        return Seen(0, "", up, Proto.TCP, b"", ident, (first + 1 + at) % (1 << 32), size,
                    (other + 1 + ack) % (1 << 32), None, False)  # fmt: skip

    def enter(self, seen: Seen, via: bytes = B, up: bool = True) -> Seen:
        """It passes the place where it comes from, by the path through *via*."""
        self._pass(self.near if up else self.far, seen, via, up, outgoing=True)
        return seen

    def leave(self, seen: Seen, via: bytes = B, up: bool = True) -> Seen:
        """It passes the place where it goes to."""
        self._pass(self.far if up else self.near, seen, via, up, outgoing=False)
        return seen

    def through(self, *packets: Seen, via: bytes = B, up: bool = True) -> None:
        for seen in packets:
            self.enter(seen, via, up)
            self.leave(seen, via, up)

    def _pass(self, place: list[Seen], seen: Seen, via: bytes, up: bool, outgoing: bool) -> None:
        self.time += 1_000_000
        end = A if place is self.near else D
        ends = (end, via) if outgoing else (via, end)
        ports = (self.port, 80) if up else (80, self.port)
        place.append(seen._replace(
            time=self.time, link=NAMES[via], outgoing=outgoing, leg=leg(*ends, *ports)
        ))  # fmt: skip

    def found(self) -> Crossing:
        (crossing,) = crossings(self.near, self.far)
        return crossing


def test_all_that_enters_leaves() -> None:
    line = Line()
    line.through(*(line.segment(100 * i) for i in range(50)))
    up = line.found().up
    assert up == Passage(packets=50, units=5000, pause=0.002, ways=[("b", "b")])
    assert up.unharmed


def test_both_directions_are_told_apart() -> None:
    line = Line()
    line.through(line.segment(0), line.segment(100))
    line.through(line.segment(0, 700, up=False, ack=200), up=False)
    assert (line.found().up.units, line.found().down.units) == (200, 700)


def test_a_lost_packet() -> None:
    line = Line()
    line.through(line.segment(0))
    line.enter(line.segment(100))
    line.through(line.segment(200))
    up = line.found().up
    assert (up.lost, up.lost_units, up.duplicated, up.reordered) == (1, 100, 0, 0)
    assert not up.unharmed


def test_a_lost_packet_that_is_sent_again_is_lost_once() -> None:
    line = Line()
    line.enter(line.segment(0))
    line.through(line.segment(100), line.segment(0))
    up = line.found().up
    assert (up.lost, up.repeated, up.duplicated, up.reordered) == (1, 1, 0, 0)


def test_an_unneeded_retransmission_is_no_duplicate() -> None:
    line = Line()
    line.through(line.segment(0), line.segment(100), line.segment(0))
    up = line.found().up
    assert (up.lost, up.repeated, up.duplicated, up.reordered) == (0, 1, 0, 0)


def test_a_doubled_packet() -> None:
    line = Line()
    line.leave(line.enter(line.segment(0)))
    line.leave(line.enter(line.segment(100)))
    line.leave(line.segment(100, ident=line.ident))
    up = line.found().up
    assert (up.lost, up.duplicated, up.duplicated_units) == (0, 1, 100)


def test_a_lost_acknowledgement_without_data() -> None:
    line = Line()
    line.through(line.segment(0))
    line.enter(line.segment(0, 0, up=False, ack=100), up=False)
    line.through(line.segment(0, 0, up=False, ack=100), up=False)
    assert (line.found().down.lost_acks, line.found().down.lost) == (1, 0)


def test_an_overtaken_packet() -> None:
    line = Line()
    first, second, third = (line.segment(100 * i) for i in range(3))
    for seen in (first, second, third):
        line.enter(seen)
    for seen in (second, third, first):
        line.leave(seen)
    up = line.found().up
    assert (up.reordered, up.lost, up.duplicated, up.repeated) == (1, 0, 0, 0)
    assert up.acks_ahead == 0


def test_data_overtaken_by_an_acknowledgement_alone() -> None:
    line = Line()
    line.through(line.segment(0))
    data, ack = line.enter(line.segment(100)), line.enter(line.segment(200, 0))
    line.leave(ack)
    line.leave(data)
    assert (line.found().up.reordered, line.found().up.acks_ahead) == (0, 1)


def test_an_acknowledgement_overtaken_by_another() -> None:
    line = Line()
    line.through(line.segment(0))
    first, second = line.enter(line.segment(100, 0)), line.enter(line.segment(100, 0, ack=7))
    line.leave(second)
    line.leave(first)
    up = line.found().up
    assert (up.reordered, up.reordered_acks, up.acks_ahead) == (0, 1, 0)


def test_a_packet_that_is_overtaken_before_the_first_place_counts_too() -> None:
    line = Line()
    first, second = line.segment(0), line.segment(100)
    line.through(second, first)
    assert line.found().up.reordered == 1


def test_a_packet_cut_in_two_is_neither_lost_nor_doubled() -> None:
    line = Line()
    line.through(line.segment(0))
    whole = line.enter(line.segment(100, 300))
    line.leave(line.segment(100, 120, ident=whole.ident))
    line.leave(line.segment(220, 180, ident=whole.ident), via=C)
    up = line.found().up
    assert up.unharmed and up.lost_units == up.duplicated_units == up.reordered == 0


def test_half_of_a_cut_packet_is_lost() -> None:
    line = Line()
    whole = line.enter(line.segment(0, 300))
    line.leave(line.segment(0, 120, ident=whole.ident))
    up = line.found().up
    assert (up.lost, up.lost_units) == (1, 180)


def test_an_acknowledgement_parted_from_its_data_is_no_duplicate() -> None:
    line = Line()
    line.through(line.segment(0))
    both = line.enter(line.segment(0, 500, up=False, ack=100), up=False)
    line.leave(both._replace(units=0), up=False)
    line.leave(both, via=C, up=False)
    assert line.found().down.unharmed


def test_the_ways_in_the_order_of_bytes() -> None:
    line = Line()
    line.through(*(line.segment(100 * i) for i in range(3)))
    line.through(*(line.segment(100 * i) for i in range(3, 6)), via=C)
    line.through(line.segment(600))
    assert line.found().up.ways == [("b", "b"), ("c", "c"), ("b", "b")]


def test_a_late_part_of_the_old_substream_on_the_new_path_shows() -> None:
    line = Line()
    line.through(line.segment(0))
    line.through(line.segment(200), via=C)
    line.through(line.segment(100))
    assert line.found().up.ways == [("b", "b"), ("c", "c")]
    mixed = Line()
    mixed.through(mixed.segment(0))
    mixed.through(mixed.segment(100), via=C)
    mixed.through(mixed.segment(200))
    assert len(mixed.found().up.ways) == 3


def test_sessions_are_told_apart_by_their_numbers_alone() -> None:
    """Two sessions change to new legs with ports that say nothing."""
    lines = [Line(isn=1 << 20, peer=1 << 28), Line(isn=1 << 30, peer=1 << 10, port=2000)]
    near: list[Seen] = []
    far: list[Seen] = []
    for ports in (None, 7777, 8888):
        for number, line in enumerate(lines):
            line.port = line.port if ports is None else ports + number
            at = 0 if ports is None else ports
            line.time = max(one.time for one in lines)
            line.through(line.segment(at), line.segment(at + 100), via=C if ports else B)
    for line in lines:
        near += line.near
        far += line.far
    found = crossings(sorted(near, key=lambda s: s.time), sorted(far, key=lambda s: s.time))
    assert [crossing.up.packets for crossing in found] == [6, 6]
    assert total(found).unharmed and total(found).reordered == 0


def test_a_reused_leg_belongs_to_the_session_of_its_new_syn() -> None:
    line = Line(isn=1000)
    line.through(line.segment(0))
    later = Line(isn=2000)
    later.time = line.time
    syn = later.segment(-1, 1)._replace(syn=True, ack=None, ident=0)
    later.through(syn, later.segment(0))
    found = crossings(line.near + later.near, line.far + later.far)
    assert [crossing.up.packets for crossing in found] == [1, 2]


def burst(number: int, count: int = 10, flow: int = 1) -> Seen:
    return Seen(0, "", True, Proto.UDP, b"", 0, number, count, None, flow, False)


def test_datagrams_lost_doubled_and_overtaken() -> None:
    line = Line()
    line.through(burst(0), burst(10))
    line.enter(burst(20))
    for seen in (burst(30), burst(40), burst(50)):
        line.enter(seen)
    for number in (40, 30, 50, 50):
        line.leave(burst(number), via=C)
    up = line.found().up
    assert (up.packets, up.units) == (6, 60)
    assert (up.lost, up.lost_units) == (1, 10)
    assert (up.duplicated, up.duplicated_units) == (1, 10)
    assert up.reordered == 1


def test_bursts_in_other_pieces_are_no_loss() -> None:
    line = Line()
    line.enter(burst(0, 30))
    for number in range(0, 30, 5):
        line.leave(burst(number, 5))
    assert line.found().up.unharmed


def test_flows_of_datagrams_are_told_apart() -> None:
    line = Line()
    line.through(burst(0, flow=1), burst(0, flow=2), burst(10, flow=1), burst(10, flow=2))
    assert [one.up.units for one in crossings(line.near, line.far)] == [20, 20]


def test_sums_keep_the_longest_pause() -> None:
    one = Passage(packets=1, units=10, lost=1, pause=0.5, ways=[("b", "b")])
    one.add(Passage(packets=2, units=20, reordered=3, pause=0.1))
    assert one == Passage(3, 30, lost=1, reordered=3, pause=0.5, ways=[("b", "b")])


@given(
    st.lists(st.sampled_from(["through", "lose", "double"]), min_size=1, max_size=40),
    st.integers(0, (1 << 32) - 1),
)
def test_every_loss_and_every_duplicate_is_counted(fates: list[str], isn: int) -> None:
    line = Line(isn=isn)
    for i, fate in enumerate(fates):
        seen = line.enter(line.segment(1000 * i, 1000))
        for _ in range(("lose", "through", "double").index(fate)):
            line.leave(seen)
    up = line.found().up
    assert (up.lost, up.duplicated) == (fates.count("lose"), fates.count("double"))
    assert (up.lost_units, up.duplicated_units) == (1000 * up.lost, 1000 * up.duplicated)
    assert up.reordered == 0


@given(st.permutations(range(10)))
def test_every_overtaken_packet_is_counted(order: list[int]) -> None:
    line = Line()
    line.ident = 1000  # an identification of 0 says nothing
    packets = [line.enter(line.segment(1000 * i, 1000)) for i in range(10)]
    for i in order:
        line.leave(packets[i])
    late = sum(any(n > number for n in order[:i]) for i, number in enumerate(order))
    assert line.found().up.reordered == late


def test_nothing_passed() -> None:
    assert crossings([], []) == []


@pytest.mark.parametrize("place", ["near", "far"])
def test_what_passed_one_place_only(place: str) -> None:
    line = Line()
    seen = line.segment(0)
    (line.enter if place == "near" else line.leave)(seen)
    up = line.found().up
    assert (up.lost, up.duplicated) == ((1, 0) if place == "near" else (0, 1))
