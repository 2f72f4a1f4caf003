"""How the demo looks on a terminal, 80 to 100 columns wide."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from m2m.lab.demo_results import Check, Compared, Report
from m2m.lab.topology import Topology

WIDTH = 96


def opening(console: Console, topology: Topology) -> None:
    """The drawing and the policy."""
    address = {host: topology.address(host) for host in topology.hosts}
    console.print()
    console.print("[bold]M2M demo[/]: a service chain between a client and a web server")
    console.print(
        f"""
                      [cyan]control[/]  policy server
                         │  {address["control"]}
    [cyan]client[/] ───────────── r0 ───────────── [cyan]server[/]  nginx, iperf3
    {address["client"]}         │  │         {address["server"]}
                 ┌────┘  └────┐
              [cyan]firewall[/]      [cyan]ids[/]
              {address["firewall"]}      {address["ids"]}
              nftables      tcpdump

  Six network namespaces. r0 is a plain router; every other host but control runs an agent."""
    )
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


def policy(console: Console, report: Report) -> None:
    """What the client's agent has been told."""
    if report.policy is None:
        return
    for nf in report.policy.nfs:
        where = ", ".join(f"{one.name} at {one.address}" for one in nf.instances)
        console.print(f"  {nf.name}: {nf.kind}, {where}")


def chain(console: Console, report: Report) -> None:
    """The path of the live session, what the NFs saw and what was on the links."""
    _path(console, report)
    _nfs(console, report)
    _links(console, report)


def _path(console: Console, report: Report) -> None:
    path = report.path
    if path is None:
        return
    console.print("  The path of a live iperf3 session, as m2mctl tells it:")
    console.print()
    for hop in path.hops:
        name = hop.host.partition("-")[2] or hop.host
        role = {"client": "", "server": ""}.get(hop.position, hop.position)
        sees = "" if hop.supersession is None or hop.position == "tap" else str(hop.supersession)
        console.print(f"    [bold cyan]{name:9}[/] {role:7} {sees}", highlight=False)
        if hop.right is not None:
            seen = hop.to_server
            count = f"{seen.packets:,} packets so far" if seen else ""
            console.print(f"      [cyan]│[/]   {hop.right!s:54}[dim]{count}[/]")
    console.print()


def _nfs(console: Console, report: Report) -> None:
    table = _table("network function", "sees", "web packets", "of")
    for nf in report.nfs:
        table.add_row(f"{nf.nf} ({nf.kind})", nf.sees, f"{nf.packets}", "\n".join(nf.flows))
    console.print(table)
    console.print(
        "  [dim]The IDS counts each packet twice, coming and going. A tap looks at its host's"
        "\n  interface, where packets have the subsession's addresses.[/]"
    )
    console.print()


def _links(console: Console, report: Report) -> None:
    table = _table("tcpdump on", "speaking there", "packets →", "←", "IP bytes", "largest")
    for column in table.columns[2:]:
        column.justify = "right"
    for link in report.links:
        for i, leg in enumerate(link.legs):
            table.add_row(
                "" if i else link.link,
                leg.leg,
                f"{leg.to_server:,}",
                f"{leg.to_client:,}",
                f"{leg.bytes:,}",
                f"{leg.largest:,}",
            )
    console.print(table)
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
    table = _table("", "median", "lowest", "highest", "samples")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, samples in (("through the chain", both.ours), ("plain forwarding", both.plain)):
        values = (statistics.median(samples), min(samples), max(samples))
        shown = [f"{number.format(value)} {both.unit}" for value in values]
        table.add_row(name, *shown, str(len(samples)))
    console.print(table)


def summary(console: Console, report: Report, *, kept: str | None) -> None:
    """The last lines: whether it works, in one look."""
    console.print()
    failed = [check for check in report.checks if not check.held]
    if failed:
        console.print(f"[bold red]{len(failed)} of {len(report.checks)} checks failed:[/]")
        checks(console, failed)
    else:
        console.print(
            f"[bold green]All {len(report.checks)} checks held.[/] curl and iperf3 went through"
            " firewall and IDS, hop by hop;\nno tunnel, not a byte added, and nothing noticed by"
            " application, router or firewall."
        )
    if kept is not None:
        console.print(
            f"\nThe lab is still up. Look around: m2m-lab exec client m2mctl sessions"
            f"\nEnd it: m2m-lab down {kept}"
        )


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=True, padding=(0, 1), header_style="bold dim")
    for column in columns:
        table.add_column(column, no_wrap=column != "of")
    return table
