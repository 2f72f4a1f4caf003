"""What look-up, rewrite and insertion cost in the kernel, on the datapath's own code.

``bench.bpf.c`` is run by BPF_PROG_RUN in batches of 100; the cost of a step is the median over
the batches. Nothing is attached or pinned.
"""

from __future__ import annotations

import statistics
import struct
from pathlib import Path
from typing import NamedTuple

from m2m.datapath import DatapathError, host
from m2m.datapath._bpf import Map, Program
from m2m.datapath.pins import read_object

__all__ = ["Cost", "measure"]

BATCH = 100  # M2M_BATCH
_OBJECT = Path(__file__).parent.parent / "bpf" / "bench.bpf.o"
_WORK = struct.Struct("=QIIIIII")  # struct m2m_bench
_FIRST = bytes(4)


class Cost(NamedTuple):
    """Nanoseconds for one step."""

    entries: int
    lookup: float  # find an entry; one after the other as inserted (§7.1.1)
    lookup_random: float  # the same in no order, which costs cache and TLB misses
    rewrite: float  # take the edit out, judge, count, write a packet's headers and checksums
    insert: float  # one more entry
    samples: int


def measure(entries: int, batches: int = 200) -> Cost:
    """Measure with *entries* in the table; takes about a microsecond for each of them.

    Blocks. Raises :exc:`~m2m.errors.UnsupportedHost` and :exc:`~m2m.datapath.DatapathError`.
    """
    host.check()
    bench = read_object(_OBJECT)
    try:
        bench.set_max_entries("flows", entries + batches * BATCH)
        bench.load()
        work = bench.map("bench")
        work.update(_FIRST, _WORK.pack(0, entries, 1, 0, 0, entries, 0))
        bench.program("bench_fill").run(_PACKET)

        lookup, rewrite = bench.program("bench_lookup"), bench.program("bench_rewrite")
        places = range(0, max(entries - BATCH, 1), BATCH)
        ordered = [places[batch % len(places)] for batch in range(batches)]
        beyond = [entries + batch * BATCH for batch in range(batches)]
        in_order = _time(lookup, work, entries, ordered)
        return Cost(
            entries,
            lookup=in_order,
            lookup_random=_time(lookup, work, entries, ordered, random=True),
            rewrite=_time(rewrite, work, entries, ordered) - in_order,
            insert=_time(bench.program("bench_insert"), work, entries, beyond),
            samples=batches,
        )
    finally:
        bench.close()


def _time(
    step: Program, work: Map, entries: int, firsts: list[int], *, random: bool = False
) -> float:
    """The median of each batch's mean, in ns; one batch from each of *firsts* on."""
    samples: list[float] = []
    for seed, first in enumerate(firsts):
        work.update(_FIRST, _WORK.pack(0, entries, seed * 7919, 0, first, 0, random))
        step.run(_PACKET)
        value = work.lookup(_FIRST)
        assert value is not None
        spent, _, _, done, *_ = _WORK.unpack(value)
        if done != BATCH:
            raise DatapathError(f"bench: only {done} of {BATCH} steps went well")
        samples.append(spent / BATCH)
    return statistics.median(samples)


def _packet() -> bytes:
    """A TCP segment in an Ethernet frame, as the programs meet it."""
    ethernet = bytes(12) + b"\x08\x00"
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 1500, 1, 0, 64, 6, 0, bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
    )
    tcp = struct.pack("!HHIIBBHHH", 61000, 63500, 1, 1, 0x50, 0x10, 65535, 0, 0)
    return ethernet + ip + tcp + bytes(1460)


_PACKET = _packet()
