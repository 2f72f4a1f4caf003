"""The contract: first packets are held, and let go in order, by policy."""

from __future__ import annotations

import pytest

from m2m.datapath import Held, Reason, Verdict
from m2m.datapath.fake_packets import Tcp
from m2m.policy.rules import EMPTY, Fail, PolicySet
from m2m.protocol.flow import Flow, Proto
from m2m.protocol.translation import Entry, Hook, Position
from tests.datapath.conftest import Listen, OpenRig
from tests.support.rig import Place, Rig, Seen
from tests.support.sessions import entries, opening, policy_set, session


async def begin(rig: Rig, flow: Flow, payload: bytes = b"") -> None:
    """The packet that opens a flow: a SYN, or a datagram."""
    await rig.packet(Hook.OUT, flow, payload, flags=Tcp.SYN)


def client_entries(rig: Rig, flow: Flow) -> tuple[Entry, ...]:
    return entries(rig, session(Position.CLIENT, flow.proto)._replace(supersession=flow))


def through_the_chain(rig: Rig, flow: Flow) -> Flow:
    right = session(Position.CLIENT, flow.proto).right
    assert right is not None
    return right


@pytest.mark.parametrize("proto", Proto)
async def test_a_held_flow_goes_through_the_chain(rig: Rig, listen: Listen, proto: Proto) -> None:
    await rig.datapath.load_policy(policy_set(80))
    agent = await listen(rig)
    flow = opening(proto)
    await begin(rig, flow, b"first")
    assert await agent.next() == Held(flow)
    assert await rig.seen() == []

    await rig.datapath.install(client_entries(rig, flow))
    assert await rig.seen() == []  # not before it is released
    await rig.datapath.release(flow, Verdict.STEER)
    await rig.packet(Hook.OUT, flow, b"later")
    steered = through_the_chain(rig, flow)
    assert await rig.seen() == [
        Seen(Place.WIRE, steered, b"first"),
        Seen(Place.WIRE, steered, b"later"),
    ]
    reasons = await rig.datapath.reasons()
    assert {reason for reason, count in reasons.items() if count} == {Reason.HELD}
    assert agent.waiting() == 0


async def test_i4_held_packets_keep_their_order(rig: Rig, listen: Listen) -> None:
    await rig.datapath.load_policy(policy_set(80))
    agent = await listen(rig)
    flow = opening(Proto.UDP)
    payloads = [b"%03d" % number for number in range(40)]
    for payload in payloads[:20]:
        await begin(rig, flow, payload)
    assert await agent.next() == Held(flow)
    await rig.datapath.install(client_entries(rig, flow))
    for payload in payloads[20:30]:
        await begin(rig, flow, payload)
    await rig.datapath.release(flow, Verdict.STEER)
    for payload in payloads[30:]:
        await begin(rig, flow, payload)
    seen = await rig.seen()
    assert [packet.payload for packet in seen] == payloads
    assert {packet.flow for packet in seen} == {through_the_chain(rig, flow)}
    assert agent.waiting() == 0  # one flow, one event


@pytest.mark.parametrize("proto", Proto)
async def test_passed_flows_go_straight(rig: Rig, listen: Listen, proto: Proto) -> None:
    await rig.datapath.load_policy(policy_set(80))
    agent = await listen(rig)
    flow = opening(proto)
    await begin(rig, flow, b"1")
    await agent.next()
    await rig.datapath.release(flow, Verdict.PASS)
    await begin(rig, flow, b"2")
    await rig.packet(Hook.OUT, flow, b"3")
    expected = [Seen(Place.WIRE, flow, payload) for payload in (b"1", b"2", b"3")]
    assert await rig.seen() == expected
    assert (await rig.datapath.reasons())[Reason.PASSED] == 3
    assert agent.waiting() == 0
    assert [row async for row in rig.datapath.dump()] == []  # it is no session


@pytest.mark.parametrize("proto", Proto)
async def test_refused_flows_are_dropped(rig: Rig, listen: Listen, proto: Proto) -> None:
    await rig.datapath.load_policy(policy_set(80))
    agent = await listen(rig)
    flow = opening(proto)
    await begin(rig, flow, b"1")
    await agent.next()
    await rig.datapath.release(flow, Verdict.DROP)
    await begin(rig, flow, b"2")
    assert await rig.seen() == []
    assert (await rig.datapath.reasons())[Reason.REFUSED] == 2
    assert agent.waiting() == 0
    assert [row async for row in rig.datapath.dump()] == []


@pytest.mark.parametrize("proto", Proto)
async def test_a_session_can_be_refused_of_which_nothing_is_held(rig: Rig, proto: Proto) -> None:
    """What sends its packets is gone at once; what comes is delivered until that is removed."""
    flow = opening(proto)
    rows = client_entries(rig, flow)
    await rig.datapath.install(rows)
    for _ in range(2):  # again, while it is refused
        await rig.datapath.release(flow, Verdict.DROP)
        await rig.packet(Hook.OUT, flow, b"x")
        assert await rig.seen() == []
    assert (await rig.datapath.reasons())[Reason.REFUSED] == 2
    there = [row.entry.hook async for row in rig.datapath.dump()]
    assert there == [Hook.IN]
    await rig.datapath.install(rows)
    await rig.packet(Hook.OUT, flow, b"y")
    assert await rig.seen() == [Seen(Place.WIRE, through_the_chain(rig, flow), b"y")]


