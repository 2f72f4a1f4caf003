"""All hosts on one Ethernet: routing alone would go straight from client to server.

::

    client 10.9.3.1 ──┐
    middle 10.9.3.2 ──┼── a bridge that knows nothing of M2M
    server 10.9.3.3 ──┘
"""

from __future__ import annotations

import pytest
import trio

from m2m.datapath import ALL_ADDRESSES
from m2m.protocol.flow import Flow, Proto, parse_address
from m2m.protocol.translation import Action, NextHop, Position, SessionView, entries_for
from tests.support.line import PATIENCE, Host, Wire, udp_socket
from tests.support.namespaces import NamespaceFactory

pytestmark = [
    pytest.mark.needs("netns", "bpffs", "nfqueue"),
    pytest.mark.usefixtures("kind"),
]

CLIENT, MIDDLE, SERVER = "10.9.3.1", "10.9.3.2", "10.9.3.3"


@pytest.mark.parametrize("an_agent_at_the_bridge", [False, True])
async def test_i2_packets_go_to_the_next_host_not_where_routing_would_send_them(
    netns: NamespaceFactory,
    an_agent_at_the_bridge: bool,
) -> None:
    bridge = netns("lan")
    bridge.run("ip", "link", "add", "br0", "type", "bridge")
    bridge.run("ip", "link", "set", "br0", "up")
    hosts = {}
    for label, address in (("client", CLIENT), ("middle", MIDDLE), ("server", SERVER)):
        hosts[label] = Host(netns(label), ["eth0"], [address])
        netns.link(hosts[label].namespace, ("eth0", f"{address}/24"), bridge, (label, "0.0.0.0/32"))
        bridge.run("ip", "link", "set", label, "master", "br0")
    flow = Flow.of(Proto.UDP, CLIENT, 40000, SERVER, 7000)
    left = Flow.of(Proto.UDP, CLIENT, 61001, MIDDLE, 63001)
    right = Flow.of(Proto.UDP, MIDDLE, 61002, SERVER, 63002)
    views = {
        "server": SessionView(1, Position.SERVER, flow, right, None),
        "middle": SessionView(1, Position.TAP, flow, left, right),
        "client": SessionView(1, Position.CLIENT, flow, None, left),
    }
    opened = []
    try:
        if an_agent_at_the_bridge:  # which routes nothing, but what it bridges is not its own
            there = Host(bridge, list(hosts), [])
            await there.open()
            opened.append(there)
            await there.datapath.set_addresses([ALL_ADDRESSES])
        for label, view in views.items():
            host = hosts[label]
            await host.open()
            opened.append(host)
            ifindex = host.namespace.ifindex("eth0")
            await host.install(
                entry._replace(hop=NextHop(ifindex, entry.rewrite.dst, 1500))
                if entry.action is Action.SEND
                else entry
                for entry in entries_for(view)
            )
        wire = Wire(hosts["middle"], "eth0")
        client = udp_socket(hosts["client"], CLIENT, flow.sport)
        server = udp_socket(hosts["server"], SERVER, flow.dport)
        with client, server, trio.fail_after(PATIENCE):
            # More than one: what is learnt from the first must not mislead the others.
            for number in range(20):
                await client.sendto(b"%d" % number, (SERVER, flow.dport))
                data, sender = await server.recvfrom(100)
                assert (data, sender) == (b"%d" % number, (CLIENT, flow.sport))
                await server.sendto(data, sender)
                assert await client.recv(100) == data
        assert wire.seen() == {
            (CLIENT, MIDDLE),
            (MIDDLE, CLIENT),
            (MIDDLE, SERVER),
            (SERVER, MIDDLE),
        }
        wire.close()
        for row in await hosts["middle"].rows():
            assert row.counters.packets == 20
            assert row.entry.rewrite.src == parse_address(MIDDLE)
    finally:
        with trio.CancelScope(shield=True):
            for host in opened:
                await host.close()
