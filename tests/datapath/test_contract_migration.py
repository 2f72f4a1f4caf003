"""The contract: the chain of a live session changes. Redirect, hold, resume, watch."""

from __future__ import annotations

import pytest

from m2m.datapath import Acked, DatapathError, Holding, HoldOverflow, Reached, Reason
from m2m.datapath.fake_packets import Tcp
from m2m.protocol.flow import Proto
from m2m.protocol.translation import Action, Entry, Hook, Position, Toward
from tests.datapath.conftest import Listen, OpenRig
from tests.support.rig import Listener, Place, Rig, Seen
from tests.support.sessions import entries, opening, session

_ENDS = {
    (Position.CLIENT, Toward.LEFT),
    (Position.SERVER, Toward.RIGHT),
    (Position.PROXY, Toward.RIGHT),
}
SENT = [(position, toward) for position in Position for toward in Toward
        if (position, toward) not in _ENDS]  # fmt: skip
"""Where the host sends on, and so can hold."""


@pytest.fixture
async def agent(rig: Rig, listen: Listen) -> Listener:
    return await listen(rig)


async def install(
    rig: Rig, position: Position = Position.TAP, proto: int = 6, number: int = 1
) -> list[Entry]:
    rows = entries(rig, session(position, proto, number))
    await rig.datapath.install(rows)
    return list(rows)


def sent(rows: list[Entry], toward: Toward = Toward.RIGHT) -> Entry:
    (row,) = [row for row in rows if row.action is Action.SEND and row.toward is toward]
    return row


def elsewhere(row: Entry) -> Entry:
    """The same row after a change: by other ports, as another host's would be."""
    flow = row.rewrite
    return row._replace(
        rewrite=flow._replace(sport=flow.sport + 50, dport=flow.dport + 50), generation=8
    )


def payloads(seen: list[Seen]) -> list[bytes]:
    return [packet.payload for packet in seen]


async def packet(
    rig: Rig, row: Entry, payload: bytes = b"", *, seq: int = 0, ack: int = 0, flags: Tcp = Tcp.ACK
) -> None:
    await rig.packet(row.hook, row.match, payload, seq=seq, ack=ack, flags=flags)


async def packets(rig: Rig, row: Entry, *numbers: int) -> list[bytes]:
    found = [b"%03d" % number for number in numbers]
    for payload in found:
        await packet(rig, row, payload)
    return found


# -- redirect -------------------------------------------------------------------------------


@pytest.mark.parametrize("proto", Proto)
@pytest.mark.parametrize("position", Position)
async def test_i4_redirected_packets_go_the_new_way(
    rig: Rig, position: Position, proto: Proto
) -> None:
    row = (await install(rig, position, proto))[-1]
    if position is Position.INLINE:
        row = sent(await install(rig, position, proto))
    await packet(rig, row, b"old", seq=100)
    assert (await rig.seen())[0].flow == row.rewrite
    new = elsewhere(row)
    assert await rig.datapath.redirect([new]) == [1]
    await packet(rig, row, b"new", seq=103)
    (seen,) = await rig.seen()
    assert (seen.flow, seen.payload) == (new.rewrite, b"new")

    (found,) = await rig.datapath.rows([row.key])
    assert found.entry == new
    assert found.counters.packets == 2
    assert found.counters.max_seq == (106 if proto is Proto.TCP else None)
    assert new in [each.entry async for each in rig.datapath.dump()]


async def test_redirected_again_and_again(rig: Rig) -> None:
    row = sent(await install(rig, proto=Proto.UDP))
    sent_so_far = 0
    for _ in range(5):
        row = elsewhere(row)
        assert await rig.datapath.redirect([row]) == [sent_so_far]
        for number in range(3):
            await packet(rig, row, b"%d" % number)
        assert await rig.seen() == [
            Seen(Place.WIRE, row.rewrite, b"%d" % number) for number in range(3)
        ]
        sent_so_far += 3
    (found,) = await rig.datapath.rows([row.key])
    assert found.counters.packets == 15


