"""Findings of the lab of mobility, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from m2m.lab.mobile_trial import Trial
from m2m.lab.mobile_witness import Seen
from m2m.lab.moves import Moved
from m2m.lab.probing import Probed
from m2m.lab.ssh import Echoed
from m2m.lab.traffic import bulk
from m2m.lab.traffic.numbered import Account
from m2m.lab.traffic.probes import Report, Stream

UE, SERVER = "10.1.0.2", "10.4.0.2"
FLOW = ("tcp", UE, 40000, SERVER, 7002)
BACK = ("tcp", SERVER, 7002, UE, 40000)


def stream(arrivals: Sequence[float], flow: int = 0, **other: Any) -> Stream:
    number = len(arrivals)
    values = {"account": Account(sent=number, arrived=number), **other}
    return Stream(flow, probe=True, arrivals=list(arrivals), **values)


def probed(proto: str = "udp", **other: Any) -> Probed:
    """A move at 1 s, of which each way heard nothing for 1.5 ms."""
    steady = [0.5 + n / 2000 for n in range(1000)] + [1.001 + n / 2000 for n in range(1000)]
    moves = [Moved("cell-a to cell-b", 1.0, 1.0005)]
    way = Report(proto, 0.0005, [stream(steady)], end=1.5005)
    values: dict[str, Any] = {"moves": moves, "up": way, "down": way, **other}
    return Probed(proto, 1, 0.0005, **values)


def trial(**other: Any) -> Trial:
    """One in which nothing went wrong; *other* fields may say else."""
    values: dict[str, Any] = {
        "udp": probed("udp"), "tcp": probed("tcp"),
        "sent": bulk.Report(1, 1.0, up=bulk.Way(bytes=1000), down=bulk.Way(bytes=500)),
        "echoed": Echoed(lines=9, slowest=0.01),
        "seen": Seen(known=20, strange=0, flows=frozenset({FLOW, BACK})),
        **other,
    }  # fmt: skip
    return Trial("a move", **values)
