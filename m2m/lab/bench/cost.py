"""What the kernel's steps cost per packet or session, at 100, 100 k and 1 M entries.

The peer of every figure is the same step with 100 entries in the table, which the processor's
nearest cache holds: the ratio is what size costs.
"""

from __future__ import annotations

from collections import defaultdict

import trio

from m2m.datapath.bench import measure
from m2m.lab.bench.report import Plan, Result, Samples, Say

_STEPS = {
    "lookup": "lookup, in order",  # of insertion, as the paper measures
    "lookup_random": "lookup, at random",
    "rewrite": "rewrite",
    "insert": "insert",
}
_SMALL = 100
_PAPER_SIZE = 100_000
_PAPER = {"lookup": 131.0, "rewrite": 214.0, "insert": 251.0}  # ns (§7.1.1)


async def run(plan: Plan, say: Say) -> list[Result]:
    """Nanoseconds for each step, run in the kernel (BPF_PROG_RUN) on the datapath's own code."""
    sizes = (_SMALL, _PAPER_SIZE, 1_000_000)
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    for number in range(plan.pick(5, 2)):
        for size in sizes if number % 2 == 0 else reversed(sizes):
            say(f"{size:,} entries")
            cost = await trio.to_thread.run_sync(measure, size)
            for step in _STEPS:
                times[step, size].append(getattr(cost, step))
    return [
        Result.of(
            f"{name}, {size:,} entries",
            "ns",
            Samples(tuple(times[step, size]), tuple(times[step, _SMALL])),
            "the same with 100 entries",
            _PAPER.get(step) if size == _PAPER_SIZE else None,
        )
        for step, name in _STEPS.items()
        for size in sizes[1:]
    ]
