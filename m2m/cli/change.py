"""``m2mctl insert|remove|replace|drain``: other chains for sessions that live."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import msgspec
from rich.console import Console
from rich.live import Live

from m2m.agent.api import ChangeReport
from m2m.agent.dialogue import Change, ChangedItem, ChangingItem, Item
from m2m.agent.order import Do
from m2m.cli.change_view import Progress, report_view
from m2m.cli.query import ask
from m2m.policy.rules import ChangeMode

__all__ = ["add_commands", "add_mode", "names", "parse", "show"]

MakeCommand = Callable[
    [str, Callable[[Path, argparse.Namespace], int], str], argparse.ArgumentParser
]


def add_commands(command: MakeCommand, console: Callable[[], Console]) -> None:
    """Have *command* make the parser of each command; reports go to *console*."""

    def run(socket: Path, args: argparse.Namespace) -> int:
        request = Change(
            do=Do(args.do),
            old=names(getattr(args, "old", None)),
            new=names(getattr(args, "new", None)),
            after=getattr(args, "after", None),
            before=getattr(args, "before", None),
            sessions=tuple(getattr(args, "sessions", ())),
            match=getattr(args, "match", None),
            mode=getattr(args, "mode", None),
        )
        return show(ask(socket, request), console(), as_json=args.json)

    def make(do: Do, text: str) -> argparse.ArgumentParser:
        made = command(do.value, run, text)
        made.set_defaults(do=do.value)
        return made

    insert = make(Do.INSERT, "put network functions into the chains of live sessions")
    insert.add_argument("new", metavar="NF[,NF...]", help="types (ids) or instances (ids/ids2)")
    place = insert.add_mutually_exclusive_group(required=True)
    place.add_argument("--after", metavar="NF", help="behind this one, or behind 'client'")
    place.add_argument("--before", metavar="NF", help="before this one, or before 'server'")
    remove = make(Do.REMOVE, "take network functions out of the chains of live sessions")
    remove.add_argument("old", metavar="NF[,NF...]", help="neighbours, in the chain's order")
    replace = make(Do.REPLACE, "replace network functions in the chains of live sessions")
    replace.add_argument("old", metavar="NF[,NF...]", help="neighbours, in the chain's order")
    replace.add_argument("new", metavar="NF[,NF...]", help="what takes their place")
    for each in (insert, remove, replace):
        each.add_argument("sessions", metavar="SESSION", nargs="*", default=[],
                          help="as m2mctl sessions shows them")  # fmt: skip
    drain = make(Do.DRAIN, "take an instance out of the chains of all sessions at this host")
    drain.add_argument("old", metavar="INSTANCE", help="the instance that is to have no sessions")
    drain.add_argument("--to", dest="new", metavar="NF", help="what takes its place (default: "
                       "another instance of its type)")  # fmt: skip
    for each in (insert, remove, replace, drain):
        each.add_argument("--match", metavar="PREDICATE",
                          help="sessions at this host by the policy language, such as "
                          "'srcip=10.0.1.0/24 & dstport=80', or any")  # fmt: skip
        add_mode(each)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """As ``parser.parse_args``; sessions may also stand behind options."""
    args, rest = parser.parse_known_args(argv)
    if rest:
        if not hasattr(args, "sessions") or any(word.startswith("-") for word in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        args.sessions += rest
    return args


def add_mode(parser: argparse.ArgumentParser) -> None:
    """Add ``--mode``."""
    parser.add_argument(
        "--mode", type=_mode, metavar="MODE",
        help="lf: no packet is lost; op: nor overtaken, and NF state moves; ss+op: and the TCP "
        "stream is parted at one place (default: what the session's policy says)",
    )  # fmt: skip


def show(items: Iterable[Item], console: Console, *, as_json: bool) -> int:
    """Show what becomes of changes; the exit status: 0 if all were made.

    JSON is one line for each session. A person sees on a terminal how far it is, and a report.
    """
    reports: list[ChangeReport] = []
    progress = Progress()
    live = not as_json and console.is_terminal
    with Live(progress, console=console, transient=True) if live else nullcontext():
        for item in items:
            if isinstance(item, ChangedItem):
                reports.append(item.report)
                progress.ended(item.report)
                if as_json:
                    print(msgspec.json.encode(item.report).decode(), flush=True)
            elif isinstance(item, ChangingItem):
                progress.is_at(item.session, item.stage)
    if not as_json:
        console.print(report_view(reports))
    return int(any(report.error is not None for report in reports))


def names(text: str | None) -> tuple[str, ...]:
    """The names in a list with commas."""
    return tuple(part.strip() for part in text.split(",")) if text else ()


def _mode(text: str) -> ChangeMode:
    try:
        return ChangeMode(text)
    except ValueError:
        known = ", ".join(ChangeMode)
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {known}") from None
