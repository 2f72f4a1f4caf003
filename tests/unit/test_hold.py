"""Which packets wait, which go, and when records are forgotten: HoldQueue over a model kernel.

The model counts as hold.bpf.c does; the programs themselves are tested in tests/netns.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from m2m.datapath import Verdict, hold
from m2m.datapath._nfqueue import ACCEPT, BATCH, DROP, REPEAT
from m2m.datapath.hold import HoldQueue
from m2m.datapath.hold_tables import Settled
from m2m.protocol.flow import Flow, Proto

TCP = Flow.of(Proto.TCP, "10.0.1.1", 40000, "10.0.9.9", 80)
UDP = Flow.of(Proto.UDP, "10.0.1.1", 40000, "10.0.9.9", 53)
OTHER = Flow.of(Proto.UDP, "10.0.1.1", 40001, "10.0.9.9", 53)


class Kernel:
    """Queue and BPF objects of a machine on which only *flows* leave, all of them held."""

    number = 7
    fd = -1

    def __init__(self) -> None:
        self.queued = self.released = 0  # packets of all flows
        self.entries: set[Flow] = set()
        self.records: dict[bytes, list[int]] = {}  # queued, released
        self.socket: list[tuple[int, bytes]] = []
        self.verdicts: list[tuple[int, int]] = []
        self.refused = 0
        self.overflowed = 0
        self.dropped = 0  # by the queue itself
        self.now = 0
        self.closed = False
        self._sent = 0

    def count(self, flow: Flow) -> None:
        """What `refuse` does with a packet that must wait."""
        self.queued += 1
        if flow.proto == Proto.UDP:
            self.records.setdefault(flow.pack(), [0, 0])[0] += 1

    def arrive(self, flow: Flow) -> int:
        self._sent += 1
        self.socket.append((self._sent, flow.pack()))
        return self._sent

    def send(self, *flows: Flow) -> list[int]:
        for flow in flows:
            self.count(flow)
        return [self.arrive(flow) for flow in flows]

    def waiting(self, flow: Flow) -> int:
        queued, released = self.records[flow.pack()]
        return queued - released

    # what HoldQueue sees

    def receive(self) -> list[tuple[int, bytes]]:
        batch, self.socket = self.socket[:BATCH], self.socket[BATCH:]
        return batch

    def verdict(self, packets: list[int], verdict: int) -> None:
        self.verdicts += [(packet, verdict) for packet in packets]

    def lost(self) -> dict[int, int]:
        return {self.number: self.dropped}

    def close(self) -> None:
        self.closed = True

    def has_entry(self, flow: bytes) -> bool:
        return Flow.unpack(flow) in self.entries

    def left(self, packets: int) -> None:
        self.released += packets

    def settle(
        self, flow: bytes, *, released: int = 0, quiet: int = 0, refused: int = 0,
        overflowed: int = 0,
    ) -> Settled:  # fmt: skip
        self.refused += refused
        self.overflowed += overflowed
        if (record := self.records.get(flow)) is None:
            return Settled(0, False)
        record[1] += released
        waiting = max(0, record[0] - record[1])
        if not waiting and quiet and self.now > quiet:
            del self.records[flow]
            return Settled(0, False)
        return Settled(waiting, True)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def queue(kernel: Kernel) -> HoldQueue:
    return HoldQueue(kernel, kernel, kernel, hold=Path("hold"), refuse=Path("refuse"))


def let_go(*packets: int) -> list[tuple[int, int]]:
    return [(packet, ACCEPT) for packet in packets]


def test_a_flow_is_told_once_however_many_of_its_packets_wait(
    queue: HoldQueue, kernel: Kernel
) -> None:
    kernel.send(UDP, TCP, UDP)
    assert queue.receive() == [UDP, TCP]
    kernel.send(UDP, TCP)
    assert queue.receive() == []
    assert queue.packets == 5
    assert kernel.verdicts == []


def test_release_lets_packets_go_in_their_order(queue: HoldQueue, kernel: Kernel) -> None:
    first, _, second, third = kernel.send(UDP, OTHER, UDP, UDP)
    queue.receive()
    kernel.entries.add(UDP)
    queue.release(UDP, Verdict.STEER)
    assert kernel.verdicts == let_go(first, second, third)
    assert kernel.waiting(UDP) == 0
    assert kernel.waiting(OTHER) == 1
    assert kernel.released == 3


def test_a_packet_counted_but_not_queued_yet_goes_when_it_comes(
    queue: HoldQueue, kernel: Kernel
) -> None:
    first = kernel.send(UDP)
    queue.receive()
    kernel.count(UDP)
    kernel.entries.add(UDP)
    queue.release(UDP, Verdict.STEER)
    assert kernel.waiting(UDP) == 1, "the flow must not take the straight way yet"
    second = kernel.arrive(UDP)
    assert queue.receive() == []
    assert kernel.verdicts == let_go(*first, second)
    assert kernel.waiting(UDP) == 0


def test_a_syn_repeated_during_the_release_goes_too(queue: HoldQueue, kernel: Kernel) -> None:
    first = kernel.send(TCP)
    queue.receive()
    second = kernel.send(TCP)
    kernel.entries.add(TCP)
    queue.release(TCP, Verdict.STEER)
    assert queue.receive() == []
    assert kernel.verdicts == let_go(*first, *second)


def test_the_same_ports_again_after_the_session_are_a_new_hold(
    queue: HoldQueue, kernel: Kernel
) -> None:
    kernel.send(TCP)
    queue.receive()
    kernel.entries.add(TCP)
    queue.release(TCP, Verdict.STEER)
    kernel.entries.remove(TCP)
    kernel.send(TCP)
    assert queue.receive() == [TCP]


def test_refused_packets_are_dropped_and_counted(queue: HoldQueue, kernel: Kernel) -> None:
    syn, _ = kernel.send(TCP, UDP)
    queue.receive()
    kernel.entries |= {TCP, UDP}
    queue.release(TCP, Verdict.DROP)
    assert kernel.verdicts == [(syn, DROP)]
    assert kernel.refused == 1
    queue.release(UDP, Verdict.DROP)
    assert kernel.refused == 2
    assert kernel.waiting(UDP) == 0
    assert kernel.released == 2


def test_releasing_what_is_not_held_does_nothing(queue: HoldQueue, kernel: Kernel) -> None:
    queue.release(TCP, Verdict.DROP)
    assert kernel.verdicts == []
    assert kernel.refused == 0


def test_packets_that_never_come_do_not_keep_a_flow_from_the_straight_way(
    queue: HoldQueue, kernel: Kernel
) -> None:
    kernel.send(UDP)
    queue.receive()
    kernel.count(UDP)  # and lost
    kernel.entries.add(UDP)
    queue.release(UDP, Verdict.STEER)
    queue.tick()
    assert kernel.waiting(UDP) == 1, "it may still come"
    queue.tick()
    assert kernel.waiting(UDP) == 0


def test_a_flow_that_is_held_is_not_taken_for_lost(queue: HoldQueue, kernel: Kernel) -> None:
    kernel.send(UDP)
    queue.receive()
    for _ in range(3):
        queue.tick()
    assert kernel.waiting(UDP) == 1
    assert kernel.verdicts == []


def test_records_are_forgotten_once_quiet(queue: HoldQueue, kernel: Kernel) -> None:
    kernel.send(UDP)
    queue.receive()
    kernel.entries.add(UDP)
    queue.release(UDP, Verdict.STEER)
    queue.tick()
    assert UDP.pack() in kernel.records
    kernel.now = 10_000_000_000
    queue.tick()
    assert kernel.records == {}


def test_what_the_kernel_lost_counts_as_overflow_and_makes_room(
    queue: HoldQueue, kernel: Kernel
) -> None:
    kernel.send(TCP)
    kernel.count(TCP)
    kernel.dropped = 1
    queue.tick()
    queue.tick()
    assert kernel.overflowed == 1
    assert kernel.released == 1


def test_closing_shows_all_that_waits_to_the_policy_again(queue: HoldQueue, kernel: Kernel) -> None:
    held = kernel.send(UDP, TCP, UDP)
    queue.receive()
    unseen = kernel.send(TCP)
    queue.close(keep=True)
    assert kernel.verdicts == [(packet, REPEAT) for packet in [*held, *unseen]]
    assert kernel.released == 4
    assert kernel.closed


def test_what_another_program_queues_here_goes_on(queue: HoldQueue, kernel: Kernel) -> None:
    kernel.socket.append((9, b""))
    assert queue.receive() == []
    assert kernel.verdicts == let_go(9)


def test_the_module_that_has_queues_is_loaded_by_asking_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = tmp_path / "nfnetlink_queue"
    asked_for: list[int] = []

    class Module:
        def __init__(self, number: int, limit: int) -> None:
            asked_for.append(number)
            listing.write_text("    7   4711     0 2 65531     3     2        9  1\n")

        def close(self) -> None:
            pass

    monkeypatch.setattr(hold, "_QUEUES", listing)
    monkeypatch.setattr(hold, "NfQueue", Module)
    for _ in range(2):
        queues = hold._Queues()
        assert queues.lost() == {7: 5}
        queues.close()
    assert asked_for == [0]
