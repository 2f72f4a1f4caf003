"""The lab of balance: two instances of one NF between many client prefixes and a server.

::

                        ┌─ nf1 ─┐
    clients ─── edge ───┤       ├─── far ─── srv
                        └─ nf2 ─┘      └─ control

``clients`` has all addresses of all prefixes and no agent; ``edge`` is its gateway. Without M2M
the two routers, ``edge`` and ``far``, choose the instance by rules (:func:`split`).
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from m2m.lab.lab import Lab
from m2m.lab.prefix_flows import NETWORK, mask
from m2m.lab.topology import Command, Host, Link, Nft, PolicyServer, Ready, Role, Topology, checked
from m2m.policy.rules import Choose

CLIENTS, EDGE, FAR, SERVER, CONTROL = "clients", "edge", "far", "srv", "control"
INSTANCES = ("nf1", "nf2")
ROUTERS = (EDGE, FAR)
PORT = 80
_LINGER = 0.3  # s that agents keep a session after its last packet: rounds wait for it

# What an instance forwards of each flow, by the client's address and port: packets and bytes (IP
# total length), apart for each way.
_COUNTERS = f"""
table ip load {{
    set up {{ type ipv4_addr . inet_service; flags dynamic; size 65535; counter; }}
    set down {{ type ipv4_addr . inet_service; flags dynamic; size 65535; counter; }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        tcp dport {PORT} ip saddr {NETWORK} add @up {{ ip saddr . tcp sport }}
        tcp sport {PORT} ip daddr {NETWORK} add @down {{ ip daddr . tcp dport }}
    }}
}}
"""


class Counted(msgspec.Struct, frozen=True):
    """What an instance has counted of one flow."""

    up: int = 0  # bytes towards the server
    down: int = 0


def two_instances(name: str = "balance") -> Topology:
    """The lab; its policy is :func:`policy`'s for ``least-loaded``."""
    links = [
        # First those by which others know a host.
        *(
            Link((EDGE, nf), (f"10.0.{n}.1/24", f"10.0.{n}.2/24"))
            for n, nf in enumerate(INSTANCES, start=1)
        ),
        *(
            Link((nf, FAR), (f"10.0.{n}.1/24", f"10.0.{n}.2/24"))
            for n, nf in enumerate(INSTANCES, start=3)
        ),
        Link((SERVER, FAR), ("10.0.5.2/24", "10.0.5.1/24")),
        Link((CONTROL, FAR), ("10.0.6.2/24", "10.0.6.1/24")),
        # All prefixes are on one link, and a half of it is left for its own two addresses.
        Link((CLIENTS, EDGE), ("10.1.63.2/18", "10.1.63.1/18")),
    ]
    serve = [sys.executable, "-m", "m2m.lab.traffic.fetches", "serve", str(PORT)]
    agent = ["--linger", f"{_LINGER:g}"]
    hosts = {
        CLIENTS: Host(forward=False),
        EDGE: Host(role=Role.GATEWAY, agent=agent),
        **{
            nf: Host(role=Role.MIDDLEBOX, agent=agent, run=[Nft(_COUNTERS, nf="ids")])
            for nf in INSTANCES
        },
        FAR: Host(),
        SERVER: Host(
            role=Role.SERVER, agent=agent,
            run=[Command("fetches", serve, Ready(log="listening"))],
        ),
        CONTROL: Host(),
    }  # fmt: skip
    bare = Topology(name, hosts, links)
    served = PolicyServer(CONTROL, text=policy(bare, Choose.LEAST_LOADED))
    return checked(msgspec.structs.replace(bare, policy=served), "two_instances()")


def policy(topology: Topology, choose: Choose) -> str:
    """The policy file by which agents choose an instance for each flow."""
    instances = ", ".join(f"{nf} = {topology.address(nf)}" for nf in INSTANCES)
    return f"""
nf ids inline choose={choose} {{ {instances} }}
gateway {EDGE} = {topology.address(EDGE)} serves {NETWORK}
match(srcip={NETWORK} & dstport={PORT}) >> {{ids}} fail=closed
"""


async def prepare(lab: Lab) -> None:
    """Give the clients all their addresses."""
    await lab.run(CLIENTS, "ip", "route", "add", "local", NETWORK, "dev", "lo")


# -- routing without M2M ----------------------------------------------------------------------

_TABLES = {nf: 101 + n for n, nf in enumerate(INSTANCES)}  # of routes; and marks
_SPLIT = """
table ip split {{
    chain prerouting {{
        type filter hook prerouting priority mangle; policy accept;
        iifname != "{incoming}" accept
        {rules}
    }}
}}
"""


async def split(lab: Lab, bit: int) -> None:
    """From now on clients with this *bit* in their prefix go by nf2, the others by nf1; and back.

    ``ip rule`` knows prefixes alone. The wildcards are nftables', and their marks choose the table.
    """
    await join(lab)
    for router, incoming, end in ((EDGE, CLIENTS, "saddr"), (FAR, SERVER, "daddr")):
        batch, marks = [], []
        for nf, value in zip(INSTANCES, ("0.0.0.0", mask(bit)), strict=True):
            table = _TABLES[nf]
            link = next(one for one in lab.topology.links_of(router) if nf in one.between)
            batch.append(f"route replace default via {link.address(nf).ip} table {table}")
            batch.append(f"rule add fwmark {table} lookup {table}")
            marks.append(f"ip {end} & {mask(bit)} == {value} meta mark set {table}")
        await lab.run(router, "ip", "-batch", "-", stdin="\n".join(batch) + "\n")
        await lab.run(
            router, "nft", "-f", "-", stdin=_SPLIT.format(incoming=incoming, rules="\n".join(marks))
        )


async def join(lab: Lab) -> None:
    """Take the rules of :func:`split` out."""
    for router in ROUTERS:
        await lab.run(router, "nft", "-f", "-", stdin="table ip split\ndelete table ip split\n")
        for table in _TABLES.values():
            await lab.run(router, "ip", "rule", "del", "lookup", f"{table}", check=False)


async def rules(lab: Lab) -> int:
    """The wildcards that the routers match packets with, both routers' together."""
    found = 0
    for router in ROUTERS:
        done = await lab.run(router, "nft", "--json", "list", "ruleset", "ip")
        for item in msgspec.json.decode(done.out)["nftables"]:
            rule = item.get("rule", {})
            found += rule.get("table") == "split" and any("mangle" in one for one in rule["expr"])
    return found


# -- at the instances -------------------------------------------------------------------------


async def forget(lab: Lab) -> None:
    """Begin to count anew."""
    for nf in INSTANCES:
        script = "flush set ip load up\nflush set ip load down\n"
        await lab.run(nf, "nft", "-f", "-", stdin=script)


async def counted(lab: Lab, nf: str) -> dict[tuple[str, int], Counted]:
    """What *nf* has forwarded, by the client's address and port."""
    up, down = [await _listed(lab, nf, way) for way in ("up", "down")]
    return {flow: Counted(up.get(flow, 0), down.get(flow, 0)) for flow in up.keys() | down.keys()}


async def _listed(lab: Lab, nf: str, way: str) -> dict[tuple[str, int], int]:
    done = await lab.run(nf, "nft", "--json", "list", "set", "ip", "load", way)
    items = msgspec.json.decode(done.out)["nftables"]
    found: dict[str, Any] = next(item["set"] for item in items if "set" in item)
    elements = (one["elem"] for one in found.get("elem", ()))
    return {tuple(one["val"]["concat"]): int(one["counter"]["bytes"]) for one in elements}
