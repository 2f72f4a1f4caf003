"""The lab of incremental deployment: hosts with and without agents, and gateways (§8).

::

    phone ─ gw-a ─┐      ┌─ fw (inline)     ┌─ gw-b ─ web
                  ├ core ┼─ ids (tap)  core ┤
             ue ──┘      └─ control         ├─ srv
                                            └─ old

``phone``, ``web`` and ``old`` have no agent. ``gw-a`` serves the phone, ``gw-b`` the web server,
and nobody serves ``old``. Both gateways run a network function of their own, too.
"""

from __future__ import annotations

from m2m.lab.pace import SLOWNESS
from m2m.lab.topology import (
    GivenRoute,
    Host,
    Link,
    Nft,
    Nginx,
    PolicyServer,
    Role,
    Topology,
    checked,
)

PHONE, UE, WEB, SERVER, OLD = "phone", "ue", "web", "srv", "old"
NEAR, FAR = "gw-a", "gw-b"
CORE, CONTROL, FIREWALL, IDS = "core", "control", "fw", "ids"

CHAIN, CLOSED, OPEN, EDGE = 80, 81, 82, 83
"""Ports of the servers: through firewall and IDS; likewise, failing closed at once or open; and
through a chain of which the first and the last NF are the gateways' own."""

PORTS = (CHAIN, CLOSED, OPEN, EDGE)
PAGE = round(8_000_000 / SLOWNESS)  # bytes

# Sessions that a host forwards with their own addresses: what an inline NF sees, and what must not
# be seen in the core, where packets go from host to host.
_COUNTED = """
table ip seen {{
    counter known {{ }}
    set flows {{
        type ipv4_addr . inet_service . ipv4_addr . inet_service
        flags dynamic
        size 65535
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        ip saddr {{ {clients} }} ip daddr {{ {servers} }} counter name known
        ip saddr {{ {clients} }} ip daddr {{ {servers} }} meta l4proto {{ tcp, udp }} add @flows {{ ip saddr . th sport . ip daddr . th dport }}
    }}
}}
"""  # noqa: E501


def gateways(name: str = "gateways", setup_timeout: float = 2.0) -> Topology:
    """The lab, with agents that wait *setup_timeout* seconds for a chain."""
    inner = [NEAR, UE, FIREWALL, IDS, CONTROL, FAR, SERVER, OLD]
    # First the link to the core: by its address there others know a gateway.
    links = [
        Link((host, CORE), (f"10.0.{n}.2/24", f"10.0.{n}.1/24"))
        for n, host in enumerate(inner, start=1)
    ]
    links += [
        Link((PHONE, NEAR), ("10.1.0.2/24", "10.1.0.1/24")),
        Link((WEB, FAR), ("10.2.0.2/24", "10.2.0.1/24")),
    ]
    bare = Topology(name, {}, links)
    address = {host: bare.address(host) for host in (*inner, PHONE, WEB)}
    seen = Nft(
        _COUNTED.format(
            clients=f"{address[PHONE]}, {address[UE]}",
            servers=", ".join(address[host] for host in (WEB, SERVER, OLD)),
        )
    )
    # Sessions are to linger for as long as it takes to ask for their paths.
    options = ["--setup-timeout", f"{setup_timeout:g}", "--linger", f"{3 * SLOWNESS:g}"]
    pages = Nginx(ports=list(PORTS), pages={"/page": PAGE})
    hosts = {
        PHONE: Host(forward=False, routes=[GivenRoute("default", "10.1.0.1")]),
        WEB: Host(forward=False, routes=[GivenRoute("default", "10.2.0.1")], run=[pages]),
        OLD: Host(forward=False, run=[pages]),
        SERVER: Host(role=Role.SERVER, agent=options, run=[pages]),
        UE: Host(role=Role.CLIENT, agent=options),
        NEAR: Host(role=Role.GATEWAY, agent=options, run=[seen]),
        FAR: Host(role=Role.GATEWAY, agent=options, run=[seen]),
        FIREWALL: Host(role=Role.MIDDLEBOX, agent=options, run=[seen]),
        IDS: Host(role=Role.MIDDLEBOX, agent=options),
        CORE: Host(run=[seen]),
        CONTROL: Host(),
    }
    policy = f"""
nf firewall inline {{ {FIREWALL} = {address[FIREWALL]} }}
nf ids tap {{ {IDS} = {address[IDS]} }}
nf edge inline {{ {NEAR} = {address[NEAR]} }}
nf border inline {{ {FAR} = {address[FAR]} }}

gateway {NEAR} = {address[NEAR]} serves 10.1.0.0/24
gateway {FAR} = {address[FAR]} serves 10.2.0.0/24

match(dstport={CHAIN} | dstport={CLOSED}) >> {{firewall -> ids}} fail=closed
match(dstport={OPEN}) >> {{firewall -> ids}} fail=open
match(dstport={EDGE}) >> {{edge -> ids -> border}} fail=closed
match(proto=udp & dstport=7001) >> {{firewall -> ids}} fail=closed
"""
    return checked(Topology(name, hosts, links, PolicyServer(CONTROL, text=policy)), "gateways()")
