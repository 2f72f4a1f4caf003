"""The host's network as the kernel tells it, in a real namespace."""

import pytest
import trio

from m2m.agent.watch import Network, NoRoute
from m2m.protocol.flow import format_address, parse_address
from tests.support.namespaces import Namespace, NamespaceFactory

A1, B1 = parse_address("10.9.0.1"), parse_address("10.9.0.2")
FAR = parse_address("10.77.0.1")


@pytest.fixture
def pair(netns: NamespaceFactory) -> tuple[Namespace, Namespace]:
    a, b = netns("a"), netns("b")
    netns.link(a, ("eth0", "10.9.0.1/24"), b, ("eth0", "10.9.0.2/24"))
    return a, b


async def opened(namespace: Namespace) -> Network:
    with namespace.entered():
        return await Network().__aenter__()


async def test_links_addresses_and_ways_are_known(pair: tuple[Namespace, Namespace]) -> None:
    a, _ = pair
    network = await opened(a)
    try:
        assert {link.name for link in network.links.values() if link.ethernet} == {"eth0"}
        assert set(network.addresses) == {parse_address("127.0.0.1"), A1}
        way = network.way_to(B1)
        assert (way.source, way.hop) == (A1, (a.ifindex("eth0"), B1, 1500))
        with pytest.raises(NoRoute, match=r"no route to 10\.77\.0\.1: ENETUNREACH"):
            network.way_to(FAR)
        with pytest.raises(NoRoute, match=r"10\.9\.0\.1 cannot be a next hop"):
            network.way_to(A1)
        with pytest.raises(NoRoute, match="IPv6"):
            network.way_to(parse_address("2001:db8::1"))
    finally:
        await network.__aexit__(None, None, None)


async def test_changes_are_heard_and_ways_follow(pair: tuple[Namespace, Namespace]) -> None:
    a, _ = pair
    network = await opened(a)
    changes = network.changes()
    try:
        with trio.fail_after(10):
            a.route("10.77.0.0/16", "via", "10.9.0.2", "mtu", "1400")
            await anext(changes)
            way = network.way_to(FAR)
            assert (format_address(way.hop.gateway), way.hop.mtu) == ("10.9.0.2", 1400)

            a.run("ip", "address", "add", "10.9.1.1/24", "dev", "eth0")
            while parse_address("10.9.1.1") not in network.addresses:
                await anext(changes)

            a.run("ip", "link", "add", "new0", "type", "veth", "peer", "new1")
            while "new0" not in {link.name for link in network.links.values()}:
                await anext(changes)

            a.run("ip", "link", "set", "eth0", "mtu", "1300")
            while network.way_to(B1).hop.mtu != 1300:
                await anext(changes)

            a.run("ip", "address", "flush", "dev", "eth0")
            while A1 in network.addresses:
                await anext(changes)
            with pytest.raises(NoRoute):
                network.way_to(B1)
    finally:
        await changes.aclose()
        await network.__aexit__(None, None, None)
