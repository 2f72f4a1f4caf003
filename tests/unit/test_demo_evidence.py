"""What the demo concludes from captures: what holds is found to hold, what does not is found."""

from __future__ import annotations

from itertools import pairwise

import pytest

from m2m.lab.capture import Connection, Packet, connections
from m2m.lab.demo_evidence import (
    Chain,
    firewall_matched,
    no_byte_added,
    offloads_used,
    tap_saw,
)
from m2m.protocol.flow import Flow, Proto

ADDRESSES = {
    "client": "10.0.1.2",
    "firewall": "10.0.2.2",
    "ids": "10.0.3.2",
    "server": "10.0.4.2",
}
CHAIN = Chain(ADDRESSES)
LEGS = [
    Flow.of(Proto.TCP, left, 61000 + i, right, 64000 + i)
    for i, (left, right) in enumerate(pairwise(ADDRESSES.values()))
]
Seen = dict[str, list[Packet]]


def conversation(flow: Flow) -> list[Packet]:
    """A request of 100 bytes and an answer of 60,000, sent in one piece."""
    return [
        Packet(flow, 60, 0, opens=True),
        Packet(flow.reverse(), 60, 0, opens=False),
        Packet(flow, 152, 100, opens=False, seq=1),
        Packet(flow.reverse(), 60052, 60000, opens=False, seq=1),
    ]


@pytest.fixture
def seen() -> Seen:
    """A sound chain: each leg on the links of both of its ends, with the agents' messages."""
    talk = Flow.of(Proto.UDP, ADDRESSES["client"], 5262, ADDRESSES["firewall"], 5262)
    packets: Seen = {host: [] for host in ADDRESSES}
    packets["client"].append(Packet(talk, 200, 172, opens=False))
    for leg, ends in zip(LEGS, pairwise(ADDRESSES), strict=True):
        for host in ends:
            packets[host] += conversation(leg)
    return packets


def web(seen: Seen) -> Connection:
    return connections(seen["client"])[0]


def test_a_sound_chain_holds_in_all_respects(seen: Seen) -> None:
    checks = [
        CHAIN.neighbours_only(seen),
        CHAIN.sizes_unchanged(seen),
        offloads_used(seen, 1500),
        no_byte_added(web(seen), 100, 60000),
    ]
    assert [check.held for check in checks] == [True] * 4
    assert [check.promise for check in checks] == ["I2", "I1", "I1", "I1"]


def test_the_report_tells_legs_and_speakers_by_name(seen: Seen) -> None:
    client, firewall, *_ = CHAIN.links(seen)
    assert (client.host, client.pairs, client.packets) == ("client", ["client - firewall"], 5)
    assert firewall.pairs == ["client - firewall", "firewall - ids"]
    (leg,) = client.legs
    assert (leg.leg, leg.to_server, leg.to_client) == ("client > firewall", 2, 2)
    assert (leg.bytes, leg.largest) == (60 + 60 + 152 + 60052, 60052)


STRAIGHT = Flow.of(Proto.TCP, ADDRESSES["client"], 40000, ADDRESSES["server"], 80)


@pytest.mark.parametrize(
    ("host", "flow"),
    [
        ("client", STRAIGHT),
        ("server", STRAIGHT.reverse()),
        ("client", LEGS[2]),  # neighbours, but not on this link
        ("ids", Flow.of(Proto.UDP, "10.0.9.9", 1, ADDRESSES["ids"], 1)),
    ],
)
def test_a_packet_between_others_is_found(seen: Seen, host: str, flow: Flow) -> None:
    seen[host].append(Packet(flow, 60, 0, opens=False))
    check = CHAIN.neighbours_only(seen)
    assert not check.held and str(flow) in check.seen and host in check.seen


def test_a_silent_link_proves_nothing(seen: Seen) -> None:
    seen["ids"] = []
    assert not CHAIN.neighbours_only(seen).held
    assert not CHAIN.sizes_unchanged(seen).held
    assert not offloads_used(seen, 1500).held
    assert not CHAIN.sizes_unchanged({}).held and not offloads_used({}, 1500).held


@pytest.mark.parametrize("host", ADDRESSES)
def test_a_longer_a_lost_and_a_doubled_packet_are_found(seen: Seen, host: str) -> None:
    sound = seen[host]
    last = sound[-1]
    for changed in (
        [*sound[:-1], last._replace(length=last.length + 1)],
        sound[:-1],
        [*sound, last],
    ):
        seen[host] = changed
        assert not CHAIN.sizes_unchanged(seen).held
    seen[host] = sound
    assert CHAIN.sizes_unchanged(seen).held


def test_segments_cut_to_the_mtu_on_one_link_are_found(seen: Seen) -> None:
    seen["ids"] = [p._replace(length=min(p.length, 1500)) for p in seen["ids"]]
    assert not offloads_used(seen, 1500).held


@pytest.mark.parametrize(("sent", "received"), [(99, 60000), (100, 60001)])
def test_a_byte_that_the_application_did_not_send_is_found(
    seen: Seen, sent: int, received: int
) -> None:
    assert not no_byte_added(web(seen), sent, received).held


@pytest.mark.parametrize(
    ("counters", "held"),
    [
        ({"web": 4, "iperf3": 4, "other": 0}, True),
        ({"web": 3, "iperf3": 4, "other": 0}, False),
        ({"web": 4, "iperf3": 4, "other": 1}, False),
        ({}, False),
    ],
)
def test_the_firewall_must_have_counted_each_packet(
    seen: Seen, counters: dict[str, int], held: bool
) -> None:
    assert firewall_matched(counters, web(seen), [web(seen)]).held is held


def test_the_tap_must_have_seen_each_packet_twice(seen: Seen) -> None:
    own = Flow.of(Proto.TCP, ADDRESSES["ids"], 50000, "10.0.5.2", 5263)
    saw, check = tap_saw(CHAIN, [*conversation(own), *seen["ids"]], web(seen))
    assert check.held
    assert (saw.packets, saw.flows) == (8, [str(LEGS[1]), str(LEGS[2])])
    _, check = tap_saw(CHAIN, seen["ids"][:-1], web(seen))
    assert not check.held
    _, check = tap_saw(CHAIN, [], web(seen))
    assert not check.held
