"""What look-up, rewrite and insertion cost in the kernel, on the datapath's own code.

``bench.bpf.c`` is run by BPF_PROG_RUN and reads the clock after every 100 steps; the cost of a
step is the median over these batches. Nothing is attached or pinned.
"""

from __future__ import annotations

import statistics
import struct
import sys
from pathlib import Path
from typing import NamedTuple

from m2m.datapath import DatapathError, host, layout
from m2m.datapath._bpf import Object
from m2m.datapath.pins import read_object
from m2m.datapath.tables import Config

__all__ = ["Cost", "measure"]

BATCH = 100  # M2M_BATCH
_MOST = 100_000  # steps in a series, M2M_MAX_BATCHES of them: as many as in the paper (§7.1.1)
_INSERTED = 20_000
_OBJECT = Path(__file__).parent.parent / "bpf" / "bench.bpf.o"
_JOB = struct.Struct("=IIIII")  # struct m2m_bench
_INDEX = struct.Struct("=I")


class Cost(NamedTuple):
    """Nanoseconds for one step."""

    entries: int
    lookup: float  # find an entry; one after the other as inserted (§7.1.1)
    lookup_random: float  # the same in no order, which costs cache and TLB misses
    rewrite: float  # take a packet apart, judge, count, write its headers and checksums
    insert: float  # one more entry


def measure(entries: int) -> Cost:
    """Measure with *entries* in the table; takes about a microsecond for each of them.

    Blocks. Raises :exc:`~m2m.errors.UnsupportedHost` and :exc:`~m2m.datapath.DatapathError`.
    """
    host.check()
    bench = read_object(_OBJECT)
    try:
        bench.set_max_entries("flows", entries + _INSERTED)
        bench.load()
        config = Config(bench.map("config"))
        config[layout.JIFFY] = layout.jiffy()
        config[layout.IN_PORT_LO], config[layout.IN_PORT_HI] = 0, 65535
        config.close()
        series = _Series(bench, entries)
        series.run("fill", 0, entries)
        lookup = series.run("lookup", 0, entries)
        return Cost(
            entries,
            lookup=lookup,
            lookup_random=series.run("lookup", 0, _MOST, random=True),
            rewrite=series.run("rewrite", 0, entries) - lookup,
            insert=series.run("insert", entries, _INSERTED),
        )
    finally:
        bench.close()


class _Series:
    """Steps one after the other in the kernel, timed in batches."""

    def __init__(self, bench: Object, entries: int) -> None:
        self._bench = bench
        self._entries = entries
        self._nothing = 0.0
        self._nothing = self.run("nothing", 0, _MOST)

    def run(self, step: str, first: int, count: int, *, random: bool = False) -> float:
        """The median of each batch's mean, in ns, for *count* entries from number *first* on."""
        job, times = self._bench.map("bench"), self._bench.map("times")
        if step != "fill":
            count = min(count, _MOST)
        job.update(_INDEX.pack(0), _JOB.pack(self._entries, first, count, random, 0))
        self._bench.program(f"bench_{step}").run(_PACKET)
        value = job.lookup(_INDEX.pack(0))
        assert value is not None
        *_, done = _JOB.unpack(value)
        if done != count:
            raise DatapathError(f"bench: only {done} of {count} steps ({step}) went well")
        samples: list[int] = []
        for batch in range(min(count, _MOST) // BATCH):
            time = times.lookup(_INDEX.pack(batch))
            assert time is not None
            samples.append(int.from_bytes(time, sys.byteorder))
        return statistics.median(samples) / BATCH - self._nothing


def _packet() -> bytes:
    """A TCP segment in an Ethernet frame, as the programs meet it."""
    ethernet = bytes(12) + b"\x08\x00"
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 1500, 1, 0, 64, 6, 0, bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
    )
    tcp = struct.pack("!HHIIBBHHH", 61000, 63500, 1, 1, 0x50, 0x10, 65535, 0, 0)
    return ethernet + ip + tcp + bytes(1460)


_PACKET = _packet()
