"""Routes of a lab: shortest paths, and detours along a chain's path."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2m.errors import ConfigError
from m2m.lab import routing
from m2m.lab.topology import load, parse

DEMO = Path(__file__).parents[2] / "examples" / "labs" / "demo.toml"

LINE = """
name = "line"
[hosts.a]
[hosts.b]
[hosts.c]
[[links]]
between = ["a", "b"]
addresses = ["10.1.0.1/24", "10.1.0.2/24"]
[[links]]
between = ["b", "c"]
addresses = ["10.2.0.1/24", "10.2.0.2/24"]
"""


def change(old: str, new: str) -> str:
    assert old in LINE
    return LINE.replace(old, new, 1)


def test_shortest_path() -> None:
    assert routing.path(parse(LINE), "a", "c") == ["a", "b", "c"]


def test_hosts_that_do_not_forward_are_not_passed_through() -> None:
    blocked = parse(change("[hosts.b]", "[hosts.b]\nforward = false"))
    with pytest.raises(ConfigError, match="no path from a to c"):
        routing.path(blocked, "a", "c")


def test_routes_lead_to_every_distant_subnet() -> None:
    assert list(routing.routes(parse(LINE), "a")) == ["route add 10.2.0.0/24 via 10.1.0.2"]
    assert list(routing.routes(parse(LINE), "b")) == []


def test_a_neighbour_is_one_hop_away_by_each_of_its_addresses() -> None:
    ring = (
        LINE
        + """
[[links]]
between = ["c", "a"]
addresses = ["10.3.0.1/24", "10.3.0.2/24"]
"""
    )
    assert list(routing.routes(parse(ring), "a")) == [
        "route add 10.2.0.0/24 via 10.1.0.2",
        "route add 10.2.0.2 via 10.3.0.1",
    ]


def test_given_routes_replace_the_computed_ones() -> None:
    given = change("[hosts.a]", "[hosts.a]\nroutes = [{to = 'default', via = '10.1.0.2'}]")
    assert list(routing.routes(parse(given), "a")) == ["route add default via 10.1.0.2"]


def test_a_detour_visits_the_chain_in_both_directions() -> None:
    demo = load(DEMO)
    way = routing.chain_path(demo, ["client", "firewall", "ids", "server"])
    assert way == ["client", "r0", "firewall", "r0", "ids", "r0", "server"]
    lines = list(routing.detours(demo, "r0"))
    tables = {
        line.split()[-1]: line.split()[4] for line in lines if line.startswith("route add default")
    }
    next_hop = {
        (line.split()[3], line.split()[5]): tables[line.split()[-1]]
        for line in lines
        if "port 8080" in line
    }
    client, server = demo.address("client"), demo.address("server")
    assert next_hop == {
        ("client", server): demo.address("firewall"),
        ("firewall", server): demo.address("ids"),
        ("ids", server): server,
        ("server", client): demo.address("ids"),
        ("ids", client): demo.address("firewall"),
        ("firewall", client): client,
    }


def test_a_detour_that_policy_routing_cannot_express_is_refused() -> None:
    text = LINE.replace("[hosts.c]", "[hosts.c]\n[hosts.d]") + (
        '[[links]]\nbetween = ["b", "d"]\naddresses = ["10.3.0.1/24", "10.3.0.2/24"]\n'
        '[[detours]]\nbetween = ["a", "d"]\nvia = ["c", "a"]\nports = [1]\n'
    )
    with pytest.raises(ConfigError, match="passes b twice from a"):
        list(routing.detours(parse(text), "b"))
