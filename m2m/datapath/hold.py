"""Holding first packets: they wait in a netfilter queue, in the kernel, until their chain stands.

A packet's way: it leaves a local socket, or a gateway forwards it; ``hold.bpf.c`` picks it,
iptables queues it (:mod:`m2m.datapath.hold_rules`), :meth:`HoldQueue.held` tells of its flow. Then
:meth:`HoldQueue.release`: the verdict re-injects it, tc egress finds the entries that stand by
now, translates and sends it, all of that before the verdict's system call returns.

Order is strict. A UDP flow goes on sending while its entries appear, and its packets must not
overtake those that wait. So BPF counts what it queues, this module counts what has left, and BPF
lets the flow take the straight way again only when the counts are equal. What comes here after
the release is let go at once.

TCP does not repeat a SYN that still waits here (the kernel sees that its first copy has not left
the host), so what is told by :meth:`HoldQueue.held` must be released, whatever comes of it. When
the agent dies the kernel drops the copy, and TCP repeats it.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import trio

from m2m.datapath import DatapathError, Verdict, hold_rules
from m2m.datapath._nfqueue import ACCEPT, BATCH, DROP, REPEAT, NfQueue
from m2m.datapath.hold_rules import Where
from m2m.datapath.hold_tables import HoldTables
from m2m.errors import UnsupportedHost
from m2m.protocol.flow import PACKED_SIZE, Flow, Proto

_QUEUES = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")

_NO_FLOW = bytes(PACKED_SIZE)
# Packets that pass the limit while another CPU passes it too still find room.
_SLACK = 64
# A record is forgotten when its flow has been quiet for this long: by then no program can be
# between finding the record and counting in it.
_QUIET = 2_000_000_000  # ns
_FIRST_QUEUE = 0x8000  # half of all
# Batches of packets read at once before other tasks have their turn.
_ROUNDS = 16


class HoldQueue:
    """The packets that wait in one network namespace."""

    def __init__(
        self,
        queue: NfQueue,
        queues: _Queues,
        tables: HoldTables,
        *,
        hold: Path,
        refuse: Path,
        where: Where = Where.OUTPUT,
    ) -> None:
        self._queue = queue
        self._queues = queues
        self._tables = tables
        self._programs = hold, refuse  # pins
        self._where = where
        self._waiting: dict[bytes, list[int]] = {}  # packed flow -> packet ids, in order
        # Flows let go of which BPF still counts packets under way, and how many at the last tick.
        self._leaving: dict[bytes, int] = {}
        self._quiet: set[bytes] = set()  # flows with a record that can be forgotten soon
        self._lost = 0  # packets that the kernel could not queue

    @classmethod
    def open(
        cls,
        name: str,
        tables: HoldTables,
        *,
        hold: Path,
        refuse: Path,
        limit: int,
        where: Where = Where.OUTPUT,
    ) -> HoldQueue:
        """Take a queue and put the rules in; nothing is held before :meth:`watch`.

        The rules and counts that a killed agent left behind are replaced. *hold* and *refuse* are
        the pinned programs, *limit* the number of packets that may wait, *name* the agent's.
        Raises :exc:`~m2m.errors.UnsupportedHost`.
        """
        try:
            queues = _Queues()
        except OSError as error:
            raise UnsupportedHost(
                f"first packets cannot be held ({error}); run the agent as root, on a kernel with"
                " netfilter queues (CONFIG_NETFILTER_NETLINK_QUEUE)"
            ) from error
        queue = None
        try:
            queue = _bind(name, limit + _SLACK, queues)
            tables.begin(limit)
            hold_rules.install((), hold, refuse, queue.number)
        except BaseException:
            queues.close()
            if queue is not None:
                queue.close()
            raise
        return cls(queue, queues, tables, hold=hold, refuse=refuse, where=where)

    def watch(self, interfaces: Iterable[str]) -> None:
        """Hold first packets that leave by these interfaces (names), and by no others."""
        hold, refuse = self._programs
        hold_rules.install(interfaces, hold, refuse, self._queue.number, self._where)

    def fileno(self) -> int:
        """Readable when :meth:`receive` has work."""
        return self._queue.fd

    @property
    def packets(self) -> int:
        """How many packets wait for :meth:`release`."""
        return sum(map(len, self._waiting.values()))

    def receive(self) -> list[Flow]:
        """Take in what has been queued, without waiting: the flows that are held from now on.

        A flow is told once per hold. Packets of flows that have been released go on their way.
        """
        fresh: list[Flow] = []
        for _ in range(_ROUNDS):
            packets = self._queue.receive()
            self._take(packets, fresh)
            if len(packets) < BATCH:
                break
        return fresh

    async def held(self) -> AsyncIterator[Flow]:
        """The flows that are held, one after the other; one consumer, who does not dally."""
        while True:
            await trio.lowlevel.wait_readable(self._queue.fd)
            for flow in self.receive():
                yield flow

    def release(self, flow: Flow, verdict: Verdict) -> None:
        """Let the packets of *flow* go, in their order and ahead of any later one.

        What decides later ones is the table: entries, or one entry that says PASS or DROP, must
        be in it before. A flow of which nothing is held is left alone.
        """
        key = flow.pack()
        packets = self._waiting.pop(key, None)
        if packets is not None:
            self._let_go(key, packets, dropped=verdict is Verdict.DROP)

    def tick(self) -> None:
        """To be called about once a second: find packets that were lost, forget old records."""
        lost = self._queues.lost().get(self._queue.number, 0)
        if lost > self._lost:
            self._tables.settle(_NO_FLOW, overflowed=lost - self._lost)
            self._tables.left(lost - self._lost)
            self._lost = lost
        for key, before in list(self._leaving.items()):
            if key in self._waiting:
                continue  # held anew
            waiting, kept = self._tables.settle(key)
            if waiting and waiting == before:  # they will not come any more
                waiting, kept = self._tables.settle(key, released=waiting)
            self._leaving[key] = waiting
            if not waiting:
                del self._leaving[key]
                if kept:
                    self._quiet.add(key)
        for key in list(self._quiet):
            _, kept = self._tables.settle(key, quiet=_QUIET)
            if not kept:
                self._quiet.discard(key)

    def close(self, *, keep: bool) -> None:
        """Let go of everything; the agent must count as away by now (its heartbeat is 0).

        What still waits is shown to ``hold`` again, which decides it as for any packet that
        comes while the agent is away: by the policy's ``fail``. With *keep* the rules stay and
        go on deciding so, without they are taken out.
        """
        while packets := self._queue.receive():
            for packet, key in packets:
                self._waiting.setdefault(key, []).append(packet)
            self._judge_again()
        self._judge_again()
        if not keep:
            hold_rules.remove()
        self._queue.close()
        self._queues.close()

    def _judge_again(self) -> None:
        packets = sorted(packet for ids in self._waiting.values() for packet in ids)
        self._waiting.clear()
        self._queue.verdict(packets, REPEAT)
        self._tables.left(len(packets))

    def _take(self, packets: list[tuple[int, bytes]], fresh: list[Flow]) -> None:
        waiting = self._waiting
        late: dict[bytes, list[int]] = {}
        for packet, key in packets:
            ids = waiting.get(key)
            if ids is None:
                ids = late.get(key)
            if ids is not None:
                ids.append(packet)
            elif not key:
                self._queue.verdict((packet,), ACCEPT)  # of somebody else's rule
            elif self._tables.has_entry(key):
                late[key] = [packet]  # came while the flow was being released
            else:
                waiting[key] = [packet]
                fresh.append(Flow.unpack(key))
        for key, ids in late.items():
            self._let_go(key, ids)

    def _let_go(self, key: bytes, packets: list[int], *, dropped: bool = False) -> None:
        self._queue.verdict(packets, DROP if dropped else ACCEPT)
        self._tables.left(len(packets))
        refused = len(packets) if dropped else 0
        if key[36] != Proto.UDP:
            if refused:
                self._tables.settle(key, refused=refused)
            return
        waiting, _ = self._tables.settle(key, released=len(packets), refused=refused)
        if waiting:  # between BPF's count and this queue: they come here and follow at once
            self._leaving.setdefault(key, 0)
        else:
            self._leaving.pop(key, None)
            self._quiet.add(key)


class _Queues:
    """The netfilter queues of the network namespace that the thread is in when this is made."""

    def __init__(self) -> None:
        try:
            self._file = _QUEUES.open()
        except FileNotFoundError:
            # The kernel's module for them is loaded by the first program that asks for one.
            NfQueue(0, 1).close()
            self._file = _QUEUES.open()

    def lost(self) -> dict[int, int]:
        """By the numbers that are in use: how many packets the kernel could not queue."""
        self._file.seek(0)
        queues = {}
        for line in self._file:
            number, _, _, _, _, dropped, user_dropped, *_ = map(int, line.split())
            queues[number] = dropped + user_dropped
        return queues

    def close(self) -> None:
        self._file.close()


def _bind(name: str, limit: int, queues: _Queues) -> NfQueue:
    """A queue whose number follows from the agent's name, or the next one that is free.

    Of the upper half: the numbers that people choose for network functions are small.
    """
    first = zlib.crc32(name.encode())
    taken = queues.lost()
    for step in range(_FIRST_QUEUE):
        number = _FIRST_QUEUE + (first + step) % _FIRST_QUEUE
        if number in taken:
            continue
        try:
            return NfQueue(number, limit)
        except PermissionError as error:
            if number in queues.lost():
                continue  # another process was faster
            raise UnsupportedHost(
                "first packets cannot be held: the kernel refuses a netfilter queue"
                f" ({error.strerror}); run the agent as root"
            ) from error
    raise DatapathError(
        f"first packets cannot be held: netfilter queues {_FIRST_QUEUE} to 65535 are all in use"
    )
