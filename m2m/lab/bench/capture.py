"""What restoring costs a program that captures: the patched libpcap beside the system's own.

Both read such packets, from rings of the same size, by turns within one process, which is
``nf_adapters/pcap/bench.c``. Packets are of as many flows as there are names, each at random:
nothing is in a cache that would not be there among so many sessions. Nothing is compared where
packets were lost.
"""

from __future__ import annotations

import ctypes.util
import itertools
import tempfile
from pathlib import Path
from typing import NamedTuple

import trio

from m2m.errors import M2MError
from m2m.lab.bench.report import Plan, Result, Samples, Say
from m2m.protocol.flow import Flow
from nf_adapters import pcap
from nf_adapters.pcap.library import NAMES, library_directory

_ROOM = Path(pcap.__file__).parent
_ROOT = _ROOM.parents[1]
_MEMORY = "/dev/shm"  # the mapping lies in memory, as in /run
_SIZES = (0, 1_000, 100_000)
_WIRE = Flow.of(17, "10.0.2.1", 40000, "10.0.3.1", 61000)
_NAME = Flow.of(17, "10.0.1.1", 40000, "10.0.9.1", 61000)


class _Case(NamedTuple):
    names: int
    filtered: bool
    immediate: bool

    def __str__(self) -> str:
        text = f"{self.names:,} names, {'a filter' if self.filtered else 'no filter'}"
        return text + (", immediate mode" if self.immediate else "")


async def run(plan: Plan, say: Say) -> list[Result]:
    """Packets per second of one processor that sends, receives and reads; and reading alone."""
    results: list[Result] = []
    with (
        tempfile.TemporaryDirectory(prefix="m2m-bench-") as made,
        tempfile.TemporaryDirectory(prefix="m2m-bench-", dir=_MEMORY) as memory,
    ):
        program = Path(made) / "bench"
        await trio.run_process(["gcc", "-O2", "-o", program, _ROOM / "bench.c", "-ldl"])
        results += await _restoring(Path(made) / "restore", say, plan)
        for size in _SIZES:
            mapping = Path(memory) / f"{size}.map"
            await trio.to_thread.run_sync(_publish, mapping, size)
            for immediate in (False, True) if size == max(_SIZES) else (False,):
                for filtered in (False, True):
                    case = _Case(size, filtered, immediate)
                    say(str(case))
                    results += await _measure(program, mapping, case, plan)
    return results


async def _restoring(program: Path, say: Say, plan: Plan) -> list[Result]:
    """The library alone, as libpcap calls it."""
    includes = [f"-I{_ROOT / room}" for room in ("kmod", "m2m/datapath", "nf_adapters/pcap")]
    source = _ROOM / "bench_restore.c"
    await trio.run_process(["gcc", "-O2", *includes, "-o", program, source])
    times: dict[int, list[float]] = {1_000: [], 100_000: []}
    for number in range(plan.pick(7, 2)):
        for size in times if number % 2 == 0 else reversed(times):
            say(f"restoring, {size:,} names")
            done = await trio.run_process([str(program), str(size)], capture_stdout=True)
            times[size].append(float(done.stdout))
    few, many = times.values()
    samples = Samples(tuple(many), tuple(few))
    return [
        Result.of("restoring a frame, 100,000 names", "ns", samples, "the same with 1,000 names")
    ]


def _publish(path: Path, size: int) -> None:
    # four tuples of each session, as at a middlebox
    table = pcap.Mapping(path, max(size // 4, 1)).table
    moment = pcap.now()
    for number in range(size):
        sport, dport = 40000 + number % 20000, 61000 + number // 20000
        wire, name = (each._replace(sport=sport, dport=dport) for each in (_WIRE, _NAME))
        if table.publish(wire, name, False, moment) != 1:
            raise M2MError(f"there was no room for {size} names")


async def _measure(program: Path, mapping: Path, case: _Case, plan: Plan) -> list[Result]:
    stock = ctypes.util.find_library("pcap")
    if stock is None:
        raise M2MError("the system has no libpcap to compare with: apt-get install libpcap0.8")
    patched = library_directory() / NAMES[0]
    flows, packets = max(case.names, 1_000), 8_000
    text = "host 10.0.1.1" if case.names else "host 10.0.2.1"
    libraries = [
        (patched, mapping, text if case.filtered else ""),
        (stock, "off", "host 10.0.2.1" if case.filtered else ""),
    ]
    numbers = plan.pick(250, 8), flows, packets
    words = [program, "v2" if case.immediate else "v3", *numbers, *itertools.chain(*libraries)]
    done = await trio.run_process(
        [str(word) for word in words], capture_stdout=True, check=False, capture_stderr=True
    )
    if done.returncode:
        raise M2MError(f"{case}: not compared: {done.stderr.decode().strip()}")
    rounds = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    reading, all_, peer_reading, peer_all = zip(*rounds, strict=True)
    return [
        Result.of(
            f"captured per second of CPU, {case}", "1/s",
            Samples(tuple(1e9 / one for one in all_), tuple(1e9 / one for one in peer_all)),
            "the system's libpcap",
        ),
        Result.of(
            f"reading a packet, {case}", "ns",
            Samples(reading, peer_reading),
            "the system's libpcap",
        ),
    ]  # fmt: skip
