"""The lab of a process that moves: a client, a chain, and two servers' hosts in two subnets.

::

                  ┌─ fw  (inline)
    ue ──── core ─┼─ ids (tap)  core ──┬── here    10.4.0.0/24
                  └─ control           └── there   10.5.0.0/24

``here`` and ``there`` have an agent and a device key each. Sessions begin at ``here``.
"""

from __future__ import annotations

from m2m.lab.handover import WITNESS
from m2m.lab.topology import Host, Link, Nft, PolicyServer, Role, Topology, checked

UE, HERE, THERE = "ue", "here", "there"
CORE, CONTROL, FIREWALL, IDS = "core", "control", "fw", "ids"

MOVABLE, OTHER = 7003, 7004
"""Ports whose sessions go through the chain: of the process that moves, and of one that stays."""

# What would be on the way from the process to the UE, or back, without M2M.
_BARE = """
table ip bare {{
    counter past {{ }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        ip saddr {ue} ip daddr {srv} tcp dport {{ {ports} }} counter name past
        ip saddr {srv} ip daddr {ue} tcp sport {{ {ports} }} counter name past
    }}
}}
"""


def hosts_of_process(name: str = "process") -> Topology:
    """The lab."""
    subnets = [(UE, "10.1.0"), (HERE, "10.4.0"), (THERE, "10.5.0")]
    subnets += [(host, f"10.0.{n}") for n, host in enumerate((FIREWALL, IDS, CONTROL), start=1)]
    links = [
        Link((host, CORE), (f"{net}.2/24", f"{net}.1/24"), rate="200mbit") for host, net in subnets
    ]
    bare = Topology(name, {}, links)
    where = {
        "ue": bare.address(UE), "srv": bare.address(HERE), "ports": f"{MOVABLE}, {OTHER}",
    }  # fmt: skip
    options = ["--linger", "1"]
    hosts = {
        UE: Host(role=Role.CLIENT, agent=options),
        HERE: Host(role=Role.SERVER, agent=options),
        THERE: Host(role=Role.SERVER, agent=options),
        FIREWALL: Host(
            role=Role.MIDDLEBOX, agent=options, run=[Nft(WITNESS.format(**where), nf="firewall")]
        ),
        IDS: Host(role=Role.MIDDLEBOX, agent=options),
        CORE: Host(run=[Nft(_BARE.format(**where))]),
        CONTROL: Host(),
    }
    policy = f"""
nf firewall inline {{ {FIREWALL} = {bare.address(FIREWALL)} }}
nf ids tap {{ {IDS} = {bare.address(IDS)} }}

match(dstport={MOVABLE} | dstport={OTHER}) >> {{firewall -> ids}} fail=closed
"""
    return checked(
        Topology(name, hosts, links, PolicyServer(CONTROL, text=policy)), "hosts_of_process()"
    )