async def test_both_directions_are_redirected_at_once(rig: Rig) -> None:
    rows = await install(rig)
    new = [elsewhere(row) for row in rows]
    assert await rig.datapath.redirect(new) == [0, 0]
    for row, other in zip(rows, new, strict=True):
        await packet(rig, row, b"x")
        assert await rig.seen() == [Seen(Place.WIRE, other.rewrite, b"x")]


async def test_what_is_no_redirection_is_refused(rig: Rig) -> None:
    right, left = await install(rig)
    unknown = elsewhere(right)._replace(match=opening())
    other = elsewhere(left)._replace(session=right.session + 1)
    for wrong in (unknown, other, left._replace(position=Position.INLINE)):
        with pytest.raises(DatapathError):
            await rig.datapath.redirect([elsewhere(right), wrong])
        await packet(rig, right, b"x")
        assert await rig.seen() == [Seen(Place.WIRE, right.rewrite, b"x")]


async def test_an_installed_row_replaces_a_redirected_one(rig: Rig) -> None:
    row = sent(await install(rig))
    await rig.datapath.redirect([elsewhere(row)])
    await rig.datapath.install([row])
    await packet(rig, row, b"x")
    assert await rig.seen() == [Seen(Place.WIRE, row.rewrite, b"x")]
    assert [found.entry for found in await rig.datapath.rows([row.key])] == [row]


# -- hold and resume ------------------------------------------------------------------------


@pytest.mark.parametrize("proto", Proto)
@pytest.mark.parametrize(("position", "toward"), SENT)
async def test_i4_held_packets_leave_by_the_new_way_in_order(
    rig: Rig, agent: Listener, position: Position, toward: Toward, proto: Proto
) -> None:
    row = sent(await install(rig, position, proto), toward)
    await packet(rig, row, b"before")
    await rig.seen()
    assert await rig.datapath.hold([row.key]) == [Holding(1, None)]
    held = await packets(rig, row, *range(20))
    assert await rig.seen() == []
    (found,) = await rig.datapath.rows([row.key])
    assert found.counters.packets == 1

    new = elsewhere(row)
    await rig.datapath.redirect([new])
    assert await rig.seen() == []
    assert await rig.datapath.resume([row.key]) == [20]
    await packet(rig, row, b"later")
    assert await rig.seen() == [
        Seen(Place.WIRE, new.rewrite, payload) for payload in [*held, b"later"]
    ]
    (found,) = await rig.datapath.rows([row.key])
    assert found.counters.packets == 22
    assert (await rig.datapath.reasons())[Reason.HELD] == 20
    assert agent.waiting() == 0


async def test_undone_they_leave_by_the_old_way(rig: Rig, agent: Listener) -> None:
    row = sent(await install(rig))
    await rig.datapath.hold([row.key])
    held = await packets(rig, row, 1, 2, 3)
    assert await rig.datapath.resume([row.key]) == [3]
    assert await rig.seen() == [Seen(Place.WIRE, row.rewrite, payload) for payload in held]


async def test_the_other_direction_goes_on(rig: Rig, agent: Listener) -> None:
    right, left = await install(rig)
    await rig.datapath.hold([right.key])
    await packet(rig, right, b"held")
    await packet(rig, left, b"free")
    assert await rig.seen() == [Seen(Place.WIRE, left.rewrite, b"free")]
    await rig.datapath.hold([left.key])
    await packet(rig, left, b"held, too")
    assert await rig.seen() == []
    assert await rig.datapath.resume([right.key, left.key]) == [1, 1]
    assert {seen.payload for seen in await rig.seen()} == {b"held", b"held, too"}


async def test_sessions_are_held_each_by_itself(rig: Rig, agent: Listener) -> None:
    rows = [sent(await install(rig, number=number)) for number in (1, 2, 3)]
    await rig.datapath.hold([row.key for row in rows[:2]])
    for number in range(4):
        for row in rows:
            await packet(rig, row, b"%d" % number)
    expected = [b"0", b"1", b"2", b"3"]
    assert payloads(await rig.seen()) == expected
    for row in reversed(rows[:2]):
        assert await rig.datapath.resume([row.key]) == [4]
        assert await rig.seen() == [Seen(Place.WIRE, row.rewrite, each) for each in expected]


