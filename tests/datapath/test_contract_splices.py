"""The contract: a hop adds to the numbers of TCP (docs/splicing.md)."""

from __future__ import annotations

import pytest

from m2m.datapath import Acked, DatapathError, Reason
from m2m.datapath.fake_packets import Tcp
from m2m.protocol.splice import Splice
from m2m.protocol.translation import Entry, Hook, Position, Toward
from tests.datapath.conftest import Listen, OpenRig
from tests.support.rig import Rig
from tests.support.sessions import entries, session

TO_RIGHT, TO_LEFT = 2**32 - 700, 50_000
SPLICE = Splice((TO_RIGHT, TO_LEFT), (1, 2), (0, 0))
OTHER = Splice((5, TO_LEFT), (1, 2), (0, 0))


async def install(rig: Rig, splice: Splice | None = SPLICE) -> tuple[Entry, Entry]:
    """A tap's rows, to the right and to the left."""
    right, left = (row._replace(splice=splice) for row in entries(rig, session(Position.TAP, 6, 1)))
    await rig.datapath.install([right, left])
    return right, left


async def packet(
    rig: Rig, row: Entry, payload: bytes = b"", *, seq: int = 0, ack: int = 0, flags: Tcp = Tcp.ACK
) -> None:
    await rig.packet(row.hook, row.match, payload, seq=seq, ack=ack, flags=flags)


async def test_both_sides_see_their_own_numbers(rig: Rig) -> None:
    right, left = await install(rig)
    await packet(rig, right, b"data", seq=1000, ack=60_000)
    assert await rig.numbers() == [(300, 10_000)]
    await packet(rig, left, b"data", seq=10_000, ack=304)
    assert await rig.numbers() == [(60_000, 1004)]


async def test_what_is_counted_is_left_of_it(rig: Rig) -> None:
    right, left = await install(rig)
    await packet(rig, right, b"data", seq=1000)
    await packet(rig, left, b"answer", seq=10_000, flags=Tcp.ACK | Tcp.FIN)
    counted = [row.counters.max_seq for row in await rig.datapath.rows([right.key, left.key])]
    assert counted == [1004, 60_007]


async def test_acknowledgements_are_told_as_they_are_left_of_it(rig: Rig, listen: Listen) -> None:
    agent = await listen(rig)
    right, left = await install(rig)
    await rig.datapath.watch_ack([left.key], 1004)
    await packet(rig, left, seq=10_000, ack=303)
    await packet(rig, left, seq=10_000, ack=304)
    assert await agent.next() == Acked(left.session, Toward.LEFT)
    await rig.datapath.watch_ack([right.key], 60_000)
    await packet(rig, right, seq=1000, ack=60_000)
    assert await agent.next() == Acked(right.session, Toward.RIGHT)


@pytest.mark.parametrize(
    ("toward", "checkpoint", "leaves"),
    [(Toward.RIGHT, 10_003, 9_303), (Toward.LEFT, 60_003, 60_003)],
)
async def test_substreams_end_where_they_end_left_of_it(
    rig: Rig, listen: Listen, toward: Toward, checkpoint: int, leaves: int
) -> None:
    await listen(rig)
    row = (await install(rig))[toward]
    await packet(rig, row, b"old", seq=10_000)
    (holding,) = await rig.datapath.hold([row.key], substream=True)
    assert holding.checkpoint == checkpoint
    await packet(rig, row, b"oldnew", seq=10_000)  # lies across
    # A packet to be split comes back once the agent has seen it.
    assert [each.payload for each in await rig.seen() + await rig.seen()] == [b"old", b"old"]
    await packet(rig, row, b"more", seq=10_006)
    assert await rig.seen() == []
    await rig.datapath.resume([row.key])
    assert [seq for seq, _ in await rig.numbers()] == [leaves, leaves + 3]


async def test_no_connection_begins_in_it(rig: Rig) -> None:
    right, left = await install(rig)
    before = (await rig.datapath.reasons())[Reason.NOT_SPLICED]
    await packet(rig, right, flags=Tcp.SYN)
    await packet(rig, left, flags=Tcp.SYN | Tcp.ACK)
    assert await rig.seen() == []
    assert (await rig.datapath.reasons())[Reason.NOT_SPLICED] == before + 2


async def test_a_redirection_has_its_own(rig: Rig) -> None:
    """A hop whose right neighbour leaves gets a splice; if that is undone, it has none again."""
    right, left = await install(rig, None)
    for splice, number in ((SPLICE, 300), (OTHER, 1005), (None, 1000), (SPLICE, 300)):
        new = right._replace(splice=splice)
        await rig.datapath.redirect([new])
        await packet(rig, right, b"data", seq=1000)
        assert [seq for seq, _ in await rig.numbers()] == [number]
        (row,) = await rig.datapath.rows([right.key])
        assert row.entry == new
        assert row.counters.max_seq == 1004
        with pytest.raises(DatapathError, match="counts in the numbers that its splice makes"):
            await rig.datapath.redirect([left._replace(splice=SPLICE)])


async def test_only_tcp_has_numbers(rig: Rig) -> None:
    rows = [row._replace(splice=SPLICE) for row in entries(rig, session(Position.TAP, 17, 1))]
    with pytest.raises(DatapathError, match="only TCP's can"):
        await rig.datapath.install(rows)


async def test_the_next_agent_finds_it(open_rig: OpenRig) -> None:
    rig = await open_rig()
    right, left = await install(rig)
    await rig.reopen(keep=True)
    found = {row.entry.key: row.entry.splice async for row in rig.datapath.dump()}
    assert found == {right.key: SPLICE, left.key: SPLICE}
    await packet(rig, right, b"data", seq=1000, ack=60_000)
    assert await rig.numbers() == [(300, 10_000)]
    await rig.datapath.remove([right.key, left.key])
    assert [row async for row in rig.datapath.dump()] == []


async def test_a_row_that_takes_its_place_has_none(rig: Rig) -> None:
    await install(rig)
    right, _ = await install(rig, None)
    await packet(rig, right, b"data", seq=1000, ack=2000)
    assert await rig.numbers() == [(1000, 2000)]
    (row,) = await rig.datapath.rows([right.key])
    assert row.entry.splice is None
    right, _ = await install(rig, OTHER)
    await packet(rig, right, b"data", seq=1000)
    assert [seq for seq, _ in await rig.numbers()] == [1005]


async def test_what_leaves_the_hosts_own_stack(rig: Rig) -> None:
    """There checksums may be left to devices."""
    rows = entries(rig, session(Position.INLINE, 6, 1))
    (row,) = [row for row in rows if row.hook is Hook.OUT and row.toward is Toward.RIGHT]
    await rig.datapath.install([row._replace(splice=SPLICE)])
    await packet(rig, row, b"data", seq=1000, ack=60_000)
    assert await rig.numbers() == [(300, 10_000)]
