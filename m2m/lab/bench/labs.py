"""The two labs of a comparison: one steered, one that has never heard of M2M.

Both are the same line ``client - mb1 - ... - server`` with the same services. In the plain one no
agent runs, no BPF program is attached and no netfilter rule stands: plain IP forwarding through
the same number of hosts, in the same minute on the same machine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec

from m2m.lab.lab import Lab, open_lab
from m2m.lab.topology import Command, Iperf3, Nginx, Topology, chain


class Pair(NamedTuple):
    """Two labs that are up at the same time."""

    steered: Lab
    plain: Lab


@asynccontextmanager
async def pair(
    middleboxes: int,
    services: Sequence[Iperf3 | Nginx | Command],
    *,
    ports: tuple[int, ...],
    kind: str = "tap",
    agent: Sequence[str] = (),
) -> AsyncIterator[Pair]:
    """Both labs with *services* on the server, whose *ports* the chain leads through.

    *agent* holds further options of every ``m2m-agent``. Raises :exc:`LabError`.
    """

    def topology(name: str) -> Topology:
        line = chain(middleboxes, kind=kind, ports=ports, name=name)
        hosts: dict[str, Any] = {
            host: msgspec.structs.replace(described, agent=list(agent))
            for host, described in line.hosts.items()
        }
        hosts["server"] = msgspec.structs.replace(hosts["server"], run=list(services))
        return msgspec.structs.replace(line, hosts=hosts)

    async with (
        open_lab(topology("benchplain"), agents=False) as plain,
        open_lab(topology("benchm2m")) as steered,
    ):
        yield Pair(steered, plain)


def memory_of(pid: int) -> int:
    """Resident memory of a process in bytes, without what it shares with others."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        private = sum(int(line.split()[1]) for line in file if line.startswith("Private_"))
    return private * 1024