async def test_held_again_and_again(rig: Rig, agent: Listener) -> None:
    row = sent(await install(rig))
    expected: list[bytes] = []
    for number in range(0, 50, 5):
        await rig.datapath.hold([row.key])
        expected += await packets(rig, row, *range(number, number + 3))
        assert await rig.datapath.resume([row.key]) == [3]
        expected += await packets(rig, row, *range(number + 3, number + 5))
    assert payloads(await rig.seen()) == expected


async def test_asking_twice_changes_nothing(rig: Rig, agent: Listener) -> None:
    row = sent(await install(rig))
    assert await rig.datapath.resume([row.key]) == [0]
    await rig.datapath.hold([row.key])
    held = await packets(rig, row, 1)
    assert await rig.datapath.hold([row.key]) == [Holding(0, None)]
    held += await packets(rig, row, 2)
    assert await rig.datapath.resume([row.key]) == [2]
    assert await rig.datapath.resume([row.key]) == [0]
    assert payloads(await rig.seen()) == held


async def test_what_cannot_be_held_is_refused(rig: Rig, agent: Listener) -> None:
    tap = await install(rig)
    inline = await install(rig, Position.INLINE, number=2)
    udp = await install(rig, proto=Proto.UDP, number=3)
    with pytest.raises(DatapathError, match="there is no row"):
        await rig.datapath.hold([tap[0].key, (Hook.OUT, opening())])
    if not rig.datapath.splices:
        with pytest.raises(DatapathError, match="not sent on here"):
            await rig.datapath.hold([tap[0].key, inline[0].key])
    with pytest.raises(DatapathError, match="no substreams"):
        await rig.datapath.hold([tap[0].key, udp[0].key], substream=True)
    await packet(rig, tap[0], b"x")
    assert payloads(await rig.seen()) == [b"x"]


@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_what_is_held_goes_before_its_row_does(rig: Rig, agent: Listener, how: str) -> None:
    row = sent(await install(rig))
    await rig.datapath.hold([row.key])
    held = await packets(rig, row, 1, 2, 3)
    if how == "removed":
        await rig.datapath.remove([row.key])
    else:
        await rig.datapath.install([elsewhere(row)])
    assert await rig.seen() == [Seen(Place.WIRE, row.rewrite, payload) for payload in held]
    await rig.datapath.install([row])
    await packet(rig, row, b"x")
    assert payloads(await rig.seen()) == [b"x"]


@pytest.mark.parametrize("keep", [True, False])
async def test_i6_what_is_held_does_not_wait_for_an_agent_that_left(
    rig: Rig, agent: Listener, keep: bool
) -> None:
    row = sent(await install(rig))
    await rig.datapath.redirect([elsewhere(row)])
    await rig.datapath.hold([row.key])
    held = await packets(rig, row, 1, 2, 3)
    await rig.close(keep=keep)
    rewrite = elsewhere(row).rewrite
    assert await rig.seen() == [Seen(Place.WIRE, rewrite, payload) for payload in held]
    if keep:
        await packet(rig, row, b"without")
        assert await rig.seen() == [Seen(Place.WIRE, rewrite, b"without")]
    await rig.open()


async def test_i6_the_next_agent_finds_what_was_redirected(rig: Rig) -> None:
    row = sent(await install(rig))
    new = elsewhere(row)
    await rig.datapath.redirect([new])
    await rig.reopen(keep=True)
    assert [found.entry for found in await rig.datapath.rows([row.key])] == [new]
    await packet(rig, row, b"x")
    assert await rig.seen() == [Seen(Place.WIRE, new.rewrite, b"x")]
    newer = elsewhere(new)
    assert await rig.datapath.redirect([newer]) == [1]
    await packet(rig, row, b"y")
    assert await rig.seen() == [Seen(Place.WIRE, newer.rewrite, b"y")]