async def test_a_chain_that_comes_later_takes_a_passed_flow_over(rig: Rig, listen: Listen) -> None:
    await rig.datapath.load_policy(policy_set(80))
    agent = await listen(rig)
    flow = opening(Proto.UDP)
    await begin(rig, flow)
    await agent.next()
    await rig.datapath.release(flow, Verdict.PASS)
    await rig.seen()
    await rig.datapath.install(client_entries(rig, flow))
    await rig.packet(Hook.OUT, flow, b"x")
    assert await rig.seen() == [Seen(Place.WIRE, through_the_chain(rig, flow), b"x")]


async def test_flows_are_held_each_by_itself(rig: Rig, listen: Listen) -> None:
    await rig.datapath.load_policy(policy_set(80))
    agent = await listen(rig)
    first, second = opening(Proto.UDP, 1), opening(Proto.UDP, 2)
    for flow, payload in ((first, b"1a"), (second, b"2a"), (first, b"1b"), (second, b"2b")):
        await begin(rig, flow, payload)
    assert {await agent.next(), await agent.next()} == {Held(first), Held(second)}
    await rig.datapath.release(second, Verdict.PASS)
    assert [packet.payload for packet in await rig.seen()] == [b"2a", b"2b"]
    await rig.datapath.release(first, Verdict.PASS)
    assert [packet.payload for packet in await rig.seen()] == [b"1a", b"1b"]


async def test_only_what_opens_a_matching_flow_is_held(rig: Rig, listen: Listen) -> None:
    await rig.datapath.load_policy(policy_set(80))
    agent = await listen(rig)
    for flow, flags in [
        (opening(), Tcp.ACK),  # in the middle of a connection that is older than the policy
        (opening(), Tcp.SYN | Tcp.ACK),
        (opening(), Tcp.RST),
        (opening(dport=81), Tcp.SYN),
        (opening(Proto.UDP, dport=81), Tcp.SYN),
    ]:
        await rig.packet(Hook.OUT, flow, b"x", flags=flags)
        assert await rig.seen() == [Seen(Place.WIRE, flow, b"x")]
    assert agent.waiting() == 0


async def test_a_policy_without_chain_exempts(rig: Rig, listen: Listen) -> None:
    policy = policy_set(80, 80)
    exempt = policy.policies[0].__class__(0, "exempt", 1, (), Fail.OPEN)
    policy = PolicySet(1, (exempt, policy.policies[1]), policy.rules, policy.nfs)
    await rig.datapath.load_policy(policy)
    agent = await listen(rig)
    await begin(rig, opening(), b"x")
    assert await rig.seen() == [Seen(Place.WIRE, opening(), b"x")]
    assert agent.waiting() == 0


async def test_i8_too_many_held_packets_are_dropped_and_counted(
    open_rig: OpenRig, listen: Listen
) -> None:
    rig = await open_rig(hold_packets=4)
    await rig.datapath.load_policy(policy_set(80))
    agent = await listen(rig)
    flow = opening(Proto.UDP)
    for number in range(6):
        await begin(rig, flow, b"%d" % number)
    await agent.next()
    reasons = await rig.datapath.reasons()
    assert (reasons[Reason.HELD], reasons[Reason.HOLD_OVERFLOW]) == (4, 2)
    await rig.datapath.release(flow, Verdict.PASS)
    assert [packet.payload for packet in await rig.seen()] == [b"0", b"1", b"2", b"3"]
    # There is room again.
    await begin(rig, opening(Proto.UDP, 2))
    assert await agent.next() == Held(opening(Proto.UDP, 2))


@pytest.mark.parametrize("proto", Proto)
@pytest.mark.parametrize(
    ("fail", "reason", "comes_out"),
    [(Fail.OPEN, Reason.AGENT_AWAY_OPEN, 1), (Fail.CLOSED, Reason.AGENT_AWAY_CLOSED, 0)],
)
async def test_i8_without_an_agent_the_policy_decides(
    rig: Rig, fail: Fail, reason: Reason, comes_out: int, proto: Proto
) -> None:
    await rig.datapath.load_policy(policy_set(80, fail=fail))
    flow = opening(proto)
    await begin(rig, flow, b"x")
    assert await rig.seen() == [Seen(Place.WIRE, flow, b"x")] * comes_out
    reasons = await rig.datapath.reasons()
    assert {name: count for name, count in reasons.items() if count} == {reason: 1}


async def test_policy_is_replaced_as_a_whole(rig: Rig) -> None:
    """Each set refuses every flow, by another of its rules: one that was half old and half new
    would let some packets through."""
    one = policy_set(80, 81, 82)
    two = policy_set(82, 80, 81, generation=2)
    sent = 0
    for policy in [one, two] * 10:
        await rig.datapath.load_policy(policy)
        for dport in (80, 81, 82):
            await begin(rig, opening(dport=dport), b"x")
            sent += 1
    assert await rig.seen() == []
    assert (await rig.datapath.reasons())[Reason.AGENT_AWAY_CLOSED] == sent

    await rig.datapath.load_policy(policy_set(81, generation=3))
    await begin(rig, opening(dport=80), b"free")
    await begin(rig, opening(dport=81), b"not free")
    await rig.datapath.load_policy(EMPTY)
    await begin(rig, opening(dport=81), b"free too")
    assert [packet.payload for packet in await rig.seen()] == [b"free", b"free too"]
