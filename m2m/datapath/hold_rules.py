"""The iptables rules that bring first packets to :mod:`m2m.datapath.hold`.

They stand at the end of a chain of the mangle table, behind whatever the host does there itself: a
held packet goes on with the next table, not with the next rule of this chain. The chain is OUTPUT
for what leaves the host's own sockets, FORWARD at a gateway. A gateway also has to put fragments
together, for only the first one says by its ports whose it is: the kernel does so in every
namespace that has a rule with the socket match, which none of its packets need ever reach.

The commands are few: at the start, the end and when interfaces change.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from m2m.datapath.iptables import iptables, restore
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
    said = restore(rules)
    if said is None and not interfaces:
        _remove_jumps()
    wanted = [(where.value, *opening, "-j", CHAIN) for opening in _OPENINGS]
    if where is Where.FORWARD:
        wanted.append(("PREROUTING", *_DEFRAGMENT))
    for rule in wanted if interfaces else ():
        if said is None and iptables("mangle", "-C", *rule) is not None:
            said = iptables("mangle", "-A", *rule)
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
        iptables("mangle", "-F", chain)
    for chain in (CHAIN, _QUEUE_CHAIN):
        iptables("mangle", "-X", chain)


def _remove_jumps() -> None:
    rules = [(where.value, *opening, "-j", CHAIN) for where in Where for opening in _OPENINGS]
    for rule in (*rules, ("PREROUTING", *_DEFRAGMENT)):
        while iptables("mangle", "-D", *rule) is None:
            pass
