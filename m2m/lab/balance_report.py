"""How the scenario of balance looks on a terminal."""

from __future__ import annotations

import statistics
from pathlib import Path

from rich.console import Console
from rich.padding import Padding

from m2m.lab import demo_report
from m2m.lab.balance_results import Report, Way
from m2m.lab.prefix_flows import NETWORK, PREFIXES, SIZES, Weights

_INDENT = (0, 0, 0, 2)
_DRAWING = """
                      ┌── [cyan]nf1[/] ──┐
    [cyan]clients[/] ── edge ──┤         ├── far ── [cyan]srv[/]
                      └── [cyan]nf2[/] ──┘
"""


def opening(console: Console, draws: int, flows: int) -> None:
    """The title, the drawing, and what is going to be sent."""
    least, most = (size // 1000 for size in SIZES)
    console.print("\n[bold]M2M balance[/]: two instances of one network function share the load")
    console.print(_DRAWING)
    console.print(f"  Clients are in {PREFIXES} prefixes of {NETWORK}. Prefixes have weights, by")
    console.print(
        f"  which {flows} TCP connections are drawn. They fetch {least} to {most} kB each,"
    )
    console.print(
        "  and are open at once. The same ones are made four times: without M2M, edge and"
    )
    console.print(
        "  far split clients by one bit of their prefix, the most significant one, or the"
    )
    console.print("  one that is best for the weights; then the agent at edge, a gateway, chooses")
    console.print("  for each flow.")
    console.print(f"  Draws: {draws} of each kind of weights. nf1 and nf2 count bytes and flows.")


def table(console: Console, report: Report) -> None:
    """The busier instance's share, in each way."""
    demo_report.heading(console, "What the busier one of the two has: 50% is even")
    console.print()
    rows = demo_report.plain_table(
        "weights", "instance chosen by", ">bytes", ">worst", ">flows", ">worst", ">rules"
    )
    for weights in Weights:
        for n, way in enumerate(Way):
            rounds = report.of(weights, way)
            shown = []
            for shares in ([one.byte_share for one in rounds], [one.flow_share for one in rounds]):
                shown += [f"{statistics.fmean(shares):.1%}", f"{max(shares):.1%}"]
            if way is Way.LEAST:
                shown = [f"[bold]{one}[/]" for one in shown]
            rules = max(one.rules for one in rounds)
            rows.add_row("" if n else weights, way, *shown, f"{rules}")
    console.print(Padding(rows, _INDENT))
    console.print(
        "  [dim]Shares: mean of the draws, and the worst draw. Rules: those of both routers.[/]"
    )


def summary(console: Console, report: Report, figures: Path) -> None:
    """Whether everything held, and where the picture is."""
    demo_report.verdict(console, report.checks)
    console.print(f"In {figures}: balance.png shows it, balance.csv has every round.")
