"""``m2m-nf run`` and ``m2m-nf doctor`` for proxies: a library that is loaded into them tells the
agent which of their connections continues which."""

from __future__ import annotations

import argparse
import grp
import os
from collections.abc import Sequence
from pathlib import Path

from m2m.cli.query import find_socket
from m2m.errors import M2MError
from nf_adapters.program import LibraryError
from nf_adapters.sockets.library import examine, preload

__all__ = ["doctor", "run"]


def run(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Become the program; returns only by raising."""
    if args.tunnel and not args.leave:
        raise M2MError("--tunnel says how a proxy leaves: add --leave OCTETS")
    verdict = examine(command[0])
    if verdict.served is False:
        raise LibraryError("; ".join(verdict.findings))
    given = os.environ.get("LD_PRELOAD")
    environment = {
        **os.environ,
        "LD_PRELOAD": f"{preload()}:{given}" if given else preload(),
        "M2M_SOCKETS": str(_socket(args)),
        **({"M2M_SOCKETS_LAST": "1"} if args.last_accept else {}),
        **({"M2M_SOCKETS_LEAVE": str(args.leave)} if args.leave else {}),
        **({"M2M_SOCKETS_TUNNEL": "1"} if args.tunnel else {}),
    }
    try:
        os.execvpe(command[0], list(command), environment)
    except OSError as error:
        raise M2MError(f"{command[0]} cannot be started: {error.strerror}") from error


def doctor(args: argparse.Namespace) -> int:
    """Tell whether the program can be served; 1 if not."""
    verdict = examine(args.program)
    served = verdict.served
    for finding in verdict.findings:
        print(finding)
    try:
        print(f"it is loaded by LD_PRELOAD={preload()}")
        print(_access(_socket(args)))
    except M2MError as error:
        print(error)
        served = False
    if served is False:
        print("it cannot be served")
        return 1
    sure = "its connections are stitched" if served else "its connections may be stitched"
    print(f"{sure}: m2m-nf run --as proxy -- {args.program} ...")
    return 0


def _socket(args: argparse.Namespace) -> Path:
    """The socket for proxies of the agent that is meant."""
    socket = find_socket(args.run_dir, args.agent, ending=".nf").with_suffix(".proxy")
    if not socket.exists():
        raise M2MError(f"the agent has no socket {socket}: is it older than this m2m-nf?")
    return socket


def _access(socket: Path) -> str:
    about = socket.stat()
    try:
        group = grp.getgrgid(about.st_gid).gr_name
    except KeyError:
        group = str(about.st_gid)
    return f"the agent's socket is {socket}: it hears root and the members of group {group}"
