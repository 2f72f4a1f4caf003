"""Bulk data through one middlebox, beside plain IP forwarding through the same kind of host."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import trio

from m2m.lab.bench.labs import pair
from m2m.lab.bench.report import Plan, Result, Samples, Say, interleave, joined
from m2m.lab.bench.stream import stream
from m2m.lab.lab import Lab
from m2m.lab.netns import receive_on
from m2m.lab.topology import Iperf3

_PORT = 5201
_UNSTEERED = 5202  # matches no policy: what M2M costs everybody else
# Of each flow, by their number. Windows that grow overrun the queue between two namespaces (1000
# packets): what is lost there, and how cold data are when they are read, then counts as much as
# what is compared.
_WINDOWS = {1: "200K", 4: "200K", 16: "200K", 64: "50K"}
_OFFLOADS = ("tso", "gso", "gro", "tx", "rx")
# Gbit/s of one core, beside 14.6 of plain forwarding (§7.1)
_PAPER = {"tap, 1 flow, offloads on": 14.2}


async def run(plan: Plan, say: Say) -> list[Result]:
    """Gbit/s for 1 to 64 flows, offloads on and off.

    One transfer in each lab, of which one flows at a time: they are set against each other ten
    times a second. A shared machine changes its speed by a third, but not that often.
    """
    samples: dict[str, list[Samples]] = {}
    # Two labs of the same kind differ by some percent, as their memory happens to lie: so, several.
    for again in range(plan.pick(3, 1)):
        for kind in plan.pick(("tap", "inline"), ("tap",)):
            services = [Iperf3(ports=[_PORT, _UNSTEERED])]
            async with pair(1, services, ports=(_PORT,), kind=kind) as labs:
                for lab in labs:
                    await _place(lab)
                for offloads in ("on", "off"):
                    for lab in labs:
                        await _set_offloads(lab, offloads)
                    for name, port, flows, window in _rows(plan, kind, offloads):
                        say(f"{name} ({again + 1})")
                        # Nor are two transfers alike: windows grow as luck has it.
                        for _ in range(3):
                            async with (
                                stream(labs.steered, port, flows, window) as ours,
                                stream(labs.plain, port, flows, window) as peer,
                            ):
                                turns = await interleave(ours.turn, peer.turn, 5)
                            samples.setdefault(name, []).append(turns)
    return [
        Result.of(name, "Gbit/s", joined(each), "plain forwarding", _PAPER.get(name))
        for name, each in samples.items()
    ]


def _rows(plan: Plan, kind: str, offloads: str) -> Iterator[tuple[str, int, int, str | None]]:
    """Name, port, number of flows and window of each row."""
    for flows in plan.pick((1, 4, 16, 64), (1, 16)) if kind == "tap" else (1,):
        plural = "flow" if flows == 1 else "flows"
        yield f"{kind}, {flows} {plural}, offloads {offloads}", _PORT, flows, _WINDOWS[flows]
        if flows == 64:
            name = f"{kind}, {flows} {plural}, windows grow, offloads {offloads}"
            yield name, _PORT, flows, None
    if kind == "tap":
        yield f"unsteered, 1 flow, offloads {offloads}", _UNSTEERED, 1, _WINDOWS[1]


async def _place(lab: Lab) -> None:
    """Give the client's work to one processor and that of all other hosts to the next.

    Left to the kernel, what forwards a packet is the processor that sent it or the one that
    acknowledged the packet before: the same transfer then runs at 12 or at 35 Gbit/s, as it
    happens to begin. So all that middlebox and server have to do is on one processor, and counts.

    Not measured: the server's share on the client's processor. Steered flows then reach less (0.85
    to 0.93). Between namespaces a packet keeps its sender's socket until some host's IP layer takes
    it: here the server's instead of the middlebox's, and that work moves to the busier processor.
    A wire hands on no sockets.
    """
    for host in lab.topology.hosts:
        devices = [link.other(host) for link in lab.topology.links_of(host)]
        await receive_on(lab.name, host, devices, 0 if host == "client" else 1)


async def _set_offloads(lab: Lab, state: str) -> None:
    """Switch what a network card would do for the kernel, on every link of the lab."""
    wanted = [word for name in _OFFLOADS for word in (name, state)]
    async with trio.open_nursery() as nursery:
        for link in lab.topology.links:
            for host in link.between:
                command = ("ethtool", "-K", link.other(host), *wanted)
                nursery.start_soon(partial(lab.run, host, *command))
