"""How the demo looks on a terminal, 80 to 100 columns wide."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from m2m.lab.demo_results import Check, Compared, Report
from m2m.lab.topology import Topology

WIDTH = 96
_INDENT = (0, 0, 0, 2)


def opening(console: Console, topology: Topology) -> None:
    """The drawing and the policy."""
    address = {host: topology.address(host) for host in topology.hosts}
    console.print()
    console.print("[bold]M2M demo[/]: a service chain between a client and a web server")
    drawing = f"""
                         [cyan]control[/]  {address["control"]}  policy server
                            │
    [cyan]client[/] ───────────────── r0 ───────────────── [cyan]server[/]  nginx, iperf3
    {address["client"]:12}           │  │           {address["server"]:>12}
                       ┌───┘  └───┐
                   [cyan]firewall[/]      [cyan]ids[/]
          nftables {address["firewall"]:10}    {address["ids"]}  tcpdump
"""
    console.print(drawing)
    console.print("  Each host is a network namespace. r0 is a plain router; client, firewall, ids")
    console.print("  and server run an agent each.")
    assert topology.policy is not None
    heading(console, "Policy file")
    for line in (topology.policy.text or "").strip().splitlines():
        console.print(Text(f"  {line}", style="dim" if line.startswith("#") else "green"))


def heading(console: Console, title: str) -> None:
    """The title of a step."""
    console.print()
    console.print(f"[bold]■ {title}[/]")


def checks(console: Console, found: Sequence[Check]) -> None:
    """A line for each check: what, and what was seen."""
    for check in found:
        mark = "[green]✓[/]" if check.held else "[bold red]✗[/]"
        console.print(f"  {mark} {escape(check.what)}")
        if check.seen:
            style = "dim" if check.held else "red"
            console.print(Text(f"      {check.seen}", style=style))


def verdict(console: Console, found: Sequence[Check]) -> bool:
    """Whether all held, in one look; the failed ones once more."""
    failed = [check for check in found if not check.held]
    console.print()
    if failed:
        console.print(f"[bold red]{len(failed)} of {len(found)} checks failed:[/]")
        checks(console, failed)
    else:
        console.print(f"[bold green]All {len(found)} checks held.[/]")
    return not failed


def policy(console: Console, report: Report) -> None:
    """What the client's agent has been told."""
    if report.policy is None:
        return
    for nf in report.policy.nfs:
        where = ", ".join(f"{one.name} at {one.address}" for one in nf.instances)
        console.print(f"  {nf.name}: {nf.kind}, {where}")


def chain(console: Console, report: Report) -> None:
    """What was on the links, and what the NFs saw."""
    _links(console, report)
    _nfs(console, report)


def live(console: Console, report: Report) -> None:
    """The path of the live session."""
    path = report.path
    if path is None:
        return
    console.print(f"  m2mctl session {path.session}")
    console.print()
    for hop in path.hops:
        name = hop.host.partition("-")[2] or hop.host
        role = {"client": "", "server": ""}.get(hop.position, hop.position)
        sees = "" if hop.supersession is None or hop.position == "tap" else str(hop.supersession)
        console.print(f"    [bold cyan]{name:9}[/] {role:7} {sees}", highlight=False)
        if hop.right is not None:
            seen = hop.to_server
            count = f"{seen.packets:,} packets" if seen else ""
            console.print(f"      [cyan]│[/]   {hop.right!s:46}[dim]{count}[/]")
    console.print()


def _nfs(console: Console, report: Report) -> None:
    table = plain_table("network function", "sees", ">packets", "of curl's connection, as")
    for nf in report.nfs:
        table.add_row(f"{nf.nf} ({nf.kind})", nf.sees, f"{nf.packets:,}", "\n".join(nf.flows))
    console.print(Padding(table, _INDENT))
    console.print(
        "  [dim]A tap looks at its host's interface: it sees each packet come and go, with the"
        "\n  addresses of the subsessions.[/]"
    )
    console.print()


def _links(console: Console, report: Report) -> None:
    console.print("  What tcpdump saw on each host's link to the router:")
    console.print()
    table = plain_table("link of", "speaking there", ">pkts →", ">pkts ←", ">IP bytes", ">largest")
    for link in report.links:
        for i, leg in enumerate(link.legs):
            table.add_row(
                "" if i else link.host,
                leg.leg,
                f"{leg.to_server:,}",
                f"{leg.to_client:,}",
                f"{leg.bytes:,}",
                f"{leg.largest:,}",
            )
    console.print(Padding(table, _INDENT))
    console.print()


def throughput(console: Console, report: Report) -> None:
    """iperf3, the chain beside plain forwarding."""
    if report.throughput is not None:
        _compared(console, report.throughput, "{:.1f}")
        ours, plain = report.throughput.medians
        console.print(f"  The chain carries [bold]{ours / plain:.2f}[/] of plain forwarding.")


def setup(console: Console, report: Report) -> None:
    """connect(), the chain beside plain forwarding."""
    if report.setup is not None:
        _compared(console, report.setup, "{:.0f}")
        ours, plain = report.setup.medians
        console.print(f"  Setting up the chain of two adds [bold]{ours - plain:.0f} µs[/].")


def _compared(console: Console, both: Compared, number: str) -> None:
    table = plain_table("", ">median", ">lowest", ">highest", ">samples")
    for name, samples in (("through the chain", both.ours), ("plain forwarding", both.plain)):
        values = (statistics.median(samples), min(samples), max(samples))
        shown = [f"{number.format(value)} {both.unit}" for value in values]
        table.add_row(name, *shown, str(len(samples)))
    console.print(Padding(table, _INDENT))


def summary(console: Console, report: Report, *, kept: str | None) -> None:
    """The last lines: whether it works, in one look."""
    if verdict(console, report.checks):
        console.print("curl and iperf3 went through firewall and IDS hop by hop: no tunnel, not a")
        console.print("byte added, and neither applications nor router nor firewall noticed.")
    if kept is not None:
        console.print(
            f"\nThe lab is still up. Look around: m2m-lab exec client m2mctl sessions"
            f"\nEnd it: m2m-lab down {kept}"
        )


def plain_table(*columns: str) -> Table:
    """A table without lines. A column whose name begins with ``>`` is set to the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.startswith(">") else "left"
        table.add_column(column.removeprefix(">"), justify=justify, no_wrap=True)
    return table
