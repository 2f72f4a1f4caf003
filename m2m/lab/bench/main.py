"""``m2m-lab bench [NAME...] [--json FILE] [--quick]``."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from rich.console import Console

from m2m.lab.bench import capture, cost, handover, migrate, proxy, scale, setup, throughput
from m2m.lab.bench.report import Plan, Result, Say, show, write_json

_BENCHES: dict[str, tuple[str, Callable[[Plan, Say], Awaitable[list[Result]]]]] = {
    "throughput": ("data through a chain, beside plain IP forwarding", throughput.run),
    "cost": ("lookup, rewrite and insert in the kernel, in nanoseconds", cost.run),
    "capture": ("the patched libpcap, beside the system's", capture.run),
    "setup": ("time that a chain adds to connect()", setup.run),
    "proxy": ("requests through a proxy whose connections are stitched", proxy.run),
    "migrate": ("changing the chain of a live session: time, and packets harmed", migrate.run),
    "handover": ("a UE moves between two cells: how long applications hear nothing", handover.run),
    "scale": ("sessions per second, memory of agents and tables", scale.run),
}


_WIDTH = 120  # of what is written to a file, so that no column is cut


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; for :func:`run`."""
    return _parser().parse_args(argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="m2m-lab bench",
        description="Measure M2M beside a peer in the same run, by turns; medians are compared.",
        epilog="; ".join(f"{name}: {about}" for name, (about, _) in _BENCHES.items()),
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", choices=[[], *_BENCHES],
        help=f"which: {', '.join(_BENCHES)}; all of them without a name",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as JSON")
    parser.add_argument(
        "--figures", type=Path, metavar="DIR", default=Plan(quick=False).figures,
        help="where drawings and tables go (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="fewer and shorter runs: all within some minutes"
    )
    return parser


async def run(options: argparse.Namespace) -> int:
    """Run the benches that *options* name, show and write what they measured; 0."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    results: list[Result] = []
    plan = Plan(quick=options.quick, figures=options.figures)
    with console.status("…") as status:
        for name in options.names or _BENCHES:

            def say(what: str, name: str = name) -> None:
                status.update(f"{name}: {what}")

            results += await _BENCHES[name][1](plan, say)
    show(console, results)
    if options.json is not None:
        write_json(options.json, results)
        console.print(f"written to {options.json}")
    if plan.figures.is_dir():
        console.print(f"drawings and tables: {plan.figures}")
    return 0
