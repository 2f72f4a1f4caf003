"""The tc programs on single packets, run by the kernel without any network (BPF_PROG_RUN).

What they write is held against packets whose checksums are computed in full.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

import m2m
from m2m.datapath import Reason, layout
from m2m.datapath import change_tables as do
from m2m.datapath._bpf import Object
from m2m.datapath.change_tables import ChangeTables
from m2m.datapath.flow_table import FlowTable
from m2m.datapath.tables import Config
from m2m.protocol.flow import Flow, Proto, parse_address
from m2m.protocol.splice import Splice
from m2m.protocol.translation import Action, Entry, Hook, NextHop, Position, Toward
from tests.support import packets
from tests.support.core import LAYOUT
from tests.support.spliced import SEGMENTS, Added, Segment
from tests.support.vectors import vectors

pytestmark = pytest.mark.needs("bpf")

PASS, SHOT, REDIRECT = -1 & 0xFFFFFFFF, 2, 7  # TC_ACT_UNSPEC, _SHOT, _REDIRECT
ETHERNET = bytes(12) + b"\x08\x00"
MORE_FRAGMENTS = 0x2000
HERE = "10.0.1.254"
LAST_SEEN, _ = LAYOUT["m2m_entry"][1]["last_seen"]


class Kernel:
    """The object, loaded but attached to nothing."""

    def __init__(self) -> None:
        loaded = Object(Path(m2m.__file__).parent / "bpf" / "m2m.bpf.o")
        loaded.load()
        self.changes = ChangeTables(loaded)
        self._programs = {Hook.IN: loaded.program("m2m_in"), Hook.OUT: loaded.program("m2m_out")}
        self._flows = FlowTable(loaded.map("flows"))
        self._splices = loaded.map("splices")
        self._reasons = loaded.map("reasons")
        loaded.map("addresses").update(parse_address(HERE), b"\1")
        config = Config(loaded.map("config"))
        config[layout.PORT_LO], config[layout.PORT_HI] = 61000, 65535
        config[layout.IN_PORT_LO], config[layout.IN_PORT_HI] = 0, 65535
        config[layout.JIFFY] = layout.jiffy()
        config.close()
        loaded.program("m2m_set_clock").run()

    def install(
        self, hook: Hook, match: Flow, rewrite: Flow, action: Action = Action.SEND,
        mtu: int = 1500, mss: int = 0,
    ) -> bytes:  # fmt: skip
        return self.put(
            Entry(1, hook, match, rewrite, action, Toward.RIGHT, Position.TAP, match, mss), mtu
        )

    def put(self, entry: Entry, mtu: int = 1500) -> bytes:
        if entry.action is Action.SEND:
            entry = entry._replace(hop=NextHop(1, entry.rewrite.dst, mtu))
        key, value = layout.pack_entry(entry, layout.now_ticks())
        if entry.splice is not None:
            self._splices.update(key, entry.splice.pack())
        self._flows.update(key, value)
        return key

    def run(self, hook: Hook, packet: bytes) -> tuple[int, bytes]:
        """What the program returns, and the packet after it."""
        action, frame, _, _ = self._programs[hook].run(ETHERNET + packet)
        assert frame is not None
        return action, frame[len(ETHERNET) :]

    def row(self, key: bytes) -> layout.Row:
        value = self._flows.lookup(key)
        assert value is not None
        return layout.unpack_row(key, value, layout.now_ticks())

    def reasons(self) -> dict[Reason, int]:
        found = {}
        for reason in Reason:
            counts = self._reasons.lookup(struct.pack("=I", reason)) or b""
            if total := sum(struct.unpack(f"={len(counts) // 8}Q", counts)):
                found[reason] = total
        return found


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    return Kernel()


def left(proto: Proto = Proto.TCP) -> Flow:
    return Flow.of(proto, "10.0.1.1", 61001, HERE, 63001)


def right(proto: Proto = Proto.TCP) -> Flow:
    return Flow.of(proto, "10.0.2.254", 61777, "10.0.2.1", 64777)


def test_packets_are_translated_to_the_octet(kernel: Kernel) -> None:
    """Those of which every implementation makes the same."""
    for entry, meeting in itertools.groupby(vectors(), lambda vector: vector.entry):
        kernel.put(entry)
        expected = REDIRECT if entry.action is Action.SEND else PASS
        for vector in meeting:
            assert kernel.run(entry.hook, vector.before) == (expected, vector.after), vector.name


ADDED = Added((4_000_000_000, 123_456_789), (99, 2**32 - 77), (3, -2))
SPLICED = Entry(
    1, Hook.IN, left(), right(), Action.SEND, Toward.RIGHT, Position.TAP, left(),
    splice=Splice(*ADDED),
)  # fmt: skip


@pytest.mark.parametrize("toward", Toward)
@pytest.mark.parametrize(
    ("hook", "action"),
    [(Hook.IN, Action.SEND), (Hook.OUT, Action.SEND), (Hook.IN, Action.DELIVER)],
)
def test_numbers_are_carried_through_a_splice(
    kernel: Kernel, hook: Hook, action: Action, toward: Toward
) -> None:
    ttl = 63 if (hook, action) == (Hook.IN, Action.SEND) else 64
    for segment in SEGMENTS:
        key = kernel.put(SPLICED._replace(hook=hook, action=action, toward=toward))
        carried = ADDED.carry(segment, toward)
        _, packet = kernel.run(hook, segment.wire(left()))
        assert packet == carried.wire(right(), ttl), segment
        # It counts in the numbers of the left side.
        counts = segment if toward is Toward.RIGHT else carried
        assert kernel.row(key).counters.max_seq == counts.end


def test_a_wrong_checksum_is_not_made_right_by_a_splice(kernel: Kernel) -> None:
    kernel.put(SPLICED)
    damaged = SEGMENTS[4].wire(left())
    damaged = damaged[:36] + bytes((damaged[36] ^ 1,)) + damaged[37:]
    _, packet = kernel.run(Hook.IN, damaged)
    assert not packets.has_right_checksums(packet)


@pytest.mark.parametrize("flags", [packets.SYN, packets.SYN | packets.ACK])
def test_no_connection_begins_in_a_splice(kernel: Kernel, flags: int) -> None:
    key = kernel.put(SPLICED)
    assert kernel.run(Hook.IN, Segment(1, 2, 3, flags).wire(left()))[0] == SHOT
    assert kernel.reasons() == {Reason.NOT_SPLICED: 1}
    assert kernel.row(key).counters.packets == 0


def test_a_redirect_and_its_splice_become_the_entrys_own(kernel: Kernel) -> None:
    """At no stage does a packet go half the old way: neither when it is written into the entry, nor
    when packets look at that again."""
    segment = SEGMENTS[4]
    entry = SPLICED._replace(splice=None)
    key = kernel.put(entry)
    for serial, added in enumerate((ADDED, Added((1, 2), (3, 4), (5, 6)), None), 1):
        splice = None if added is None else Splice(*added)
        expected = segment if added is None else added.carry(segment, Toward.RIGHT)
        onward = entry._replace(
            rewrite=entry.rewrite._replace(sport=62000 + serial),
            hop=NextHop(1, entry.rewrite.dst, 1500),
        )
        _, value = layout.pack_entry(onward, 0)
        kernel.changes.add(key)
        kernel.changes.redirect([(key, layout.pack_redirect(value, serial, splice))])
        for steps, clear in ((0, 0), (do.FOLD, 0), (do.UNMARK, do.ALL)):
            kernel.changes.run(key, steps, clear=clear)
            _, packet = kernel.run(Hook.IN, segment.wire(left()))
            assert packet == expected.wire(onward.rewrite, 63), (added, steps)
        kernel.changes.delete(key)


def test_fragments_follow_their_first(kernel: Kernel) -> None:
    key = kernel.install(Hook.IN, left(Proto.UDP), right(Proto.UDP))
    datagram = packets.udp(left(Proto.UDP), payload=bytes(range(256)) * 8)[20:]
    expected = packets.udp(right(Proto.UDP), payload=bytes(range(256)) * 8)[20:]
    for start, more in ((0, MORE_FRAGMENTS), (1024, MORE_FRAGMENTS), (2048, 0)):
        place = more | start // 8
        cut = slice(start, start + 1024)
        action, packet = kernel.run(
            Hook.IN, packets.ipv4(left(Proto.UDP), datagram[cut], fragment=place, ident=77)
        )
        assert action == REDIRECT
        assert packet == packets.ipv4(
            right(Proto.UDP), expected[cut], fragment=place, ident=77, ttl=63
        )
    assert kernel.row(key).counters.packets == 3


def test_a_later_fragment_without_its_first(kernel: Kernel) -> None:
    """Only between hosts whose subsessions are fragmented is it taken for one of those."""
    orphan = packets.ipv4(left(Proto.UDP), b"later" * 8, fragment=64, ident=5)
    assert kernel.run(Hook.IN, orphan) == (PASS, orphan)
    kernel.install(Hook.IN, left(Proto.UDP), right(Proto.UDP))
    first = packets.udp(left(Proto.UDP), payload=bytes(256))[20:]
    kernel.run(Hook.IN, packets.ipv4(left(Proto.UDP), first, fragment=MORE_FRAGMENTS, ident=6))
    assert kernel.run(Hook.IN, orphan)[0] == SHOT
    assert kernel.reasons() == {Reason.FRAGMENT_UNKNOWN: 1}


def test_each_drop_has_its_reason(kernel: Kernel) -> None:
    """I8."""
    kernel.install(Hook.IN, left(), right(), mtu=1400)
    assert kernel.run(Hook.IN, packets.tcp(left(), ttl=1))[0] == SHOT
    assert kernel.reasons() == {Reason.TTL_EXPIRED: 1}
    assert kernel.run(Hook.IN, packets.tcp(left(), payload=bytes(1361)))[0] == SHOT
    assert kernel.run(Hook.IN, packets.tcp(left(), payload=bytes(1360)))[0] == REDIRECT
    assert kernel.reasons() == {Reason.TTL_EXPIRED: 1, Reason.TOO_BIG: 1}
    short = packets.ipv4(left(), packets.tcp(left())[20:32])
    assert kernel.run(Hook.IN, short)[0] == SHOT
    assert kernel.reasons()[Reason.TRUNCATED] == 1
    unknown = left()._replace(sport=61002)
    assert kernel.run(Hook.IN, packets.tcp(unknown))[0] == SHOT
    assert kernel.reasons()[Reason.NO_ENTRY] == 1


@pytest.mark.parametrize(
    "packet",
    [
        packets.tcp(Flow.of(Proto.TCP, "10.0.1.1", 40000, HERE, 80)),
        packets.tcp(Flow.of(Proto.TCP, "10.0.1.1", 40000, HERE, 63001)),
        packets.tcp(Flow.of(Proto.TCP, "10.0.1.1", 61001, "10.0.9.9", 63001)),  # passes through
        packets.ipv4(Flow.of(1, "10.0.1.1", 0, HERE, 0), b"\x08\0\0\0\0\0\0\0"),
        packets.tcp(left())[:20] + b"\0\0\0\0",
        b"\x60" + bytes(60),
    ],
    ids=["other", "one port ours", "not to us", "icmp", "no ports", "not IPv4"],
)
@pytest.mark.parametrize("hook", list(Hook))
def test_i7_what_is_none_of_ours_is_untouched(kernel: Kernel, hook: Hook, packet: bytes) -> None:
    assert kernel.run(hook, packet) == (PASS, packet)
    assert not kernel.reasons()


def test_counters(kernel: Kernel) -> None:
    key = kernel.install(Hook.IN, left(), right())
    top = 0xFFFFFFF0
    for seq, payload in ((top, b"a" * 10), (top + 10, b"b" * 20), (top - 50, b"c")):
        kernel.run(Hook.IN, packets.tcp(left(), seq=seq & 0xFFFFFFFF, payload=payload))
    counters = kernel.row(key).counters
    assert (counters.packets, counters.bytes) == (3, 3 * 40 + 31)
    assert counters.max_seq == 14  # past the wrap, RFC 1982
    assert not counters.fin
    kernel.run(Hook.IN, packets.tcp(left(), seq=14, flags=packets.FIN | packets.ACK))
    counters = kernel.row(key).counters
    assert (counters.fin, counters.rst, counters.max_seq) == (True, False, 15)
    kernel.run(Hook.IN, packets.tcp(left(), seq=15, flags=packets.RST))
    assert kernel.row(key).counters.rst


def test_a_recycled_element_is_not_found(kernel: Kernel) -> None:
    """An entry whose tag is another key's is as good as none."""
    key = kernel.install(Hook.IN, left(), right())
    value = kernel._flows.lookup(key)
    assert value is not None
    kernel._flows.update(key, bytes(4) + value[4:])
    assert kernel.run(Hook.IN, packets.tcp(left()))[0] == SHOT
    assert kernel.reasons() == {Reason.NO_ENTRY: 1}


def test_a_refusal_runs_out(kernel: Kernel) -> None:
    flow = Flow.of(Proto.TCP, "10.0.1.1", 40000, "10.0.9.9", 80)
    key = kernel.install(Hook.OUT, flow, flow, Action.DROP)
    packet = packets.tcp(flow)
    assert kernel.run(Hook.OUT, packet)[0] == SHOT
    value = bytearray(kernel._flows.lookup(key) or b"")
    struct.pack_into("=I", value, LAST_SEEN, layout.now_ticks() - layout.ticks(1.1) & 0xFFFFFFFF)
    kernel._flows.update(key, bytes(value))
    assert kernel.run(Hook.OUT, packet) == (PASS, packet)
    assert kernel.reasons() == {Reason.REFUSED: 1}
