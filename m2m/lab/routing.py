"""Routes of a lab: shortest paths for every host, and detours by policy routing.

Pure computation; the result is lines for ``ip -batch``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import pairwise

from m2m.errors import ConfigError
from m2m.lab.topology import Detour, Topology

_FIRST_DETOUR_TABLE = 100


def path(topology: Topology, start: str, end: str) -> list[str]:
    """The hosts on a shortest path from *start* to *end*, both included.

    Only hosts that forward are passed through. Raises :exc:`ConfigError` when there is none.
    """
    before: dict[str, str] = {start: start}
    queue = deque([start])
    while queue:
        host = queue.popleft()
        if host == end:
            hosts = [end]
            while hosts[-1] != start:
                hosts.append(before[hosts[-1]])
            return hosts[::-1]
        if host != start and not topology.hosts[host].forwards:
            continue
        for link in topology.links_of(host):
            if link.other(host) not in before:
                before[link.other(host)] = host
                queue.append(link.other(host))
    raise ConfigError(
        f"lab {topology.name}: no path from {start} to {end}; add a link, or forward = true"
        " to a host between them"
    )


def chain_path(topology: Topology, chain: list[str]) -> list[str]:
    """The hosts that packets meet on their way along *chain*, routers included."""
    hosts = [chain[0]]
    for left, right in pairwise(chain):
        hosts += path(topology, left, right)[1:]
    return hosts


def _gateway(topology: Topology, host: str, neighbour: str) -> str:
    link = next(link for link in topology.links_of(host) if neighbour in link.between)
    return str(link.address(neighbour).ip)


def routes(topology: Topology, host: str) -> Iterator[str]:
    """``ip -batch`` lines for *host*: the routes given to it, or one to each distant subnet."""
    given = topology.hosts[host].routes
    if given is not None:
        yield from (f"route add {route.to} via {route.via}" for route in given)
        return
    near = {link.subnet for link in topology.links_of(host)}
    for link in topology.links:
        if link.subnet in near:
            continue
        ways = {end: path(topology, host, end) for end in link.between}
        nearer = min(ways.values(), key=len)[1]
        yield f"route add {link.subnet} via {_gateway(topology, host, nearer)}"
        for end, way in ways.items():
            # A neighbour is one hop away, whichever of its addresses is meant.
            if len(way) == 2 and end != nearer:
                yield f"route add {link.address(end).ip} via {_gateway(topology, host, end)}"


def detours(topology: Topology, host: str) -> Iterator[str]:
    """``ip -batch`` lines that lead the flows of the detours by *host* on their way.

    Raises :exc:`ConfigError` when a detour would pass *host* twice from the same neighbour to
    different ones: policy routing knows the incoming interface, not the hop count.
    """
    tables: dict[str, int] = {}
    rules: dict[str, str] = {}
    for detour in topology.detours:
        client, server = detour.between
        way = chain_path(topology, [client, *detour.via, server])
        for hosts, port_side, target in (
            (way, "dport", topology.address(server)),
            (way[::-1], "sport", topology.address(client)),
        ):
            for incoming, outgoing in _visits(hosts, host):
                if outgoing not in tables:
                    tables[outgoing] = _FIRST_DETOUR_TABLE + len(tables)
                    yield (
                        f"route add default via {_gateway(topology, host, outgoing)}"
                        f" table {tables[outgoing]}"
                    )
                for port in detour.ports:
                    rule = f"rule add iif {incoming} to {target} ipproto tcp {port_side} {port}"
                    if rules.setdefault(rule, outgoing) != outgoing:
                        raise _ambiguous(topology, detour, host, incoming)
                    yield f"{rule} lookup {tables[outgoing]}"


def _visits(hosts: list[str], host: str) -> Iterator[tuple[str, str]]:
    """Where packets on their way along *hosts* come from and go to at each visit of *host*."""
    for i, (here, following) in enumerate(pairwise(hosts)):
        if here == host:
            yield (hosts[i - 1] if i else "lo"), following


def _ambiguous(topology: Topology, detour: Detour, host: str, incoming: str) -> ConfigError:
    return ConfigError(
        f"lab {topology.name}: the detour via {', '.join(detour.via)} passes {host} twice from"
        f" {incoming}; give the middleboxes links of their own"
    )
