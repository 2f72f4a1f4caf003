"""``m2m-policy``: check and explain policy files, serve them to agents, make domain keys."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

import m2m
from m2m.auth import DomainKey
from m2m.errors import M2MError
from m2m.policy.compile import compile_policy, unserved_families
from m2m.policy.explain import Explanation, Outcome, explain, parse_flow
from m2m.policy.language import parse_source
from m2m.policy.rules import Fail, Gateway, Network, NfType, PolicySet
from m2m.policy.source import PolicyError, Source
from m2m.protocol.flow import format_address

__all__ = ["main"]

_COLOURS = {
    Outcome.STEERED: "green",
    Outcome.EXEMPT: "cyan",
    Outcome.UNMATCHED: "cyan",
    Outcome.PASSED: "yellow",
    Outcome.DROPPED: "red",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``m2m-policy``; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        status = int(args.run(args))
        sys.stdout.flush()
    except PolicyError as error:
        print(error, file=sys.stderr)  # begins with FILE:LINE:COLUMN, as editors expect
        return 1
    except M2MError as error:
        print(f"m2m-policy: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has enough. Python flushes once more at exit: let it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="m2m-policy",
        description="Check, explain and serve the policy of an M2M domain.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {m2m.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    check = commands.add_parser("check", help="read a policy file and show what it compiles to")
    check.add_argument("file", metavar="FILE", help="the policy file")
    check.add_argument("--json", action="store_true", help="print JSON instead of tables")
    check.set_defaults(run=_check)

    why = commands.add_parser(
        "explain", help="tell which rule a session meets, its chain, and why no earlier rule"
    )
    why.add_argument("file", metavar="FILE", help="the policy file")
    why.add_argument(
        "session",
        metavar="5-TUPLE",
        nargs="+",
        help="'tcp 10.0.1.5:4000 10.0.9.1:80' or '10.0.1.5:4000 > 10.0.9.1:80 tcp'",
    )
    why.add_argument("--json", action="store_true", help="print JSON instead of text")
    why.set_defaults(run=_explain)

    serve = commands.add_parser("serve", help="push a policy file to the agents of the domain")
    serve.add_argument("file", metavar="FILE", help="the policy file")
    serve.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default=None,
        help="where agents connect (default: every address, port 5263)",
    )
    serve.add_argument(
        "--store",
        metavar="PATH",
        default=None,
        help="the SQLite file that keeps the policy (default: m2m-policy.sqlite beside FILE)",
    )
    _add_key(serve)
    serve.set_defaults(run=_serve)

    load = commands.add_parser("load", help="give a running policy server a new policy file")
    load.add_argument("file", metavar="FILE", help="the policy file")
    load.add_argument(
        "--server",
        metavar="HOST:PORT",
        default=None,
        help="the policy server (default: 127.0.0.1:5263)",
    )
    _add_key(load)
    load.set_defaults(run=_load)

    keygen = commands.add_parser("keygen", help="make a new domain key")
    keygen.add_argument("file", metavar="FILE", help="the key file to write; it must not exist")
    keygen.set_defaults(run=_keygen)
    return parser


def _add_key(parser: argparse.ArgumentParser) -> None:
    key = parser.add_mutually_exclusive_group(required=True)
    key.add_argument("--key-file", metavar="F", help="the domain key (m2m-policy keygen F)")
    key.add_argument("--insecure", action="store_true", help="use no secret: for a laboratory only")


def _check(args: argparse.Namespace) -> int:
    policy_set = compile_policy(parse_source(Source.read(args.file)))
    rows = Counter(rule.policy for rule in policy_set.rules)
    notes = _notes(policy_set)
    if args.json:
        _print_json(
            {
                "file": args.file,
                "rows": len(policy_set.rules),
                "nfs": [_nf_json(nf) for nf in policy_set.nfs],
                "policies": [
                    {
                        "id": policy.id,
                        "line": policy.line,
                        "text": policy.text,
                        "chain": policy.chain,
                        "fail": policy.fail if policy.chain else None,
                        "change": policy.change,
                        "live": policy.live,
                        "allow": policy.allow,
                        "rows": rows[policy.id],
                    }
                    for policy in policy_set.policies
                ],
                "gateways": [_gateway_json(gateway) for gateway in policy_set.gateways],
                "notes": notes,
            }
        )
        return 0
    console = _console()
    nfs = Table("NF type", "kind", "chosen by", "instances", title_justify="left")
    for nf in policy_set.nfs:
        hosts = ", ".join(f"{one.name} {format_address(one.address)}" for one in nf.instances)
        kind = f"{nf.kind} at port {nf.port}" if nf.port else str(nf.kind)
        nfs.add_row(Text(nf.name), Text(kind), Text(nf.choose), Text(hosts))
    policies = Table("line", "rule", "chain", "if it fails", "rows")
    for policy in policy_set.policies:
        policies.add_row(
            str(policy.line),
            Text(policy.text),
            Text(" -> ".join(policy.chain) or "none: left alone"),
            Text(str(policy.fail) if policy.chain else "-"),
            str(rows[policy.id]),
        )
    console.print(nfs)
    console.print(policies)
    if policy_set.gateways:
        gateways = Table("gateway", "address", "serves")
        for gateway in policy_set.gateways:
            serves = ", ".join(map(_range, gateway.serves))
            gateways.add_row(
                Text(gateway.name), Text(format_address(gateway.address)), Text(serves)
            )
        console.print(gateways)
    for note in notes:
        console.print(Text(f"note: {note}", style="yellow"))
    console.print(
        Text(
            f"{args.file}: good; {len(policy_set.policies)} rules make {len(policy_set.rules)} rows"
        )
    )
    return 0


def _notes(policy_set: PolicySet) -> list[str]:
    used = {name for policy in policy_set.policies for name in policy.chain}
    notes = [f"NF type {nf.name} is in no chain" for nf in policy_set.nfs if nf.name not in used]
    for policy in policy_set.policies:
        verdict = "go on without a chain" if policy.fail is Fail.OPEN else "are dropped"
        notes += [
            f"line {policy.line}: {family} sessions {verdict}, its chain has no {family} instances"
            for family in unserved_families(policy_set, policy)
        ]
    return notes


def _nf_json(nf: NfType) -> dict[str, Any]:
    return {
        "name": nf.name,
        "kind": nf.kind,
        **({"port": nf.port} if nf.port else {}),
        "choose": nf.choose,
        "instances": [
            {"name": one.name, "address": format_address(one.address)} for one in nf.instances
        ],
    }


def _gateway_json(gateway: Gateway) -> dict[str, Any]:
    return {
        "name": gateway.name,
        "address": format_address(gateway.address),
        "serves": [_range(network) for network in gateway.serves],
    }


def _range(network: Network) -> str:
    if network.lo == network.hi:
        return format_address(network.lo)
    return f"{format_address(network.lo)}-{format_address(network.hi)}"


def _explain(args: argparse.Namespace) -> int:
    flow = parse_flow(" ".join(args.session))
    answer = explain(parse_source(Source.read(args.file)), flow)
    if args.json:
        _print_json({"file": args.file, **msgspec.to_builtins(answer)})
    else:
        _show(_console(), args.file, answer)
    return 0


def _show(console: Console, file: str, answer: Explanation) -> None:
    head = Text(f"{answer.session}: ")
    head.append(answer.outcome, style=_COLOURS[answer.outcome])
    console.print(head)
    if answer.line is not None:
        console.print(Text(f"  by {file}:{answer.line}: {answer.text}"))
    for number, hop in enumerate(answer.chain, start=1):
        console.print(
            Text(
                f"  {number}. {hop.nf} ({hop.kind}): {hop.instance} at {hop.address}, "
                f"chosen by {hop.choose}"
            )
        )
    if answer.fail is not None:
        console.print(Text(f"  fail={answer.fail} if the chain cannot be set up"))
    if answer.change is not None:
        who = ", ".join(answer.allow) or "nobody"
        verb = {"follow": "follow a new policy", "stay": "keep their chains"}[answer.live or "stay"]
        console.print(
            Text(f"  live sessions {verb}; {who} may ask for changes, change={answer.change}")
        )
    for note in answer.notes:
        console.print(Text(f"  {note}"))
    if answer.missed:
        console.print(Text("rules that came first but did not match:"))
    for missed in answer.missed:
        console.print(Text(f"  {file}:{missed.line}: {missed.text}", style="dim"))
        for why in missed.why:
            console.print(Text(f"    {why}"))


def _serve(args: argparse.Namespace) -> int:
    from m2m.cli.policy_serve import main_serve  # needs Trio and SQLite; the other commands do not

    return main_serve(args)


def _load(args: argparse.Namespace) -> int:
    from m2m.cli.policy_serve import main_load

    return main_load(args)


def _keygen(args: argparse.Namespace) -> int:
    DomainKey.generate(args.file)
    print(f"{args.file}: new domain key; copy it to every host of the domain, mode 0600")
    return 0


def _console() -> Console:
    """Standard output; whole lines when it is not a terminal, so that other tools can read it."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000
    return console


def _print_json(value: Any) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


if __name__ == "__main__":
    sys.exit(main())
