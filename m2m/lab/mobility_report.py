"""How a scenario of mobility looks on a terminal: the path while it changes, and what it took."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.padding import Padding
from rich.text import Text

from m2m.agent.api import HopReport, PathInfo
from m2m.lab import demo_report
from m2m.lab.handover import CELLS, RACKS
from m2m.lab.probing import INTERVAL
from m2m.lab.topology import Topology

if TYPE_CHECKING:
    from m2m.lab.mobility import Report
    from m2m.lab.moves import Moved

_INDENT = (0, 0, 0, 2)
_DRAWING = """
         ┌─ {cells[0]} ─┐        ┌─ {racks[0]} ─┐
    [cyan]ue[/] ──┤          ├─ core ─┤          ├── [cyan]srv[/]
         └─ {cells[1]} ─┘  │  │  └─ {racks[1]} ─┘
                      [cyan]fw  ids[/]
"""


def opening(console: Console, name: str, about: str, topology: Topology) -> None:
    """The title and the drawing."""
    console.print(f"\n[bold]M2M {name}[/]: {about}")
    console.print(_DRAWING.format(cells=CELLS, racks=RACKS))
    rate = topology.links[0].rate or "no limit"
    console.print(f"  {rate} on every link. Cells, core and racks are plain routers. Meanwhile")
    console.print("  there is a checked transfer both ways, an SSH session, and probes of UDP and")
    console.print(f"  TCP that send a numbered record each {INTERVAL:g} ms both ways.")


class LivePath:
    """The path of the transfer's session, redrawn after each move."""

    def __init__(self, view: Live) -> None:
        self._view = view
        self._moves = 0

    def update(self, moved: Moved, path: PathInfo | None) -> None:
        """Show where the session goes now."""
        self._moves += 1
        self.show(described(self._moves, moved, path))

    def show(self, lines: Text) -> None:
        """Show this instead."""
        self._view.update(lines, refresh=True)


@contextmanager
def live(console: Console) -> Iterator[LivePath]:
    """A live view in the block; its last state stays. Not on a terminal, only that is printed."""
    with Live(Text("  …"), console=console, auto_refresh=True, refresh_per_second=10) as view:
        yield LivePath(view)


def described(number: int, moved: Moved, path: PathInfo | None) -> Text:
    """A move, and each leg of the path after it with both of its addresses."""
    title = f"  {number}. {moved.what}, {moved.outage * 1e3:.1f} ms without a link\n"
    return with_path(Text(title), path)


def with_path(lines: Text, path: PathInfo | None) -> Text:
    """*lines*, and each leg of the path with both of its addresses."""
    if path is None or not path.hops:
        lines.append("     the path cannot be told now", style="dim")
        return lines
    for hop in path.hops:
        lines.append(f"     {_name(hop):4}", style="bold cyan")
        if hop.right is not None:
            lines.append(f" {hop.right.source} → {hop.right.destination}")
            seen = hop.to_server
            lines.append(f"  {seen.packets:,} packets" if seen else "", style="dim")
            lines.append("\n")
    lines.append(f"     {path.problem}" if path.problem else "", style="red")
    return lines


def _name(hop: HopReport) -> str:
    return hop.host.partition("-")[2] or hop.host


def summary(console: Console, report: Report) -> None:
    """The table of all trials, and whether everything held."""
    demo_report.heading(console, "What it took")
    table = demo_report.plain_table(
        "ms beyond the link's own outage", ">moves", ">outage", ">UDP", ">worst", ">lost",
        ">TCP", ">worst", ">MB", ">echoes",
    )  # fmt: skip
    table.columns[0].no_wrap = False  # what a narrow terminal has no room for goes into more lines
    for row in report.trials:
        table.add_row(
            row.what.partition(":")[0], f"{row.moves}", f"{row.outage:.1f}",
            f"{row.udp_p50:.1f}", f"{row.udp_worst:.1f}", f"{row.udp_lost}",
            f"{row.tcp_p50:.1f}", f"{row.tcp_worst:.1f}", f"{row.bytes / 1e6:,.0f}",
            f"{row.lines}",
        )  # fmt: skip
    console.print(Padding(table, _INDENT))
    console.print("  [dim]Medians. Lost are datagrams, those of the link's own outage included.[/]")
    demo_report.verdict(console, report.checks)
