"""The host's network as the kernel tells it, in a real namespace."""

import socket

import pytest
import trio
import trio.testing

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


async def test_an_address_that_several_interfaces_have(pair: tuple[Namespace, Namespace]) -> None:
    a, _ = pair
    a.run("ip", "link", "add", "eth1", "type", "veth", "peer", "eth2")
    a.run("ip", "link", "set", "eth1", "up")
    eth0, eth1 = a.ifindex("eth0"), a.ifindex("eth1")
    network = await opened(a)
    changes = network.changes()

    async def after(*command: str) -> tuple[int | None, int | None]:
        a.run("ip", *command)
        await anext(changes)
        return network.addresses.get(A1), network.home(A1)

    try:
        with trio.fail_after(10):
            assert (network.addresses[A1], network.home(A1)) == (eth0, eth0)
            assert not network.is_lost(A1)
            assert network.home(parse_address("127.0.0.1")) is None
            assert not network.is_lost(parse_address("127.0.0.1"))
            assert await after("address", "add", "10.9.0.1/32", "dev", "lo") == (eth0, eth0)
            assert await after("address", "add", "10.9.0.1/32", "dev", "eth1") == (eth0, eth0)
            assert await after("address", "del", "10.9.0.1/24", "dev", "eth0") == (eth1, eth1)
            assert await after("address", "add", "10.9.0.1/24", "dev", "eth0") == (eth1, eth1)
            assert await after("address", "del", "10.9.0.1/24", "dev", "eth0") == (eth1, eth1)
            assert await after("address", "del", "10.9.0.1/32", "dev", "eth1") == (1, None)
            assert await after("address", "del", "10.9.0.1/32", "dev", "lo") == (None, None)
    finally:
        await changes.aclose()
        await network.__aexit__(None, None, None)


async def test_an_interface_goes_down_gets_another_name_and_comes_back(
    pair: tuple[Namespace, Namespace],
) -> None:
    a, _ = pair
    eth0 = a.ifindex("eth0")
    network = await opened(a)
    changes = network.changes()
    try:
        with trio.fail_after(10):
            assert network.links[eth0].up
            a.run("ip", "link", "set", "eth0", "down")
            while network.links[eth0].up:
                await anext(changes)
            assert (network.addresses[A1], network.home(A1)) == (eth0, None)
            assert network.is_lost(A1)
            a.run("ip", "link", "set", "eth0", "name", "wlan0")
            while network.links[eth0].name != "wlan0":
                await anext(changes)
            a.run("ip", "link", "set", "wlan0", "up")
            while network.home(A1) != eth0:
                await anext(changes)

            a.run("ip", "link", "del", "wlan0")
            while eth0 in network.links:
                await anext(changes)
            assert A1 not in network.addresses
            peer = ("type", "veth", "peer", "wlan1")
            a.run("ip", "link", "add", "wlan0", "index", str(eth0), *peer)
            while network.links.get(eth0) is None or network.links[eth0].name != "wlan0":
                await anext(changes)
            assert not network.links[eth0].up
    finally:
        await changes.aclose()
        await network.__aexit__(None, None, None)


async def test_each_news_of_a_handover_is_told_at_once(
    pair: tuple[Namespace, Namespace], autojump_clock: trio.testing.MockClock
) -> None:
    """Nobody waits whether more will come: Trio's time stands still."""
    a, _ = pair
    network = await opened(a)
    changes = network.changes()
    began = trio.current_time()
    try:
        for command in (
            "address del 10.9.0.1/24 dev eth0",
            "address add 10.9.5.1/24 dev eth0",
            "route add default via 10.9.5.2",
            "rule add from 10.9.5.1 lookup main",
            "link set eth0 down",
        ):
            a.run("ip", *command.split())
            with trio.fail_after(10):
                await anext(changes)  # the news are there when ip has ended
            assert trio.current_time() == began, command
    finally:
        await changes.aclose()
        await network.__aexit__(None, None, None)


async def test_what_is_known_stays_known_while_lost_news_are_asked_for(
    pair: tuple[Namespace, Namespace],
) -> None:
    a, _ = pair
    network = await opened(a)
    changes = network.changes()
    missing = 0

    async def look() -> None:
        nonlocal missing
        while True:
            missing += not (A1 in network.addresses and a.ifindex("eth0") in network.links)
            await trio.lowlevel.checkpoint()

    try:
        assert network._news is not None
        network._news.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        routes = "\n".join(f"route add 10.{i}.0.0/16 dev eth0" for i in range(20, 120))
        batch = f"{routes}\naddress add 10.9.1.1/24 dev eth0\n"
        a.run("sh", "-c", f"printf '{batch}' | ip -batch -")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            with trio.fail_after(10):
                while parse_address("10.9.1.1") not in network.addresses:
                    await anext(changes)
            nursery.cancel_scope.cancel()
        assert missing == 0
    finally:
        await changes.aclose()
        await network.__aexit__(None, None, None)
