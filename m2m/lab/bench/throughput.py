"""Bulk data through one middlebox, beside plain IP forwarding through the same kind of host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
import trio

from m2m.lab.bench.labs import pair
from m2m.lab.bench.report import Plan, Result, Samples, Say, interleave, joined
from m2m.lab.lab import Lab
from m2m.lab.netns import LabError
from m2m.lab.topology import Iperf3

_PORT = 5201
_UNSTEERED = 5202  # matches no policy: what M2M costs everybody else
# Client and server on a processor of their own, in both labs: left to the scheduler, the same run
# gives half or all of the rate as it happens to place them.
_APART = ("-A", "0,1") if (os.cpu_count() or 1) > 1 else ()
_TRIES = 20
_OFFLOADS = ("tso", "gso", "gro", "tx", "rx")
# Gbit/s of one core, beside 14.6 of plain forwarding (§7.1)
_PAPER = {"tap, 1 flow, offloads on": 14.2}


async def run(plan: Plan, say: Say) -> list[Result]:
    """Gbit/s for 1 to 64 flows, offloads on and off."""
    samples: dict[str, list[Samples]] = {}
    # Two labs of the same kind differ by some percent, as their memory happens to lie: so, several.
    for again in range(plan.pick(3, 1)):
        for kind in plan.pick(("tap", "inline"), ("tap",)):
            services = [Iperf3(ports=[_PORT, _UNSTEERED])]
            async with pair(1, services, ports=(_PORT,), kind=kind) as labs:
                for offloads in ("on", "off"):
                    for lab in labs:
                        await _set_offloads(lab, offloads)
                    for name, port, flows in _rows(plan, kind, offloads):
                        say(f"{name} ({again + 1})")
                        samples.setdefault(name, []).append(
                            await interleave(
                                partial(_rate, labs.steered, port, flows),
                                partial(_rate, labs.plain, port, flows),
                                plan.pick(4, 2),
                            )
                        )
    return [
        Result.of(name, "Gbit/s", joined(each), "plain forwarding", _PAPER.get(name))
        for name, each in samples.items()
    ]


def _rows(plan: Plan, kind: str, offloads: str) -> Iterator[tuple[str, int, int]]:
    """Name, port and number of flows of each row."""
    for flows in plan.pick((1, 4, 16, 64), (1, 16)) if kind == "tap" else (1,):
        plural = "flow" if flows == 1 else "flows"
        yield f"{kind}, {flows} {plural}, offloads {offloads}", _PORT, flows
    if kind == "tap":
        yield f"unsteered, 1 flow, offloads {offloads}", _UNSTEERED, 1


async def _rate(lab: Lab, port: int, flows: int) -> float:
    """Gbit/s that the server has received within a second."""
    said: dict[str, Any] = {}
    for _ in range(_TRIES):
        done = await lab.run(
            "client", "iperf3", "-J", "-c", lab.address("server"), "-p", str(port),
            "-P", str(flows), "-t", "1", *_APART,
        )  # fmt: skip
        said = msgspec.json.decode(done.out)
        # The server of the last run can be slower to end than its client.
        if "busy" not in said.get("error", ""):
            break
    try:
        return float(said["end"]["sum_received"]["bits_per_second"]) / 1e9
    except KeyError:
        why = said.get("error", "no sum of what was received")
        raise LabError(f"iperf3 in lab {lab.topology.name}, {flows} flows: {why}") from None


async def _set_offloads(lab: Lab, state: str) -> None:
    """Switch what a network card would do for the kernel, on every link of the lab."""
    wanted = [word for name in _OFFLOADS for word in (name, state)]
    async with trio.open_nursery() as nursery:
        for link in lab.topology.links:
            for host in link.between:
                command = ("ethtool", "-K", link.other(host), *wanted)
                nursery.start_soon(partial(lab.run, host, *command))
