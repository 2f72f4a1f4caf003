"""``m2mctl``: what an agent on this machine is doing, and other chains for its live sessions."""

from __future__ import annotations

import argparse
import os
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

import m2m
from m2m.agent.dialogue import (
    AgentsItem,
    AskAgents,
    AskPath,
    AskPolicy,
    AskSessions,
    AskStats,
    End,
    EventItem,
    PathItem,
    PolicyItem,
    SessionItem,
    Snapshot,
    StatsItem,
    Watch,
)
from m2m.cli import change, hand, tables
from m2m.cli.query import RUN_DIR, ask, find_socket, one
from m2m.errors import M2MError

__all__ = ["main"]

_EVENTS_SHOWN = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``m2mctl``; returns the exit status."""
    args = change.parse(_parser(), argv)
    try:
        status = args.run(find_socket(args.run_dir, args.agent), args)
        sys.stdout.flush()
    except M2MError as error:
        print(f"m2mctl: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has enough. Python flushes once more at exit: let it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="m2mctl",
        description="Show what an agent on this machine does, and change chains of live sessions.",
    )
    _add_common(parser, agent=None, json=False, run_dir=None)
    parser.add_argument("--version", action="version", version=f"%(prog)s {m2m.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=text, description=text, argument_default=argparse.SUPPRESS
        )
        _add_common(made)  # options may also stand behind the command
        made.set_defaults(run=run)
        return made

    command("sessions", _sessions, "every session at this host")
    path = command("session", _session, "one session's path, hop by hop")
    path.add_argument("id", metavar="ID", help="as shown by m2mctl sessions")
    command("policy", _policy, "the policy in force at this host")
    command("agents", _agents, "all agents of the domain, as the policy server knows them")
    command("stats", _stats, "this agent's counters")
    command("watch", _watch, "sessions, rates and events, live")
    end = command("end", _end, "tear a session down along its whole path")
    end.add_argument("id", metavar="ID", help="as shown by m2mctl sessions")
    change.add_commands(command, _console)
    hand.add_commands(command, _show)
    return parser


def _add_common(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    parser.add_argument("--agent", metavar="NAME", help="which agent (default: the only one here)")
    parser.add_argument(
        "--json", action="store_const", const=True, help="print JSON instead of tables"
    )
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        type=Path,
        help=f"where control sockets are (default: {RUN_DIR})",
    )
    parser.set_defaults(**defaults)


def _sessions(socket: Path, args: argparse.Namespace) -> None:
    found = (item.session for item in ask(socket, AskSessions()) if isinstance(item, SessionItem))
    if args.json:
        separator = "["
        for session in found:  # one by one: there may be a hundred thousand
            print(separator, msgspec.json.encode(session).decode(), sep="", end="")
            separator = ",\n"
        print("]" if separator != "[" else "[]")
        return
    sessions = list(found)
    console = _console()
    if sessions:
        console.print(tables.sessions_table(sessions, console.width))
    else:
        console.print("no sessions")


def _session(socket: Path, args: argparse.Namespace) -> None:
    path = one(socket, AskPath(args.id), PathItem).path
    _show(args, path, tables.path_view(path))


def _policy(socket: Path, args: argparse.Namespace) -> None:
    policy = one(socket, AskPolicy(), PolicyItem).policy
    _show(args, policy, tables.policy_view(policy))


def _agents(socket: Path, args: argparse.Namespace) -> None:
    agents = one(socket, AskAgents(), AgentsItem).agents
    _show(args, agents, tables.agents_table(agents))


def _stats(socket: Path, args: argparse.Namespace) -> None:
    stats = one(socket, AskStats(), StatsItem).stats
    _show(args, stats, tables.stats_view(stats))


def _end(socket: Path, args: argparse.Namespace) -> None:
    for _ in ask(socket, End(args.id)):
        pass
    _show(args, {"ended": args.id}, Text(f"session {args.id} is being torn down"))


def _watch(socket: Path, args: argparse.Namespace) -> None:
    """A live picture on a terminal, JSON lines with ``--json``, lines of events otherwise."""
    console = _console()
    if args.json or not console.is_terminal:
        for item in ask(socket, Watch()):
            if args.json:
                print(msgspec.json.encode(item).decode(), flush=True)
            elif isinstance(item, EventItem):
                console.print(tables.event_line(item.event))
        return
    events: deque[Text] = deque(maxlen=_EVENTS_SHOWN)
    before: Snapshot | None = None
    picture = Group()
    with Live(picture, console=console, screen=True, auto_refresh=False) as live:
        for item in ask(socket, Watch()):
            if isinstance(item, EventItem):
                events.append(tables.event_line(item.event))
            elif isinstance(item, Snapshot):
                picture = _picture(item, before, console)
                before = item
            live.update(Group(picture, Text(), *events), refresh=True)


def _picture(now: Snapshot, before: Snapshot | None, console: Console) -> Group:
    stats = now.stats
    head = Text(f"{stats.agent}", "bold").append(
        f"  {stats.role.value}, {tables.count(stats.sessions)} sessions; ctrl-c ends", "not bold"
    )
    lines = 1 if console.width >= tables.WIDE else 2
    room = max(1, (console.height - _EVENTS_SHOWN - 5) // lines)
    shown = now.sessions[:room]
    earlier = {} if before is None else {session.id: session for session in before.sessions}
    seconds = now.time - before.time if before is not None else 1.0
    parts: list[RenderableType] = [head, Text(), tables.sessions_table(
        shown, console.width, before=earlier, seconds=max(seconds, 0.001)
    )]  # fmt: skip
    if len(shown) < stats.sessions:
        parts.append(Text(f"and {stats.sessions - len(shown)} more", "dim"))
    return Group(*parts)


def _show(args: argparse.Namespace, value: Any, picture: Any) -> None:
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
    else:
        _console().print(picture)


def _console() -> Console:
    """Standard output; whole lines when it is not a terminal, so that other tools can read it."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 1000
    return console


if __name__ == "__main__":
    sys.exit(main())
