"""What a chain adds to connect(): steered and plain connects by turns, in two labs."""

from __future__ import annotations

import sys

import msgspec

from m2m.lab.bench.labs import pair
from m2m.lab.bench.report import Plan, Result, Samples, Say, percentile
from m2m.lab.lab import Lab
from m2m.lab.topology import Nginx

_PORT = 80
_PAPER = 688.0  # µs through one middlebox, out of band (§7.2.1)


async def run(plan: Plan, say: Say) -> list[Result]:
    """Microseconds added through 1 to 4 middleboxes, median and 99th percentile."""
    results: list[Result] = []
    rounds, connects = plan.pick((10, 100), (3, 50))
    for middleboxes in plan.pick((1, 2, 3, 4), (1, 4)):
        services = [Nginx(ports=[_PORT], pages={"index.html": "x"})]
        async with pair(middleboxes, services, ports=(_PORT,)) as (steered, plain):
            await _connects(steered, 20)  # routes, neighbours and challenges of the first contact
            await _connects(plain, 20)
            through: list[float] = []
            direct: list[float] = []
            for number in range(rounds):
                say(f"{middleboxes} middleboxes, round {number + 1} of {rounds}")
                through += await _connects(steered, connects)
                direct += await _connects(plain, connects)
        for label, rank in (("p50", 0.50), ("p99", 0.99)):
            base = percentile(direct, rank)
            added = percentile(through, rank) - base
            plural = "middlebox" if middleboxes == 1 else "middleboxes"
            results.append(
                Result(
                    name=f"set-up added, {middleboxes} {plural}, {label}",
                    unit="µs",
                    ours=added,
                    peer=base,
                    peer_name="a plain connect",
                    ratio=added / base,
                    samples=Samples(tuple(through), tuple(direct)),
                    paper=_PAPER if middleboxes == 1 and label == "p50" else None,
                )
            )
    return results


async def _connects(lab: Lab, count: int) -> list[float]:
    """Microseconds of each connect from the client to the server."""
    done = await lab.run(
        "client", sys.executable, "-m", "m2m.lab.probe",
        lab.address("server"), str(count), str(_PORT),
    )  # fmt: skip
    return msgspec.json.decode(done.out, type=dict[int, list[float]])[_PORT]