# -- bounds ---------------------------------------------------------------------------------


async def test_i8_too_many_are_let_go_in_order(open_rig: OpenRig, listen: Listen) -> None:
    rig = await open_rig(hold_packets=8)
    agent = await listen(rig)
    row, other = sent(await install(rig)), sent(await install(rig, number=2))
    await rig.datapath.hold([row.key, other.key])
    await packet(rig, other, b"other")
    expected = await packets(rig, row, *range(12))
    assert await agent.next() == HoldOverflow(row.session, row.toward)
    expected += await packets(rig, row, 12, 13)
    assert await rig.seen() == [Seen(Place.WIRE, row.rewrite, each) for each in expected]
    assert await rig.datapath.resume([row.key]) == [0]
    assert await rig.datapath.resume([other.key]) == [1]
    assert payloads(await rig.seen()) == [b"other"]
    assert agent.waiting() == 0
    assert (await rig.datapath.reasons())[Reason.HOLD_OVERFLOW] == 0


async def test_i8_none_is_held_for_ever(open_rig: OpenRig, listen: Listen) -> None:
    rig = await open_rig(hold_time=0.05)
    agent = await listen(rig)
    row = sent(await install(rig))
    await rig.datapath.hold([row.key])
    expected = await packets(rig, row, 1, 2)
    assert await agent.next() == HoldOverflow(row.session, row.toward)
    expected += await packets(rig, row, 3)
    assert payloads(await rig.seen()) == expected


# -- substreams -----------------------------------------------------------------------------


@pytest.mark.parametrize("start", [1000, 0xFFFFFFFF - 150, 0xFFFFFFFF - 99, 0xFFFFFFFF - 100])
async def test_only_the_new_substream_waits(rig: Rig, agent: Listener, start: int) -> None:
    """Numbers wrap: before the checkpoint, at it, behind it."""

    def at(offset: int) -> int:
        return (start + offset) & 0xFFFFFFFF

    row = sent(await install(rig))
    await packet(rig, row, b"a" * 100, seq=at(0))
    await rig.seen()
    assert await rig.datapath.hold([row.key], substream=True) == [Holding(1, at(100))]
    await packet(rig, row, b"new 1", seq=at(100))
    await packet(rig, row, b"a" * 60, seq=at(40))  # again, and as far as the checkpoint
    await packet(rig, row, b"a", seq=at(0))
    assert payloads(await rig.seen()) == [b"a" * 60, b"a"]
    await packet(rig, row, b"new 2", seq=at(105))
    await packet(rig, row, b"far", seq=at(100 + (1 << 30)))
    await rig.datapath.redirect([elsewhere(row)])
    assert await rig.datapath.resume([row.key]) == [3]
    await packet(rig, row, b"later", seq=at(110))
    new = elsewhere(row).rewrite
    assert await rig.seen() == [
        Seen(Place.WIRE, new, each) for each in (b"new 1", b"new 2", b"far", b"later")
    ]


@pytest.mark.parametrize("start", [1000, 0xFFFFFFFF - 50])
async def test_what_lies_across_the_checkpoint_is_split(
    rig: Rig, agent: Listener, start: int
) -> None:
    row = sent(await install(rig))
    await packet(rig, row, b"0123456789", seq=start)
    await rig.datapath.hold([row.key], substream=True)
    await rig.seen()
    await packet(rig, row, b"56789abcde", seq=start + 5, flags=Tcp.ACK | Tcp.FIN)
    assert await rig.seen() == [Seen(Place.WIRE, row.rewrite, b"56789")]
    (found,) = await rig.datapath.rows([row.key])
    assert (found.counters.max_seq, found.counters.fin) == (start + 10, False)
    await rig.datapath.redirect([elsewhere(row)])
    assert await rig.datapath.resume([row.key]) == [1]
    assert await rig.seen() == [Seen(Place.WIRE, elsewhere(row).rewrite, b"abcde")]
    (found,) = await rig.datapath.rows([row.key])
    assert (found.counters.max_seq, found.counters.fin) == (start + 16, True)


