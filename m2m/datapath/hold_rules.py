"""The iptables rules that bring first packets to :mod:`m2m.datapath.hold`.

They stand at the end of a chain of the mangle table, behind whatever the host does there itself: a
held packet goes on with the next table, not with the next rule of this chain. The chain is OUTPUT
for what leaves the host's own sockets, FORWARD at a gateway. A gateway also has to put fragments
together, for only the first one says by its ports whose it is: the kernel does so in every
namespace that has a rule with the socket match, which none of its packets need ever reach.

The commands are run by blocking calls. They are few (at the start, the end and when interfaces
change), take some 5 ms each, and must run in the calling thread's network namespace, which a
thread of a pool need not be in.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from m2m.errors import UnsupportedHost

CHAIN = "M2M-HOLD"  # which packets
_QUEUE_CHAIN = "M2M-QUEUE"  # what becomes of them

# Only what can begin a session is shown to the program, and only where a policy has any: of all
# other packets that a busy host sends this costs a comparison or two, or nothing.
_OPENINGS = (("-p", "udp"), ("-p", "tcp", "--tcp-flags", "SYN,ACK", "SYN"))


class Where(StrEnum):
    """Which packets are looked at."""

    OUTPUT = "OUTPUT"  # those of this host's own sockets
    FORWARD = "FORWARD"  # those of others


_DEFRAGMENT = ("-i", "m2m-none", "-m", "socket", "-j", "RETURN")

_WAIT = "5"  # s for another program's iptables to finish


def install(
    interfaces: Iterable[str], hold: Path, refuse: Path, queue: int, where: Where = Where.OUTPUT
) -> None:
    """Show what leaves by *interfaces* to the pinned programs; what they pick goes to *queue*.

    Replaces, in one step, rules that are there already. Raises :exc:`UnsupportedHost`.
    """
    interfaces = tuple(interfaces)
    picked = "".join(
        f"-A {CHAIN} -o {name} -m bpf --object-pinned {hold} -g {_QUEUE_CHAIN}\n"
        for name in interfaces
    )
    rules = (
        "*mangle\n"
        f":{CHAIN} - [0:0]\n"
        f":{_QUEUE_CHAIN} - [0:0]\n"
        f"{picked}"
        f"-A {_QUEUE_CHAIN} -m bpf --object-pinned {refuse} -j DROP\n"
        f"-A {_QUEUE_CHAIN} -j NFQUEUE --queue-num {queue}\n"
        "COMMIT\n"
    )
    said = _run("iptables-restore", "--noflush", "--wait", _WAIT, given=rules)
    if said is None and not interfaces:
        _remove_jumps()
    wanted = [(where.value, *opening, "-j", CHAIN) for opening in _OPENINGS]
    if where is Where.FORWARD:
        wanted.append(("PREROUTING", *_DEFRAGMENT))
    for rule in wanted if interfaces else ():
        if said is None and _iptables("-C", *rule) is not None:
            said = _iptables("-A", *rule)
    if said is not None:
        raise UnsupportedHost(
            f"the rule that holds first packets cannot be installed ({said}); M2M needs iptables"
            " and a kernel with xt_bpf and xt_NFQUEUE (CONFIG_NETFILTER_XT_MATCH_BPF,"
            " CONFIG_NETFILTER_XT_TARGET_NFQUEUE), at a gateway also with xt_socket"
        )


def remove() -> None:
    """Take the rules out; it is no error when they are not there."""
    _remove_jumps()
    for chain in (CHAIN, _QUEUE_CHAIN):
        _iptables("-F", chain)
    for chain in (CHAIN, _QUEUE_CHAIN):
        _iptables("-X", chain)


def _remove_jumps() -> None:
    rules = [(where.value, *opening, "-j", CHAIN) for where in Where for opening in _OPENINGS]
    for rule in (*rules, ("PREROUTING", *_DEFRAGMENT)):
        while _iptables("-D", *rule) is None:
            pass


def _iptables(*arguments: str) -> str | None:
    return _run("iptables", "--wait", _WAIT, "-t", "mangle", *arguments)


def _run(*command: str, given: str = "") -> str | None:
    """None when the command succeeds, else why it did not."""
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UnsupportedHost(
            f"{command[0]} is missing, with which first packets are held; install iptables"
        ) from None
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(lines) if lines else f"{command[0]}: status {done.returncode}"
