"""``m2m-nf run`` and ``m2m-nf doctor``: network functions that capture through libpcap; and which
are proxies (:mod:`m2m.cli.nf_proxy`)."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

import trio

from m2m.cli import nf_proxy
from m2m.cli.nf_health import accompanied
from m2m.cli.query import RUN_DIR, find_socket
from m2m.errors import M2MError
from nf_adapters.pcap.library import (
    LibraryError,
    captures,
    examine,
    library_directory,
    search_path,
)
from nf_adapters.program import find
from nf_adapters.sockets.library import calls_sockets

__all__ = ["add_verbs"]

_INTERPRETERS = r"(python|perl|ruby|lua|node|php|java)[\d.-]*$"


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both to the parser of ``m2m-nf``."""
    text = (
        "run a program that captures through libpcap: it sees supersessions; or a proxy: what it "
        "connects to continues the sessions that it accepts"
    )
    run = verbs.add_parser(
        "run", help=text, description=text, usage="m2m-nf run [options] -- PROGRAM [ARGUMENT ...]"
    )
    run.set_defaults(act=_run)
    run.add_argument("--once", action="store_true", help="each packet once, though it comes and "
                     "goes by an interface that is watched")  # fmt: skip
    run.add_argument("--buffer", type=_mebibytes, metavar="MIB", help="size of the capture ring")
    run.add_argument("--nf", metavar="TYPE", help="its NF type, as in the policy")
    run.add_argument("--last-accept", action="store_true", help="a proxy that serves one "
                     "connection after the other, in each of its processes or threads")  # fmt: skip
    run.add_argument("--leave", type=_octets, metavar="OCTETS", help="a proxy that passes on a "
                     "response that may not be cached, by HTTP, leaves its session when so many "
                     "octets have gone through it, if as many are left; one of a tunnel (CONNECT, "
                     "Upgrade) after so many, both ways together")  # fmt: skip
    run.add_argument("--tunnel", action="store_true", help="with --leave: a proxy that copies all "
                     "from the first octet on, both ways, and adds nothing")  # fmt: skip
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="PROGRAM")
    text = "tell whether a program can be served, and why not"
    doctor = verbs.add_parser("doctor", help=text, description=text)
    doctor.set_defaults(act=_doctor)
    doctor.add_argument("program", metavar="PROGRAM")
    for verb in (run, doctor):
        verb.add_argument(
            "--as", dest="kind", choices=["tap", "proxy"],
            help="what it is (default: a proxy if it has no libpcap, but accepts and begins "
            "connections; an interpreter of scripts is a tap)",
        )  # fmt: skip
        verb.add_argument("--agent", metavar="NAME", help="which agent (default: the only one)")
        verb.add_argument(
            "--run-dir", metavar="DIR", type=Path, help=f"where its files are (default: {RUN_DIR})"
        )


def _octets(text: str) -> int:
    size = int(text)
    if size < 1:
        raise argparse.ArgumentTypeError(f"{size} octets are none")
    return size


def _mebibytes(text: str) -> int:
    size = int(text)
    if not 1 <= size <= 1024:
        raise argparse.ArgumentTypeError(f"{size} MiB is not between 1 and 1024")
    return size


def _run(args: argparse.Namespace) -> int:
    command: Sequence[str] = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise M2MError("no program is given: m2m-nf run [options] -- PROGRAM [ARGUMENT ...]")
    if _is_proxy(args, command[0]):
        return nf_proxy.run(args, command)
    directory = library_directory()
    verdict = examine(command[0], directory)
    if verdict.served is False:
        raise LibraryError("; ".join(verdict.findings))
    socket = find_socket(args.run_dir, args.agent, ending=".nf")
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": search_path(directory),
        "M2M_PCAP": str(_mapping(args)),
        **({"M2M_PCAP_ONCE": "1"} if args.once else {}),
        **({"M2M_PCAP_BUFFER": str(args.buffer)} if args.buffer else {}),
    }
    status = trio.run(accompanied, command, environment, socket, args.nf)
    return status if status >= 0 else 128 - status


def _is_proxy(args: argparse.Namespace, program: str) -> bool:
    if args.kind is not None:
        return bool(args.kind == "proxy")
    about = find(program)
    if re.match(_INTERPRETERS, about.path.name):
        return False  # what it will load cannot be told
    return calls_sockets(about) and not captures(about)


def _doctor(args: argparse.Namespace) -> int:
    if _is_proxy(args, args.program):
        return nf_proxy.doctor(args)
    directory = library_directory()
    print(f"the patched libpcap is in {directory}")
    verdict = examine(args.program, directory)
    for finding in verdict.findings:
        print(finding)
    try:
        print(f"the agent's mapping is {_mapping(args)}")
    except M2MError as error:
        print(error)
        verdict = verdict._replace(served=False)
    if verdict.served is False:
        print("it cannot be served")
        return 1
    sure = "it sees supersessions" if verdict.served else "it may see supersessions"
    print(f"{sure}: m2m-nf run -- {args.program} ...")
    return 0


def _mapping(args: argparse.Namespace) -> Path:
    """The mapping of the agent that is meant."""
    mapping = find_socket(args.run_dir, args.agent, ending=".nf").with_suffix(".map")
    if not mapping.exists():
        raise M2MError(f"the agent has no mapping {mapping}: is it older than this m2m-nf?")
    if not os.access(mapping, os.R_OK):
        raise M2MError(f"{mapping} may not be read: run this as root, or as a member of its group")
    return mapping
