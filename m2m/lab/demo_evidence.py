"""What captures prove about a chain: pure functions from packets to checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from m2m.lab.capture import Connection, Packet, connections
from m2m.lab.demo_results import Check, LegSeen, LinkSeen, NfSeen
from m2m.protocol.flow import format_address


class Chain:
    """The hosts of a chain, from client to server, and their addresses."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self.hosts = tuple(addresses)
        self._names = {address: host for host, address in addresses.items()}
        self._legs = [frozenset(pair) for pair in pairwise(addresses.values())]
        self._addresses = addresses

    def leg(self, connection: Connection) -> str:
        """Who opened *connection* to whom: ``client > firewall``."""
        ends = map(format_address, (connection.flow.src, connection.flow.dst))
        return " > ".join(self._names.get(end, end) for end in ends)

    def holds(self, connection: Connection) -> bool:
        """Whether *connection* is between neighbours."""
        ends = map(format_address, (connection.flow.src, connection.flow.dst))
        return frozenset(ends) in self._legs

    def _pair(self, ends: frozenset[str]) -> str:
        # In the chain's order; strangers last.
        places = {host: i for i, host in enumerate(self.hosts)}
        names = [self._names.get(end, end) for end in ends]
        return " - ".join(sorted(names, key=lambda name: (places.get(name, len(places)), name)))

    def links(self, seen: Mapping[str, Sequence[Packet]]) -> list[LinkSeen]:
        """What was on the link of each host, for the report."""
        return [
            LinkSeen(
                host=host,
                pairs=sorted({self._pair(packet.ends) for packet in packets}),
                packets=len(packets),
                legs=[_leg_seen(leg, found) for leg, found in self._by_leg(packets).items()],
            )
            for host, packets in seen.items()
        ]

    def _by_leg(self, packets: Sequence[Packet]) -> dict[str, list[Connection]]:
        legs: dict[str, list[Connection]] = {}
        for connection in connections(packets):
            legs.setdefault(self.leg(connection), []).append(connection)
        return legs

    def neighbours_only(self, seen: Mapping[str, Sequence[Packet]]) -> Check:
        """I2: on the link of each host, all packets are between it and its neighbours."""
        strangers = [
            f"on the link of {host}: {packet.flow}"
            for host, packets in seen.items()
            for packet in packets
            if packet.ends not in self._legs or self._addresses[host] not in packet.ends
        ]
        total = sum(map(len, seen.values()))
        return Check(
            "every packet on every link is between neighbours of the chain",
            not strangers and all(seen.values()),
            strangers[0] if strangers else f"{total:,} packets on {len(seen)} links",
            "I2",
        )

    def sizes_unchanged(self, seen: Mapping[str, Sequence[Packet]]) -> Check:
        """I1: each leg carries the same connections, packet for packet of the same sizes.

        Each leg is seen at both of its ends, so a chain of n legs is seen 2n times.
        """
        carried = {
            (leg, host): [(c.to_server.sizes, c.to_client.sizes) for c in found]
            for host, packets in seen.items()
            for leg, found in self._by_leg(packets).items()
        }
        first = next(iter(carried.values()), [])
        other = [f"{leg} on the link of {h}" for (leg, h), s in carried.items() if s != first]
        legs = len(self.hosts) - 1
        whole = len(carried) == 2 * legs
        return Check(
            "packets have the same number and sizes on every link",
            whole and not other,
            f"other packets: {other[0]}"
            if other
            else f"{len(first)} connections, {legs} legs, seen {len(carried)} times",
            "I1",
        )


def offloads_used(seen: Mapping[str, Sequence[Packet]], mtu: int) -> Check:
    """I1: segments larger than the MTU travel whole on every link."""
    largest = {
        host: max((packet.length for packet in packets), default=0)
        for host, packets in seen.items()
    }
    return Check(
        "segmentation offload stays on along the whole chain",
        min(largest.values(), default=0) > mtu,
        f"packets of up to {min(largest.values(), default=0):,} bytes on every link",
        "I1",
    )


def no_byte_added(web: Connection, sent: int, received: int) -> Check:
    """I1: what TCP carried is what the application sent and received."""
    return Check(
        "TCP carries curl's own bytes and not one more",
        (web.to_server.payload, web.to_client.payload) == (sent, received),
        f"{web.to_server.payload:,} of {sent:,} bytes sent,"
        f" {web.to_client.payload:,} of {received:,} received",
        "I1",
    )


def packets_of(connection: Connection) -> int:
    """Packets of both directions."""
    return connection.to_server.packets + connection.to_client.packets


def firewall_matched(
    counters: Mapping[str, int], web: Connection, iperf3: Sequence[Connection]
) -> Check:
    """I3: the rules that name applications' addresses have counted each packet, no other rule."""
    expected = {
        "web": packets_of(web),
        "iperf3": sum(map(packets_of, iperf3)),
        "other": 0,
    }
    counted = {name: counters.get(name, 0) for name in expected}
    return Check(
        "the firewall's rules match every packet by the supersession",
        counted == expected,
        ", ".join(f"{name} {counted[name]} of {expected[name]}" for name in expected),
        "I3",
    )


def tap_saw(chain: Chain, packets: Sequence[Packet], web: Connection) -> tuple[NfSeen, Check]:
    """The first connection in the capture of a tap: coming and going, in two subsessions.

    Its host's own connection to the policy server is left out.
    """
    legs: dict[str, Connection] = {}
    for connection in connections(packets):
        if chain.holds(connection):
            legs.setdefault(chain.leg(connection), connection)
    counts = {leg: packets_of(connection) for leg, connection in legs.items()}
    saw = NfSeen(
        nf="ids",
        kind="tap",
        packets=sum(counts.values()),
        flows=[str(connection.flow) for connection in legs.values()],
        sees="subsessions",
    )
    check = Check(
        "the IDS sees every packet come and go",
        list(counts.values()) == [packets_of(web)] * 2,
        ", ".join(f"{leg}: {count}" for leg, count in counts.items()),
    )
    return saw, check


def _leg_seen(leg: str, found: Sequence[Connection]) -> LegSeen:
    ways = [way for c in found for way in (c.to_server, c.to_client)]
    return LegSeen(
        leg=leg,
        to_server=sum(c.to_server.packets for c in found),
        to_client=sum(c.to_client.packets for c in found),
        bytes=sum(way.bytes for way in ways),
        largest=max(size for way in ways for size in way.sizes),
    )
