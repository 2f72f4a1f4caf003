"""The lab of reconfiguration: two paths that a session can be moved between while it runs.

::

             b
           /   \\
    a ... l     r ... d          every link shaped to the same rate
           \\   /
             c

``b`` and ``c`` run an instance each of one NF type and are linked with each other, so that one can
be inserted behind the other. Without further hosts ``l`` is the client ``a`` and ``r`` the server
``d``: the four machines of the paper (§7.2.2).
"""

from __future__ import annotations

from itertools import pairwise

from m2m.lab.topology import Host, Link, PolicyServer, Role, Topology, checked

CLIENT, SERVER = "a", "d"
OLD, NEW = "b", "c"
NF = "proxy"
"""The NF type of *b* and *c*."""

PORTS = (5201, 5202, 5203)
"""The server's ports whose sessions go through the chain."""


def two_paths(
    *,
    before: int = 0,
    after: int = 0,
    kind: str = "tap",
    rate: str | None = "1gbit",
    ports: tuple[int, ...] = PORTS,
    name: str = "twopaths",
) -> Topology:
    """The lab, with *before* middleboxes ``l1..`` between a and the fork, *after* ``r1..`` behind.

    *kind* is that of every NF, ``tap`` or ``inline``; *rate* that of every link in both
    directions, None for unshaped links.
    """
    left = [CLIENT, *(f"l{i}" for i in range(1, before + 1))]
    right = [*(f"r{i}" for i in range(1, after + 1)), SERVER]
    last, first = left[-1], right[0]
    # In this order: others know a host by its address on its first link.
    pairs = [
        *pairwise(left),
        (last, OLD),
        (last, NEW),
        (OLD, first),
        (NEW, first),
        *pairwise(right),
    ]
    links = [
        Link(pair, (f"10.0.{i}.1/24", f"10.0.{i}.2/24"), rate=rate)
        for i, pair in enumerate([*pairs, (OLD, NEW)], start=1)
    ]
    line = [*left, OLD, NEW, *right]
    roles = {CLIENT: Role.CLIENT, SERVER: Role.SERVER}
    hosts = {host: Host(role=roles.get(host, Role.MIDDLEBOX)) for host in line}
    topology = Topology(name, hosts, links)
    others = [*left[1:], *right[:-1]]
    nfs = [f"nf {NF} {kind} {{ {', '.join(f'{h} = {topology.address(h)}' for h in (OLD, NEW))} }}"]
    nfs += [f"nf nf-{host} {kind} {{ {host} = {topology.address(host)} }}" for host in others]
    chain = [*(f"nf-{h}" for h in left[1:]), NF, *(f"nf-{h}" for h in right[:-1])]
    rules = [
        f"match(dstip={topology.address(SERVER)} & dstport={port})"
        f" >> {{{' -> '.join(chain)}}} fail=closed"
        for port in ports
    ]
    served = PolicyServer(CLIENT, text="\n".join([*nfs, *rules]) + "\n")
    return checked(Topology(name, hosts, links, served), f"two_paths({before}, {after})")


def fork(topology: Topology) -> str:
    """The host on the left of both *b* and *c*: the one that leads when one replaces the other."""
    return next(link.between[0] for link in topology.links if link.between[1] == OLD)
