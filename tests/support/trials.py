"""Trials as a lab would have found them, for tests of what is made of them."""

from __future__ import annotations

from typing import Any

from m2m.agent.api import ChangeReport
from m2m.lab.passage import Passage
from m2m.lab.traffic import bulk, datagrams
from m2m.lab.traffic.numbered import Account
from m2m.lab.trial import Trial


def report(session: str = "1", mode: str = "op", **other: Any) -> ChangeReport:
    """A change that was made in a millisecond."""
    values = {"duration": 0.001, "total": 0.002, **other}
    return ChangeReport(session, mode, ("a", "x/b", "d"), ("a", "x/c", "d"), **values)


def refusal(why: str, by: str) -> ChangeReport:
    return report(duration=None, total=None, error=why, by=by)


def tcp_trial(mode: str = "op", **other: Any) -> Trial:
    """A trial in which nothing went wrong; *other* fields may say else."""
    values: dict[str, Any] = {
        "proto": "tcp", "mode": mode, "flows": 1,
        "reports": [report(mode=mode), report(mode=mode)],
        "sent": bulk.Report(1, 1.0, up=bulk.Way(bytes=1000), down=bulk.Way(bytes=500)),
        "wire": Passage(packets=10, units=1500),
        "stretches": [3, 3],
        "taken_for_lost": 0,
        **other,
    }  # fmt: skip
    return Trial(**values)


def udp_trial(mode: str = "op", **other: Any) -> Trial:
    up, down = Account(sent=10, arrived=10), Account(sent=10, arrived=10)
    values = {"sent": datagrams.Report(1, 1.0, 1e6, up, down), "proto": "udp", **other}
    return tcp_trial(mode, **values)
