"""The lab of mobility: its shape, its routes, its policy."""

from __future__ import annotations

import pytest

from m2m.lab import routing
from m2m.lab.handover import CELLS, OTHER_UE, PORTS, RACKS, SERVER, UE, handover, places
from m2m.policy.compile import compile_policy
from m2m.policy.language import parse


def test_an_endpoint_has_a_place_at_each_of_its_routers() -> None:
    topology = handover()
    for host, routers in ((UE, CELLS), (SERVER, RACKS)):
        found = places(topology, host)
        assert tuple(found) == routers
        assert len({place.address.network for place in found.values()}) == 2
        for place in found.values():
            assert place.gateway in map(str, place.address.network.hosts())


@pytest.mark.parametrize("options", [{}, {"middleboxes": 1}, {"other_ue": True}])
def test_the_core_reaches_every_subnet_without_passing_an_endpoint(options: dict[str, int]) -> None:
    topology = handover(**options)
    lines = [line.split() for line in routing.routes(topology, "core")]
    endpoints = {
        str(place.address.ip)
        for host in ("ue", "srv", "ue2")
        if host in topology.hosts
        for place in places(topology, host).values()
    }
    assert {via for _, _, to, _, via in lines if to.endswith("/24")}.isdisjoint(endpoints)
    near = {link.subnet for link in topology.links_of("core")}
    far = {str(link.subnet) for link in topology.links} - set(map(str, near))
    assert far <= {to for _, _, to, _, _ in lines}


@pytest.mark.parametrize("middleboxes", [1, 2])
def test_every_port_goes_through_the_chain(middleboxes: int) -> None:
    topology = handover(middleboxes=middleboxes)
    assert topology.policy and topology.policy.text
    policy = compile_policy(parse(topology.policy.text))
    chain = ("firewall", "ids")[:middleboxes]
    assert {row.chain for row in policy.policies} == {chain}
    for port in PORTS:
        assert f"dstport={port}" in topology.policy.text


def test_the_first_hop_is_that_of_the_cell() -> None:
    topology = handover(first_per_cell=True)
    assert topology.policy and topology.policy.text
    policy = compile_policy(parse(topology.policy.text))
    assert {row.chain for row in policy.policies} == {("fw-a", "ids"), ("fw-b", "ids")}


def test_no_interface_of_an_endpoint_has_the_index_of_its_other_end() -> None:
    topology = handover(other_ue=True)

    def index(host: str, other: str) -> int:
        return [link.other(host) for link in topology.links_of(host)].index(other) + 2

    for host, routers in ((UE, CELLS), (OTHER_UE, CELLS), (SERVER, RACKS)):
        for router in routers:
            assert index(host, router) != index(router, host)
