"""How a scenario of reconfiguration looks on a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding

from m2m.lab import demo_report
from m2m.lab.demo_results import Check
from m2m.lab.topology import Topology
from m2m.lab.traffic import bulk
from m2m.lab.trial import Trial

_INDENT = (0, 0, 0, 2)
_DRAWING = """
            ┌── [cyan]b[/] ──┐
    [cyan]a[/] ──────┤   │   ├────── [cyan]d[/]     {rate} on every link
            └── [cyan]c[/] ──┘
"""


def opening(console: Console, name: str, about: str, topology: Topology) -> None:
    """The title and the drawing."""
    console.print(f"\n[bold]M2M {name}[/]: {about}")
    console.print(_DRAWING.format(rate=topology.links[0].rate or "no limit"))
    others = [host for host in topology.hosts if host[0] in "lr" and host[1:].isdigit()]
    if others:
        console.print(f"  On both paths as well: {', '.join(others)}")
    console.print("  Client a and server d exchange checked bytes or numbered datagrams, as fast")
    console.print("  as TCP can, while the chain of their session is changed.")


def summary(console: Console, trials: Sequence[Trial], checks: Sequence[Check]) -> None:
    """The table of all trials, and whether everything held."""
    demo_report.heading(console, "What it took")
    table = demo_report.plain_table(
        "", ">changes", ">median ms", ">slowest", ">held", ">lost", ">twice", ">late", ">again",
    )  # fmt: skip
    for trial in trials:
        times = [report.duration * 1e3 for report in trial.done if report.duration is not None]
        wire = trial.wire
        again = "–"
        if isinstance(trial.sent, bulk.Report):
            ways = [way for way in (trial.sent.up, trial.sent.down) if way is not None]
            again = f"{sum(way.retransmitted for way in ways)}"
        table.add_row(
            f"{trial.proto} {trial.mode}",
            f"{len(trial.done)}",
            f"{statistics.median(times):.2f}" if times else "–",
            f"{max(times):.2f}" if times else "–",
            f"{trial.held}",
            f"{wire.lost + wire.lost_acks}",
            f"{wire.duplicated}",
            f"{wire.reordered}",
            again,
        )
    console.print(Padding(table, _INDENT))
    console.print(
        "  [dim]Packets: held by agents; lost, come twice and late by the wire. TCP segments:"
        "\n  sent again by the kernels at both ends.[/]"
    )
    demo_report.verdict(console, checks)