async def test_a_session_without_a_number_yet_is_held_whole(rig: Rig, agent: Listener) -> None:
    row = sent(await install(rig))
    assert await rig.datapath.hold([row.key], substream=True) == [Holding(0, None)]
    await packet(rig, row, b"x", seq=7)
    assert await rig.seen() == []
    await rig.datapath.resume([row.key])
    assert payloads(await rig.seen()) == [b"x"]


async def test_acknowledgements_are_not_held_with_data(rig: Rig, agent: Listener) -> None:
    """Both directions wait for each other's otherwise."""
    row = sent(await install(rig))
    await packet(rig, row, b"data", seq=100, ack=500)
    await rig.datapath.hold([row.key], substream=True)
    await rig.seen()
    await packet(rig, row, b"new", seq=104, ack=500)  # nothing is news in that
    assert await rig.seen() == []
    await packet(rig, row, b"", seq=107, ack=600)
    assert await rig.seen() == [Seen(Place.WIRE, row.rewrite, b"")]
    await packet(rig, row, b"newer", seq=107, ack=700)  # the acknowledgement goes ahead
    assert await rig.seen() == [Seen(Place.WIRE, row.rewrite, b"")]
    await packet(rig, row, b"newest", seq=112, ack=700)
    assert await rig.seen() == []
    (found,) = await rig.datapath.rows([row.key])
    assert found.counters.max_seq == 104  # no data has passed with them
    assert await rig.datapath.resume([row.key]) == [3]
    assert payloads(await rig.seen()) == [b"new", b"newer", b"newest"]


async def test_a_hold_of_all_keeps_what_a_substream_held(rig: Rig, agent: Listener) -> None:
    row = sent(await install(rig))
    await packet(rig, row, b"old", seq=100)
    await rig.datapath.hold([row.key], substream=True)
    await packet(rig, row, b"new", seq=103)
    assert await rig.datapath.hold([row.key]) == [Holding(1, None)]
    await packet(rig, row, b"old", seq=100)
    await packet(rig, row, b"", seq=106)
    assert await rig.datapath.hold([row.key], substream=True) == [Holding(1, None)]
    assert payloads(await rig.seen()) == [b"old"]
    assert await rig.datapath.resume([row.key]) == [3]
    assert payloads(await rig.seen()) == [b"new", b"old", b""]


async def test_a_reset_waits_with_the_data_before_it(rig: Rig, agent: Listener) -> None:
    row = sent(await install(rig))
    await packet(rig, row, b"old", seq=100)
    await rig.datapath.hold([row.key], substream=True)
    await packet(rig, row, b"new", seq=103)
    await packet(rig, row, b"", seq=106, flags=Tcp.RST)
    await packet(rig, row, b"", seq=103, flags=Tcp.RST)
    await rig.seen()
    assert await rig.datapath.resume([row.key]) == [2]


# -- acknowledgements -----------------------------------------------------------------------


@pytest.mark.parametrize("position", Position)
@pytest.mark.parametrize("number", [5000, 3, 0])
async def test_an_acknowledgement_is_told(
    rig: Rig, agent: Listener, position: Position, number: int
) -> None:
    row = (await install(rig, position))[-1]
    await packet(rig, row, b"", ack=(number - 10) & 0xFFFFFFFF)
    await rig.datapath.watch_ack([row.key], number)
    await packet(rig, row, b"", ack=(number - 1) & 0xFFFFFFFF)
    await packet(rig, row, b"", ack=number + 5, flags=Tcp(0))  # that says nothing
    await rig.seen()
    assert agent.waiting() == 0
    await packet(rig, row, b"data", ack=number)
    assert await agent.next() == Acked(row.session, row.toward)
    await packet(rig, row, b"", ack=number + 1)
    await rig.seen()
    assert agent.waiting() == 0  # once


