"""What bears witness of mobility from outside M2M: the firewall, the sockets, what is left."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from m2m.lab.demo_results import Check
from m2m.lab.handover import FIREWALL, PORTS, SERVER, UE
from m2m.lab.lab import Lab

Known = tuple[str, str, int, str, int]
"""Protocol, and the two ends of a flow in the direction in which the firewall saw it."""


class Seen(msgspec.Struct, frozen=True):
    """What the firewall has counted."""

    known: int  # packets with the original addresses
    strange: int  # all others that it forwarded
    flows: frozenset[Known]  # every 5-tuple that ever passed it


async def firewall(lab: Lab, host: str = FIREWALL) -> Seen:
    """The firewall's own counters, and the 5-tuples it has noted."""
    said = await lab.run(host, "nft", "-j", "list", "table", "ip", "firewall")
    return read_nft(said.out)


def read_nft(text: str) -> Seen:
    """Read ``nft -j list table``."""
    counted = {"known": 0, "strange": 0}
    flows: set[Known] = set()
    for item in msgspec.json.decode(text)["nftables"]:
        if counter := item.get("counter"):
            counted[counter["name"]] = counter["packets"]
        if noted := item.get("set"):
            for element in noted.get("elem", ()):
                if isinstance(element, dict) and "elem" in element:
                    element = element["elem"]["val"]
                source, proto, sport, target, dport = element["concat"]
                flows.add((str(proto), source, int(sport), target, int(dport)))
    return Seen(counted["known"], counted["strange"], frozenset(flows))


def one_tuple(seen: Seen, ue: str, server: str) -> Check:
    """I3: whatever moved, the firewall saw packets of the two original addresses alone.

    Each session is seen in both directions under one 5-tuple and its reverse.
    """
    odd = [flow for flow in seen.flows if {flow[1], flow[3]} != {ue, server}]
    odd += [f for f in seen.flows if (f[0], f[3], f[4], f[1], f[2]) not in seen.flows]
    return Check(
        "the firewall saw every session under one unchanged 5-tuple",
        bool(seen.flows) and not odd and not seen.strange,
        f"{len(seen.flows)} 5-tuples, {seen.known:,} packets, {seen.strange} others"
        + (f"; odd: {odd[0]}" if odd else ""),
        "I3",
    )


async def sockets(lab: Lab) -> dict[str, set[str]]:
    """The local and remote addresses of established connections, as both kernels show them."""
    found: dict[str, set[str]] = {}
    for host in (UE, SERVER):
        # IPv6 brackets and ::ffff: would be another notation of the same.
        said = await lab.run(host, "ss", "-Htn4", "state", "established")
        found[host] = set(socket_pairs(said.out))
    return found


def socket_pairs(text: str) -> Iterable[str]:
    """``local remote`` of each line of ``ss -Htn`` that is about a port of the lab's server."""
    for line in text.splitlines():
        ends = re.findall(r"(\S+):(\d+)", line)
        if len(ends) >= 2 and {int(port) for _, port in ends[:2]} & set(PORTS):
            yield " ".join(address for address, _ in ends[:2])


def unchanged_sockets(found: dict[str, set[str]], ue: str, server: str) -> Check:
    """The applications' sockets have the addresses that they began with."""
    right = {UE: {f"{ue} {server}"}, SERVER: {f"{server} {ue}"}}
    return Check(
        "the sockets at both ends have their first addresses",
        found == right,
        "; ".join(f"{host}: {', '.join(sorted(pairs))}" for host, pairs in found.items()),
        "I3",
    )


class Left(msgspec.Struct, frozen=True):
    """What is left in one host that sessions could have left there."""

    host: str
    sessions: int
    ports: int  # pairs of them
    addresses: tuple[str, ...]  # on lo, beside 127.0.0.1
    answering: tuple[str, ...]  # interfaces whose ARP settings are changed


async def left(lab: Lab, host: str) -> Left:
    """Look at one host with an agent."""
    stats = await lab.stats(host)
    said = await lab.run(host, "ip", "-j", "-4", "address", "show", "dev", "lo")
    here = [
        one["local"] for item in msgspec.json.decode(said.out or "[]")
        for one in item.get("addr_info", ())
    ]  # fmt: skip
    arp = await lab.run(
        host, "sh", "-c", "grep -H . /proc/sys/net/ipv4/conf/*/arp_ignore"
        " /proc/sys/net/ipv4/conf/*/arp_announce",
    )  # fmt: skip
    changed = [line for line in arp.out.splitlines() if not line.endswith(":0")]
    return Left(
        host, stats.sessions, stats.ports,
        tuple(one for one in here if one != "127.0.0.1"),
        tuple(line.removeprefix("/proc/sys/net/ipv4/conf/") for line in changed),
    )  # fmt: skip


def nothing_left(found: Sequence[Left]) -> Check:
    """I9: sessions that are over leave nothing, wherever their ends have been."""
    of = [one for one in found if one.sessions or one.ports or one.addresses or one.answering]
    return Check(
        "the sessions' end leaves no entry, port, address or ARP setting",
        not of,
        "; ".join(
            f"{one.host}: {one.sessions} sessions, {one.ports} pairs of ports,"
            f" on lo {', '.join(one.addresses) or 'nothing'}, {' '.join(one.answering)}"
            for one in of
        )
        or f"{len(found)} hosts",
        "I9",
    )
