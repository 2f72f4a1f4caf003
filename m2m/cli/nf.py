"""``m2m-nf``: a network function asks its host's agent for a change about itself, or is run so that
it sees supersessions (:mod:`m2m.cli.nf_run`)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import m2m
from m2m.agent.dialogue import NfChange
from m2m.agent.order import Do
from m2m.cli import nf_run
from m2m.cli.change import add_mode, names, show
from m2m.cli.query import RUN_DIR, ask, find_socket
from m2m.errors import M2MError
from m2m.policy.explain import as_predicate, parse_flow

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``m2m-nf``; returns the exit status: 0 if every session was changed."""
    args = _parser().parse_args(argv)
    try:
        if args.act is not None:
            return int(args.act(args))
        socket = find_socket(args.run_dir, args.agent, ending=".nf")
        match = args.match if args.flow is None else as_predicate(parse_flow(args.flow))
        request = NfChange(
            args.do,
            names(args.new),
            tuple(args.session or ()),
            match,
            args.mode,
            args.nf,
            args.added,
        )
        return show(ask(socket, request), Console(highlight=False), as_json=args.json)
    except M2MError as error:
        print(f"m2m-nf: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="m2m-nf",
        description="Run a passive network function of this host, or ask for a change of the "
        "chains of live sessions that pass one. Whether it may is up to the policy: "
        "allow={nf, ...}.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {m2m.__version__}")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    def verb(name: str, form: str, do: Do, text: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text, usage=f"m2m-nf {form} [options]")
        made.set_defaults(do=do, new=None, act=None, added=None)
        for word in form.split()[1:]:  # words that are there to be read
            if word.isupper():
                made.add_argument("new", metavar=word, help="a type (ids), an instance (ids/ids2)")
            else:
                made.add_argument(f"_{word}", metavar=word, choices=(word,), help=word)
        _add_options(made)
        return made

    remove = verb("remove", "remove me", Do.REMOVE, "take this network function out of the chain")
    remove.add_argument(
        "--added", metavar="RIGHT,LEFT", type=_octets,
        help="octets that it has added to the session's stream to the server, and to that to the "
        "client, and adds no more; negative: taken out",
    )  # fmt: skip
    verb("insert", "insert NF after me", Do.INSERT, "put another one behind this one")
    verb("migrate", "migrate me to INSTANCE", Do.REPLACE, "have another one take over")
    nf_run.add_verbs(verbs)
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    for option, metavar, text in (
        ("--flow", "5-TUPLE", "the session 'tcp 10.0.1.5:4000 10.0.9.1:80'"),
        ("--match", "PREDICATE", "sessions that match, as in a policy"),
    ):
        which.add_argument(option, metavar=metavar, help=text)
    which.add_argument(
        "--session", metavar="ID", action="append",
        help="this session; may be given more than once (default: all that pass here)",
    )  # fmt: skip
    add_mode(parser)
    parser.add_argument("--nf", metavar="TYPE", help="of this type, where the host runs several")
    parser.add_argument("--agent", metavar="NAME", help="which agent (default: the only one here)")
    parser.add_argument("--json", action="store_true", help="print one JSON line per session")
    parser.add_argument(
        "--run-dir", metavar="DIR", type=Path, help=f"where sockets are (default: {RUN_DIR})"
    )


def _octets(text: str) -> tuple[int, int]:
    try:
        right, left = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"two numbers of octets, as 22,0: {text!r}") from None
    return right, left


if __name__ == "__main__":
    sys.exit(main())
