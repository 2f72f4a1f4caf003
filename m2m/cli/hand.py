"""``m2mctl hand-over``, ``take-over``, ``lead-here``: a process moves to another host."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.text import Text

from m2m.agent.dialogue import HandOver, LeadHere, LedItem, TakenItem, TakeOver
from m2m.cli.query import ask, one
from m2m.errors import M2MError

__all__ = ["add_commands"]

_Command = Callable[[str, Any, str], argparse.ArgumentParser]
_Show = Callable[[argparse.Namespace, Any, Any], None]


def add_commands(command: _Command, show: _Show) -> None:
    """Add the three commands; *show* prints what they say."""

    def hand_over(socket: Path, args: argparse.Namespace) -> None:
        path = args.to.absolute()
        for _ in ask(socket, HandOver(tuple(args.sessions), str(path))):
            pass
        text = f"{len(args.sessions)} sessions are in {path} from now on, and not here"
        show(args, {"handed": args.sessions, "file": str(path)}, Text(text))

    def take_over(socket: Path, args: argparse.Namespace) -> int:
        taken = one(socket, TakeOver(str(args.file.absolute())), TakenItem).taken
        lines = [f"{len(taken.taken)} sessions wait for their sockets, and for m2mctl lead-here"]
        lines += [f"{session} is refused: {why}" for session, why in taken.refused.items()]
        show(args, taken, Text("\n".join(lines)))
        return 1 if taken.refused else 0

    def lead_here(socket: Path, args: argparse.Namespace) -> None:
        led = one(socket, LeadHere(tuple(args.sessions)), LedItem).sessions
        if not led:
            raise M2MError("no session waits to be led here: m2mctl take-over comes first")
        show(args, {"led": led}, Text(f"{len(led)} sessions lead here"))

    made = command(
        "hand-over", hand_over,
        "give sessions of a frozen process to the agent of another host, by a file (root only)",
    )  # fmt: skip
    made.add_argument("sessions", metavar="ID", nargs="+", help="as shown by m2mctl sessions")
    made.add_argument(
        "--to", metavar="FILE", type=Path, required=True,
        help="a new file, to be brought to that host; whoever has it can have the sessions",
    )  # fmt: skip
    made = command(
        "take-over", take_over,
        "be ready for the sockets of the sessions in a file (root only)",
    )  # fmt: skip
    made.add_argument("file", metavar="FILE", type=Path, help="as written by m2mctl hand-over")
    made = command(
        "lead-here", lead_here,
        "have packets of sessions that were taken over come to their sockets here (root only)",
    )  # fmt: skip
    made.add_argument(
        "sessions",
        metavar="ID",
        nargs="*",
        default=[],
        help="which ones (default: all that were taken over)",
    )