async def test_what_has_been_acknowledged_is_told_at_once(rig: Rig, agent: Listener) -> None:
    right, left = await install(rig)
    await packet(rig, right, b"data", seq=100)
    await packet(rig, left, b"", ack=104)
    await rig.datapath.watch_ack([left.key], 104)
    assert await agent.next() == Acked(left.session, Toward.LEFT)
    await rig.datapath.watch_ack([left.key], 105)
    await packet(rig, left, b"", ack=104)
    await rig.seen()
    assert agent.waiting() == 0
    await packet(rig, left, b"", ack=1000)
    assert await agent.next() == Acked(left.session, Toward.LEFT)


async def test_so_many_packets_are_told_once(rig: Rig, agent: Listener) -> None:
    row = (await install(rig))[-1]
    await packet(rig, row, b"one")
    await rig.datapath.watch_count([row.key], 3)
    await packet(rig, row, b"two")
    await rig.seen()
    assert agent.waiting() == 0
    await packet(rig, row, b"three")
    assert await agent.next() == Reached(row.session, row.toward)
    await packet(rig, row, b"four")
    await rig.seen()
    assert agent.waiting() == 0  # once
    await rig.datapath.watch_count([row.key], 4)  # at once: there have been that many
    assert await agent.next() == Reached(row.session, row.toward)


async def test_a_row_that_is_not_there_counts_nothing(rig: Rig, agent: Listener) -> None:
    with pytest.raises(DatapathError, match="there is no row"):
        await rig.datapath.watch_count([(Hook.OUT, opening())], 1)


async def test_packets_that_wait_do_not_count(rig: Rig, agent: Listener) -> None:
    row = sent(await install(rig))
    await rig.datapath.hold([row.key])
    await rig.datapath.watch_count([row.key], 1)
    await packet(rig, row, b"x")
    await rig.seen()
    assert agent.waiting() == 0
    await rig.datapath.resume([row.key])
    assert await agent.next() == Reached(row.session, row.toward)


@pytest.mark.parametrize("later", [90, 104])
async def test_a_leg_knows_what_passed_on_the_one_before(
    rig: Rig, agent: Listener, later: int
) -> None:
    """An idle session has nothing in flight, also after its leg was replaced."""
    right, left = await install(rig)
    await packet(rig, right, b"data", seq=100)
    await packet(rig, left, b"", ack=104)
    new = left._replace(match=left.match._replace(sport=left.match.sport + 1))
    await rig.datapath.install([new])
    await packet(rig, new, b"", ack=later)
    await rig.datapath.inherit(left.key, new.key)
    await rig.datapath.inherit((Hook.IN, opening()), new.key)
    await rig.datapath.remove([left.key])
    await rig.datapath.watch_ack([new.key], 104)
    assert await agent.next() == Acked(left.session, Toward.LEFT)


async def test_held_packets_acknowledge_when_they_go(rig: Rig, agent: Listener) -> None:
    row = sent(await install(rig))
    await rig.datapath.hold([row.key])
    await rig.datapath.watch_ack([row.key], 50)
    await packet(rig, row, b"x", ack=60)
    await rig.seen()
    assert agent.waiting() == 0
    await rig.datapath.resume([row.key])
    assert await agent.next() == Acked(row.session, row.toward)


async def test_a_row_that_is_not_there_acknowledges_nothing(rig: Rig, agent: Listener) -> None:
    with pytest.raises(DatapathError, match="there is no row"):
        await rig.datapath.watch_ack([(Hook.OUT, opening())], 1)


async def test_reused_ports_acknowledge_anew(rig: Rig, agent: Listener) -> None:
    row = sent(await install(rig))
    await packet(rig, row, b"", seq=7, ack=4_000_000_000, flags=Tcp.ACK | Tcp.FIN)
    await packet(rig, row, b"", seq=99, ack=1, flags=Tcp.ACK | Tcp.SYN)
    await rig.seen()
    await rig.datapath.watch_ack([row.key], 2)
    assert agent.waiting() == 0
    await packet(rig, row, b"", ack=2)
    assert await agent.next() == Acked(row.session, row.toward)
