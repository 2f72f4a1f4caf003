"""The lab of reconfiguration: its shape, its routes, its policy."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from m2m.lab import routing
from m2m.lab.topology import Topology, load
from m2m.lab.two_paths import fork, two_paths
from m2m.policy.compile import compile_policy
from m2m.policy.language import parse

EXAMPLE = Path(__file__).parents[2] / "examples" / "labs" / "twopaths.toml"


def next_hop(topology: Topology, host: str, target: str) -> str:
    """The neighbour by which *host* reaches *target*, as its routes say."""
    address = topology.address(target)
    net = topology.links_of(target)[0].subnet
    lines = (line.split() for line in routing.routes(topology, host))
    routes = {to: gateway for _, _, to, _, gateway in lines}
    if address not in routes and str(net) not in routes:
        return next(k.other(host) for k in topology.links_of(host) if k.subnet == net)
    gateway = routes.get(address) or routes[str(net)]
    return next(
        link.other(host)
        for link in topology.links_of(host)
        if str(link.address(link.other(host)).ip) == gateway
    )


def test_the_example_is_the_lab_of_tests_and_benches() -> None:
    example, made = load(EXAMPLE), two_paths()
    services = {name: msgspec.structs.replace(host, run=[]) for name, host in example.hosts.items()}
    assert msgspec.structs.replace(example, hosts=services, policy=made.policy) == made
    assert example.policy and made.policy
    assert (example.policy.text or "").strip() == (made.policy.text or "").strip()


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 0), (0, 1), (2, 2)])
def test_neighbours_are_one_hop_apart(before: int, after: int) -> None:
    topology = two_paths(before=before, after=after)
    left = ["a", *(f"l{i + 1}" for i in range(before))]
    right = [*(f"r{i + 1}" for i in range(after)), "d"]
    for middle in (["b"], ["c"], ["b", "c"]):
        line = [*left, *middle, *right]
        for one, other in pairwise(line):
            assert next_hop(topology, one, other) == other
            assert next_hop(topology, other, one) == one


@pytest.mark.parametrize("kind", ["tap", "inline"])
def test_the_policy_leads_every_port_through_the_whole_chain(kind: str) -> None:
    topology = two_paths(before=1, after=2, kind=kind, ports=(80, 81))
    assert topology.policy and topology.policy.text
    policy = compile_policy(parse(topology.policy.text))
    assert [row.chain for row in policy.policies] == [("nf-l1", "proxy", "nf-r1", "nf-r2")] * 2
    assert {nf.kind for nf in policy.nfs} == {kind}
    assert {one.name for nf in policy.nfs for one in nf.instances} == {"l1", "b", "c", "r1", "r2"}


def test_every_link_has_the_rate() -> None:
    assert {link.rate for link in two_paths(rate="200mbit").links} == {"200mbit"}
    assert {link.rate for link in two_paths(rate=None).links} == {None}


@pytest.mark.parametrize(("before", "leader"), [(0, "a"), (1, "l1"), (2, "l2")])
def test_the_paths_fork_behind_the_last_host_on_the_left(before: int, leader: str) -> None:
    assert fork(two_paths(before=before, after=1)) == leader
