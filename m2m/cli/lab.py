"""``m2m-lab``: labs of network namespaces, the demo and the benches."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import trio
from rich.console import Console
from rich.table import Table

from m2m.errors import M2MError
from m2m.lab import state
from m2m.lab.lab import open_lab, plain_errors
from m2m.lab.netns import LabError
from m2m.lab.topology import load

_SCENARIOS = ("replace", "insert", "remove", "drain", "contend")
_GATEWAY = "gateway"
_BALANCE = "balance"
_REMOVAL = "proxy-removal"
_PROCESS = "process-move"
_MOBILITY = ("handover", "ping-pong", "outage", "server-move")
_INTERRUPTED = 130  # what a shell reports for Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run with *argv* (default: the process's own); returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["bench"]:
        # The benches know their own options, and what they import is needed by them alone.
        from m2m.lab.bench import main as bench

        chosen = bench.parse(arguments[1:])
        return _status_of(lambda: trio_run(lambda: bench.run(chosen)))
    options = _parser().parse_args(arguments)
    return _status_of(lambda: options.run(options))


def _status_of(run: Callable[[], int]) -> int:
    try:
        return run()
    except M2MError as error:
        print(f"m2m-lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("m2m-lab: interrupted; everything was taken down", file=sys.stderr)
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="m2m-lab",
        description="Labs of network namespaces: hosts, links, agents and real services.",
        epilog="Topology files are explained in docs/lab.md; examples are in examples/labs/.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    up = commands.add_parser("up", help="build a lab and leave it running")
    up.add_argument("file", type=Path, metavar="FILE", help="a topology file (TOML)")
    up.set_defaults(run=_up)

    down = commands.add_parser("down", help="end a lab, and what a killed one left behind")
    _add_name(down)
    down.set_defaults(run=_down)

    run = commands.add_parser("exec", help="run a command in a host of a lab")
    run.add_argument("--lab", metavar="NAME", help="which lab; not needed when only one is up")
    run.add_argument("host", metavar="HOST")
    run.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER)
    run.set_defaults(run=_exec)

    status = commands.add_parser("status", help="show what runs where in a lab")
    _add_name(status)
    status.set_defaults(run=_status)

    demo = commands.add_parser(
        "demo", help="run a service chain: firewall and IDS between a client and a web server"
    )
    demo.add_argument("--keep", action="store_true", help="leave the lab up afterwards")
    demo.add_argument("--json", action="store_true", help="print the results as JSON")
    demo.set_defaults(run=_demo)

    play = commands.add_parser(
        "run",
        help="change the chains of live sessions under load, move their endpoints, or spread them"
        " over instances, and count what it did to them",
    )
    scenarios = (*_SCENARIOS, *_MOBILITY, _PROCESS, _GATEWAY, _BALANCE, _REMOVAL)
    play.add_argument("scenario", metavar="NAME", choices=scenarios, help=", ".join(scenarios))
    play.add_argument(
        "--moves", type=int, default=10, metavar="N",
        help=f"how often endpoints move in {', '.join((*_MOBILITY, _PROCESS))}"
        " (default: %(default)s)",
    )  # fmt: skip
    play.add_argument("--keep", action="store_true", help="leave the lab up afterwards")
    play.add_argument("--json", action="store_true", help="print the results as JSON")
    play.set_defaults(run=_play)

    commands.add_parser(
        "bench", help="measure against plain forwarding: bench [NAME...] [--json FILE] [--quick]"
    )
    return parser


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="which lab; not needed when only one is up"
    )


def _lab_name(given: str | None) -> str:
    """The lab meant: the one given by name or topology file, or the only one there is."""
    if given is not None:
        return load(Path(given)).name if given.endswith(".toml") else given
    names = state.names()
    if len(names) == 1:
        return names[0]
    raise LabError(
        f"which lab? {', '.join(names)} are here; give a name"
        if names
        else "there is no lab; build one: m2m-lab up FILE"
    )


def trio_run(task: Callable[[], Awaitable[int]]) -> int:
    """Run *task*; SIGTERM ends it as orderly as Ctrl-C does."""

    async def supervised() -> int:
        status = 128 + signal.SIGTERM
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_sigterm, nursery.cancel_scope)
            status = await task()
            nursery.cancel_scope.cancel()
        return status

    with plain_errors():
        return trio.run(supervised)


async def _cancel_on_sigterm(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


def _up(options: argparse.Namespace) -> int:
    topology = load(options.file)

    async def up() -> int:
        async with open_lab(topology) as lab:
            lab.detach()
        _show(topology.name)
        return 0

    return trio_run(up)


def _down(options: argparse.Namespace) -> int:
    name = _lab_name(options.name)

    async def down() -> int:
        await state.take_down(name)
        return 0

    return trio_run(down)


def _exec(options: argparse.Namespace) -> int:
    if not options.command:
        raise LabError(f"what shall {options.host} run? m2m-lab exec HOST CMD...")
    state.enter_host(_lab_name(options.lab), options.host, options.command)
    return 1


def _status(options: argparse.Namespace) -> int:
    return 0 if _show(_lab_name(options.name)) else 1


def _show(name: str) -> bool:
    """Print a lab's hosts and processes; tells whether all of them run."""
    found = state.State.load(name)
    table = Table(title=f"lab {name}", title_justify="left")
    for column in ("host", "role", "address", "processes"):
        table.add_column(column, overflow="fold")
    for host, role in found.roles.items():
        mine = [started for started in found.processes if started.host == host]
        shown = (f"{p.name} ({p.pid if p.alive else '[red]ended[/]'})" for p in mine)
        table.add_row(host, role or "", found.addresses[host], ", ".join(shown))
    console = Console()
    console.print(table)
    console.print(f"logs: {state.directory(name) / 'log'}", soft_wrap=True)
    if not found.up:
        console.print("left behind by a run that was killed, or being built or used just now")
    return found.up and all(started.alive for started in found.processes)


def _demo(options: argparse.Namespace) -> int:
    from m2m.lab import demo

    return trio_run(lambda: demo.run(keep=options.keep, as_json=options.json))


def _play(options: argparse.Namespace) -> int:
    if options.scenario == _GATEWAY:
        from m2m.lab import incremental

        return trio_run(lambda: incremental.run(keep=options.keep, as_json=options.json))
    if options.scenario == _BALANCE:
        from m2m.lab import balance

        return trio_run(lambda: balance.run(keep=options.keep, as_json=options.json))
    if options.scenario == _REMOVAL:
        from m2m.lab import removal

        return trio_run(lambda: removal.run(keep=options.keep, as_json=options.json))
    if options.scenario == _PROCESS:
        from m2m.lab import process_move

        return trio_run(
            lambda: process_move.run(keep=options.keep, as_json=options.json, moves=options.moves)
        )
    if options.scenario in _MOBILITY:
        from m2m.lab import mobility

        return trio_run(
            lambda: mobility.run(
                options.scenario, keep=options.keep, as_json=options.json, moves=options.moves
            )
        )
    from m2m.lab import scenarios

    return trio_run(
        lambda: scenarios.run(options.scenario, keep=options.keep, as_json=options.json)
    )


if __name__ == "__main__":
    sys.exit(main())
