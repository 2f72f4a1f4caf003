"""The lab of mobility: an endpoint with two access networks, a server with two racks.

::

            cell-a ─┐      ┌─ fw  (inline)     ┌─ rack-a ─┐
    ue ────┤        ├ core ┼─ ids (tap)  core ─┤          ├──── srv
            cell-b ─┘      └─ control          └─ rack-b ─┘

``ue`` is at one cell at a time, or at both; so is ``srv`` with its racks. Cells, racks and the core
are plain routers without agents: an address belongs to the cell or rack it was given by. What moves
the two is :mod:`m2m.lab.moves`. ``control`` runs the policy server, which every place reaches.
"""

from __future__ import annotations

from ipaddress import IPv4Interface
from typing import NamedTuple

from m2m.lab.topology import GivenRoute, Host, Link, Nft, PolicyServer, Role, Topology, checked

UE, OTHER_UE, SERVER = "ue", "ue2", "srv"
CELLS = ("cell-a", "cell-b")
RACKS = ("rack-a", "rack-b")
CORE, CONTROL = "core", "control"
FIREWALL, IDS = "fw", "ids"

PROBES_UDP, PROBES_TCP, BULK, SSH = 7001, 7002, 7003, 22
"""The server's ports whose sessions go through the chain."""

PORTS = (PROBES_UDP, PROBES_TCP, BULK, SSH)

# One counter for packets of the UE's and the server's first addresses, whichever they have now, one
# for all else that is forwarded, and every 5-tuple: what a firewall can bear witness of. Errors
# that one of the two tells the other (a port is closed by now) belong to their sessions.
WITNESS = """
table ip firewall {{
    counter known {{ }}
    counter strange {{ }}
    set flows {{
        type ipv4_addr . inet_proto . inet_service . ipv4_addr . inet_service
        flags dynamic
        size 65535
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        meta l4proto {{ tcp, udp }} add @flows {{ ip saddr . meta l4proto . th sport . ip daddr . th dport }}
        ip saddr {ue} ip daddr {srv} meta l4proto {{ tcp, udp }} th dport {{ {ports} }} counter name known accept
        ip saddr {srv} ip daddr {ue} meta l4proto {{ tcp, udp }} th sport {{ {ports} }} counter name known accept
        ip saddr {ue} ip daddr {srv} icmp type destination-unreachable counter name known accept
        ip saddr {srv} ip daddr {ue} icmp type destination-unreachable counter name known accept
        counter name strange
    }}
}}
"""  # noqa: E501


class Place(NamedTuple):
    """Where an endpoint can be: a router, and what it gives the endpoint there."""

    router: str  # also the name of the endpoint's interface
    address: IPv4Interface
    gateway: str


def places(topology: Topology, host: str) -> dict[str, Place]:
    """All places of an endpoint, by the router's name."""
    found = {}
    for link in topology.links_of(host):
        router = link.other(host)
        found[router] = Place(router, link.address(host), str(link.address(router).ip))
    return found


def handover(
    *,
    middleboxes: int = 2,
    first_per_cell: bool = False,
    other_ue: bool = False,
    rate: str | None = "1gbit",
    agent: tuple[str, ...] = ("--linger", "1", "--udp-idle", "10"),
    name: str = "handover",
) -> Topology:
    """The lab with a chain of *middleboxes*: the firewall, and the IDS if there are two.

    With *first_per_cell* the first hop changes with the cell: ``fw-a`` at cell A, ``fw-b`` at cell
    B, chosen by the UE's address. *other_ue* adds a second UE, which can take the first one's
    former address. *rate* is that of every link; *agent* further options of every agent.
    Raises :exc:`ConfigError`.
    """
    firewalls = [f"{FIREWALL}-a", f"{FIREWALL}-b"] if first_per_cell else [FIREWALL]
    boxes = [*firewalls, *([IDS] if middleboxes > 1 else [])]
    users = [UE, *([OTHER_UE] if other_ue else [])]
    ends = [(user, cell, f"10.{i}.{n}") for n, user in enumerate(users)
            for i, cell in enumerate(CELLS, start=1)]  # fmt: skip
    ends += [(SERVER, rack, f"10.{i}.0") for i, rack in enumerate(RACKS, start=4)]
    inner = [*CELLS, *RACKS, *boxes, CONTROL]
    to_core = [(host, CORE, f"10.0.{i}") for i, host in enumerate(inner, start=1)]
    links = [
        Link((left, right), (f"{net}.2/24", f"{net}.1/24"), rate=rate)
        for left, right, net in _unlike(ends, to_core)
    ]
    bare = Topology(name, {}, links)
    ports = ", ".join(map(str, PORTS))
    where = {"ue": bare.address(UE), "srv": bare.address(SERVER), "ports": ports}
    options = list(agent)

    def by(host: str) -> list[GivenRoute]:
        """Everything that is not next door by the host's first link, or to the core."""
        link = next((k for k in bare.links_of(host) if CORE in k.between), bare.links_of(host)[0])
        return [GivenRoute("default", str(link.address(link.other(host)).ip))]

    roles = {**dict.fromkeys(users, Role.CLIENT), SERVER: Role.SERVER}
    hosts = {host: Host(role=role, routes=by(host), agent=options) for host, role in roles.items()}
    hosts |= {host: Host(routes=by(host)) for host in (*CELLS, *RACKS, CONTROL)}
    hosts[CORE] = Host()
    for host in boxes:
        rules = [Nft(WITNESS.format(**where), nf="firewall")] if host in firewalls else []
        hosts[host] = Host(role=Role.MIDDLEBOX, routes=by(host), agent=options, run=[*rules])
    served = PolicyServer(CONTROL, text=_policy(bare, firewalls, boxes))
    return checked(Topology(name, hosts, links, served), "handover()")


_Ends = tuple[str, str, str]  # both hosts, and the first three numbers of the subnet


def _unlike(ends: list[_Ends], to_core: list[_Ends]) -> list[_Ends]:
    """All links, in an order in which no interface of an endpoint has its other end's index.

    The kernel tells a veth pair from another device by that, and lets the news of a carrier wait
    for up to a second where it cannot (linkwatch). Interfaces are numbered as they are made: an
    endpoint's are 2 and 3, so its first router has the link to the core before, its second after.
    """
    core = {host: (host, far, net) for host, far, net in to_core}
    first = [core.pop(CELLS[0]), core.pop(RACKS[0])]
    second = [core.pop(CELLS[1]), core.pop(RACKS[1])]
    return [*first, *ends[:2], *ends[-2:], *second, *ends[2:-2], *core.values()]


def _policy(topology: Topology, firewalls: list[str], boxes: list[str]) -> str:
    """Every session to the ports goes through the chain, wherever its ends are."""
    ports = " | ".join(f"dstport={port}" for port in PORTS)
    behind = "".join(f" -> {box}" for box in boxes if box not in firewalls)
    lines = [
        f"nf {'firewall' if box == FIREWALL else box} {'tap' if box == IDS else 'inline'}"
        f" {{ {box} = {topology.address(box)} }}"
        for box in boxes
    ]
    if len(firewalls) == 1:
        lines.append(f"match({ports}) >> {{firewall{behind}}} fail=closed")
    else:
        for i, box in enumerate(firewalls, start=1):
            lines.append(
                f"match(srcip=10.{i}.0.0/16 & ({ports}))"
                f" >> {{{box}{behind}}} fail=closed live=follow"
            )
    return "\n".join(lines) + "\n"
