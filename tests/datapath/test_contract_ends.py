"""The contract: sessions end, and the kernel part outlives its agent."""

from __future__ import annotations

import pytest

from m2m.datapath import Ended, EndReason, Held, Reason
from m2m.datapath.fake_packets import Tcp
from m2m.protocol.flow import Flow, Proto
from m2m.protocol.translation import Entry, Hook, Position
from tests.datapath.conftest import Listen, OpenRig
from tests.support.rig import Listener, Place, Rig, Seen
from tests.support.sessions import entries, opening, policy_set, session

SHORT = 0.05  # s


async def install(rig: Rig, position: Position, proto: int = 6, number: int = 1) -> list[Entry]:
    rows = entries(rig, session(position, proto, number))
    await rig.datapath.install(rows)
    return list(rows)


async def end_at_once(rig: Rig, agent: Listener, number: int) -> None:
    """Let a session end that does, to know that what should have been told before has been."""
    rows = await install(rig, Position.TAP, number=number)
    await rig.packet(Hook.IN, rows[0].match, flags=Tcp.RST)
    ended = session(Position.TAP, number=number).session
    assert await agent.next() == Ended(ended, EndReason.RST)


@pytest.mark.parametrize("position", Position)
async def test_i9_closed_in_both_directions(
    open_rig: OpenRig, listen: Listen, position: Position
) -> None:
    rig = await open_rig(linger=SHORT)
    agent = await listen(rig)
    rows = await install(rig, position)
    for entry in rows:
        await rig.packet(entry.hook, entry.match, flags=Tcp.FIN | Tcp.ACK)
    assert await agent.next() == Ended(session(position).session, EndReason.FIN)
    # Entries stay until the agent takes them out, and it is told once.
    assert len(await rig.datapath.rows([entry.key for entry in rows])) == len(rows)
    await end_at_once(rig, agent, 2)
    assert agent.waiting() == 0


@pytest.mark.parametrize("direction", [0, 1])
async def test_i9_reset_in_either_direction(
    open_rig: OpenRig, listen: Listen, direction: int
) -> None:
    rig = await open_rig(linger=SHORT)
    agent = await listen(rig)
    rows = await install(rig, Position.TAP)
    await rig.packet(Hook.IN, rows[direction].match, flags=Tcp.RST)
    assert await agent.next() == Ended(session(Position.TAP).session, EndReason.RST)


@pytest.mark.parametrize(("proto", "limit"), [(6, "tcp_idle"), (17, "udp_idle")])
async def test_i9_idle(open_rig: OpenRig, listen: Listen, proto: int, limit: str) -> None:
    rig = await open_rig(**{limit: SHORT})
    agent = await listen(rig)
    other = Proto.UDP if proto == Proto.TCP else Proto.TCP
    await install(rig, Position.TAP, other, number=2)  # its limit is long
    await install(rig, Position.TAP, proto)
    assert await agent.next() == Ended(session(Position.TAP, proto).session, EndReason.IDLE)
    assert agent.waiting() == 0


async def test_half_closed_is_not_over(open_rig: OpenRig, listen: Listen) -> None:
    rig = await open_rig(linger=SHORT)
    agent = await listen(rig)
    rows = await install(rig, Position.TAP)
    await rig.packet(Hook.IN, rows[0].match, flags=Tcp.FIN | Tcp.ACK)
    await rig.seen()
    await end_at_once(rig, agent, 2)
    assert agent.waiting() == 0


async def test_reused_ports_begin_anew(open_rig: OpenRig, listen: Listen) -> None:
    """A client that closes and connects again from the same port, before the linger is over."""
    rig = await open_rig(linger=SHORT)
    agent = await listen(rig)
    rows = await install(rig, Position.TAP)
    for entry in rows:
        await rig.packet(entry.hook, entry.match, flags=Tcp.FIN | Tcp.ACK, seq=4_000_000_000)
    for entry, flags in zip(rows, (Tcp.SYN, Tcp.SYN | Tcp.ACK), strict=True):
        await rig.packet(entry.hook, entry.match, flags=flags, seq=7)
    await end_at_once(rig, agent, 2)
    assert agent.waiting() == 0
    for row in await rig.datapath.rows([entry.key for entry in rows]):
        assert (row.counters.fin, row.counters.max_seq) == (False, 8)


async def test_removed_sessions_are_not_told(open_rig: OpenRig, listen: Listen) -> None:
    rig = await open_rig(linger=SHORT)
    agent = await listen(rig)
    rows = await install(rig, Position.TAP)
    await rig.datapath.remove([entry.key for entry in rows])
    await end_at_once(rig, agent, 2)
    assert agent.waiting() == 0


async def test_i6_established_sessions_outlive_the_agent(rig: Rig) -> None:
    view = session(Position.CLIENT)
    rows = entries(rig, view)
    await rig.datapath.install(rows)
    await rig.packet(Hook.OUT, view.supersession, b"before", seq=100)
    await rig.close(keep=True)
    await rig.packet(Hook.OUT, view.supersession, b"without", seq=106)
    assert view.right is not None
    assert await rig.seen() == [
        Seen(Place.WIRE, view.right, b"before"),
        Seen(Place.WIRE, view.right, b"without"),
    ]

    await rig.open()
    found = {row.entry.key: row async for row in rig.datapath.dump()}
    assert {key: row.entry for key, row in found.items()} == {row.key: row for row in rows}
    counters = found[Hook.OUT, view.supersession].counters
    assert (counters.packets, counters.max_seq) == (2, 113)
    await rig.packet(Hook.OUT, view.supersession, b"after")
    assert await rig.seen() == [Seen(Place.WIRE, view.right, b"after")]


async def test_i6_the_next_agent_hears_of_the_end(open_rig: OpenRig, listen: Listen) -> None:
    rig = await open_rig(linger=SHORT)
    rows = await install(rig, Position.TAP)
    await rig.reopen(keep=True)
    await rig.packet(Hook.IN, rows[0].match, flags=Tcp.RST)
    agent = await listen(rig)
    assert await agent.next() == Ended(session(Position.TAP).session, EndReason.RST)


async def test_reasons_are_counted_across_agents(rig: Rig) -> None:
    stray = session(Position.SERVER).left
    assert stray is not None
    await rig.packet(Hook.IN, stray)
    await rig.seen()
    await rig.reopen(keep=True)
    await rig.packet(Hook.IN, stray)
    await rig.seen()
    assert (await rig.datapath.reasons())[Reason.NO_ENTRY] == 2


async def test_policy_stays_with_the_kernel(rig: Rig, listen: Listen) -> None:
    await rig.datapath.load_policy(policy_set(80))
    await rig.reopen(keep=True)
    agent = await listen(rig)
    await rig.packet(Hook.OUT, opening(), flags=Tcp.SYN)
    assert await agent.next() == Held(opening())


async def test_i9_closing_takes_everything_out(rig: Rig) -> None:
    view = session(Position.CLIENT)
    await rig.datapath.install(entries(rig, view))
    await rig.datapath.load_policy(policy_set(80))
    await rig.close(keep=False)
    stray = Flow(6, view.right.dst, 61001, view.right.src, 62001) if view.right else None
    assert stray is not None
    flows = [(Hook.OUT, view.supersession), (Hook.OUT, opening()), (Hook.IN, stray)]
    for hook, flow in flows:
        await rig.packet(hook, flow, b"x", flags=Tcp.SYN)
    assert {packet.flow for packet in await rig.seen()} == {flow for _, flow in flows}
    await rig.open()
    assert [row async for row in rig.datapath.dump()] == []
    assert not any((await rig.datapath.reasons()).values())
