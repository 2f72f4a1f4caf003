"""What the datapath in memory adds to the contract (tests/datapath): its own time, and outcomes."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from m2m.datapath import DatapathError, Ended, EndReason, Held, Limits, Reason, Verdict
from m2m.datapath.fake import FakeDatapath
from m2m.datapath.fake_kernel import FakeKernel, Fate
from m2m.datapath.fake_packets import Tcp
from m2m.policy.rules import Fail
from m2m.protocol.flow import Flow
from m2m.protocol.translation import Hook, NextHop, Position, SessionView, entries_for
from tests.support.sessions import opening, policy_set

LEFT = Flow.of(6, "10.9.1.2", 61001, "10.9.1.1", 64001)
RIGHT = Flow.of(6, "10.9.2.1", 62001, "10.9.2.2", 65001)
SUPER = Flow.of(6, "203.0.113.5", 40001, "198.51.100.7", 80)
HOP = NextHop(2, RIGHT.dst, 1500)
ROWS = [
    entry._replace(hop=HOP)
    for entry in entries_for(SessionView(5, Position.TAP, SUPER, LEFT, RIGHT))
]


async def next_event(datapath: FakeDatapath) -> tuple[object, float]:
    """The next event and when it came, in seconds from now."""
    start = trio.current_time()
    events = datapath.events()
    try:
        return await anext(events), trio.current_time() - start
    finally:
        await events.aclose()


@pytest.fixture
def datapath() -> FakeDatapath:
    return FakeDatapath(FakeKernel(Limits(linger=5, tcp_idle=100, udp_idle=10)))


async def test_idle_sessions_end_on_time(
    datapath: FakeDatapath, autojump_clock: trio.testing.MockClock
) -> None:
    await datapath.install(ROWS)
    assert await next_event(datapath) == (Ended(5, EndReason.IDLE), 100)


async def test_a_packet_in_either_direction_starts_idleness_anew(
    datapath: FakeDatapath, autojump_clock: trio.testing.MockClock
) -> None:
    await datapath.install(ROWS)
    autojump_clock.jump(60)
    datapath.packet(Hook.IN, RIGHT.reverse())
    assert await next_event(datapath) == (Ended(5, EndReason.IDLE), 100)
    (towards_server, towards_client) = await datapath.rows([entry.key for entry in ROWS])
    assert (towards_server.counters.idle, towards_client.counters.idle) == (160, 100)


async def test_closed_sessions_linger(
    datapath: FakeDatapath, autojump_clock: trio.testing.MockClock
) -> None:
    await datapath.install(ROWS)
    for entry in ROWS:
        datapath.packet(entry.hook, entry.match, flags=Tcp.FIN | Tcp.ACK)
    assert await next_event(datapath) == (Ended(5, EndReason.FIN), 5)


async def test_outcomes_tell_hop_and_reason(datapath: FakeDatapath) -> None:
    await datapath.install(ROWS)
    sent = datapath.packet(Hook.IN, LEFT, payload=b"x")
    assert (sent.fate, sent.flow, sent.hop, sent.payload) == (Fate.SENT, RIGHT, HOP, b"x")
    late = datapath.packet(Hook.IN, LEFT, ttl=1)
    assert (late.fate, late.reason) == (Fate.DROPPED, Reason.TTL_EXPIRED)
    big = datapath.packet(Hook.IN, LEFT, length=1501)
    assert (big.fate, big.reason) == (Fate.DROPPED, Reason.TOO_BIG)


async def test_a_refusal_lasts_a_second(
    datapath: FakeDatapath, autojump_clock: trio.testing.MockClock
) -> None:
    await datapath.load_policy(policy_set(80))
    flow = opening()
    await datapath.release(flow, Verdict.DROP)
    assert datapath.packet(Hook.OUT, flow, flags=Tcp.SYN).reason is Reason.REFUSED
    autojump_clock.jump(1)
    away = datapath.packet(Hook.OUT, flow, flags=Tcp.SYN)
    assert away.reason is Reason.AGENT_AWAY_CLOSED  # decided anew


async def test_a_passed_flow_is_decided_anew_when_it_was_idle(
    datapath: FakeDatapath, autojump_clock: trio.testing.MockClock
) -> None:
    await datapath.load_policy(policy_set(80))
    flow = opening(17)
    await datapath.release(flow, Verdict.PASS)
    for _ in range(3):
        autojump_clock.jump(9)
        assert datapath.packet(Hook.OUT, flow).reason is Reason.PASSED
    autojump_clock.jump(10)
    assert datapath.packet(Hook.OUT, flow).reason is Reason.AGENT_AWAY_CLOSED


@pytest.mark.parametrize(
    ("fail", "fate"), [(Fail.OPEN, Fate.UNTOUCHED), (Fail.CLOSED, Fate.DROPPED)]
)
async def test_what_is_held_when_the_agent_goes_is_decided_by_policy(
    datapath: FakeDatapath, fail: Fail, fate: Fate
) -> None:
    await datapath.load_policy(policy_set(80, fail=fail))
    events = datapath.events()
    async with trio.open_nursery() as nursery:

        async def hear() -> None:
            assert await anext(events) == Held(opening())

        nursery.start_soon(hear)
        await trio.testing.wait_all_tasks_blocked()
        datapath.packet(Hook.OUT, opening(), flags=Tcp.SYN)
    await events.aclose()
    assert [outcome.fate for outcome in datapath.kernel.released] == [fate]


async def test_a_closed_datapath_says_so(datapath: FakeDatapath) -> None:
    await datapath.close(keep=True)
    with pytest.raises(DatapathError, match="closed"):
        await datapath.install(ROWS)


async def test_an_entry_that_sends_needs_to_know_where(datapath: FakeDatapath) -> None:
    with pytest.raises(DatapathError, match="needs a next hop"):
        await datapath.install([ROWS[0], ROWS[1]._replace(hop=None)])
    assert [row async for row in datapath.dump()] == []
