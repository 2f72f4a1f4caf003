"""The contract: a proxy leaves, and the two sessions that met there are one (docs/splicing.md)."""

from __future__ import annotations

import pytest

from m2m.datapath import Datapath, DatapathError, Reason
from m2m.protocol.splice import Splice
from m2m.protocol.translation import Entry, Hook, Position, Toward, entries_for, receiver, sender
from tests.datapath.conftest import Listen, OpenRig
from tests.support.rig import HOST_LEFT, Place, Rig, Seen
from tests.support.sessions import entries, going_on, session

SPLICE = Splice((2**32 - 700, 50_000), (1, 2), (0, 0))
CAME, GOES_ON = session(Position.PROXY)._replace(session=1), going_on()._replace(session=2)
ONE = CAME._replace(position=Position.TAP, right=GOES_ON.right)
CAME_IN, CAME_OUT = receiver(CAME, Toward.RIGHT), sender(CAME, Toward.LEFT)
WENT_IN, WENT_OUT = receiver(GOES_ON, Toward.LEFT), sender(GOES_ON, Toward.RIGHT)


@pytest.fixture
async def rig(open_rig: OpenRig) -> Rig:
    """With both halves."""
    rig = await open_rig()
    if not rig.datapath.splices:
        pytest.skip(f"{rig.datapath.name} does not make splices")
    await rig.datapath.install([*entries(rig, CAME), *entries(rig, GOES_ON)])
    return rig


def one(rig: Rig) -> tuple[Entry, Entry]:
    right, left = (row._replace(splice=SPLICE) for row in entries(rig, ONE))
    return right, left


async def splice(rig: Rig) -> None:
    await rig.datapath.hold([CAME_IN, WENT_IN])
    await rig.datapath.splice(one(rig), (CAME_OUT, WENT_OUT))


async def session_of(datapath: Datapath, *keys: tuple[Hook, object]) -> list[int]:
    return [row.entry.session for row in await datapath.rows(keys)]  # type: ignore[arg-type]


async def test_what_is_for_the_host_waits_too(rig: Rig, listen: Listen) -> None:
    await listen(rig)
    await rig.packet(*CAME_IN, b"old", seq=1000)
    (holding,) = await rig.datapath.hold([CAME_IN], substream=True)
    assert holding.checkpoint == 1003
    await rig.packet(*CAME_IN, b"", seq=1003, ack=5)
    await rig.packet(*CAME_IN, b"oldnew", seq=1000)  # lies across
    here = Seen(Place.STACK, CAME.supersession, b"old")
    assert await rig.seen() + await rig.seen() == [here, here._replace(payload=b""), here]
    await rig.packet(*CAME_IN, b"more", seq=1006, ack=9)  # acknowledges what nothing before it has
    assert await rig.seen() + await rig.seen() == [here._replace(payload=b"")]
    assert await rig.datapath.resume([CAME_IN]) == [2]
    assert await rig.seen() == [here._replace(payload=each) for each in (b"new", b"more")]
    await rig.packet(*CAME_IN, b"last", seq=1010)
    assert await rig.seen() == [here._replace(payload=b"last")]


async def test_two_sessions_become_one(rig: Rig, listen: Listen) -> None:
    await listen(rig)
    await rig.packet(*CAME_IN, b"asks", seq=1000, ack=60_000)
    await rig.packet(*WENT_IN, b"answers", seq=10_000, ack=304)
    await rig.seen()
    await rig.datapath.hold([CAME_IN, WENT_IN])
    await rig.packet(*CAME_IN, b"more", seq=1004, ack=60_007)
    await rig.packet(*WENT_IN, b"data", seq=10_007, ack=304)
    await rig.datapath.splice(one(rig), (CAME_OUT, WENT_OUT))
    assert await rig.seen() == []
    assert await rig.datapath.resume([CAME_IN, WENT_IN]) == [1, 1]
    assert sorted(await rig.numbers()) == [(304, 10_007), (60_007, 1004)]
    await rig.seen()
    rows = await rig.datapath.rows([CAME_IN, WENT_IN])
    assert [row.entry for row in rows] == list(one(rig))
    assert [row.counters.max_seq for row in rows] == [1008, 60_011]
    assert [row.counters.packets for row in rows] == [2, 2]
    await rig.packet(*CAME_IN, b"on", seq=1008, ack=60_011)
    assert await rig.seen() == [Seen(Place.WIRE, GOES_ON.right, b"on")]  # type: ignore[arg-type]


async def test_its_sockets_are_not_heard_any_more(rig: Rig) -> None:
    await splice(rig)
    await rig.datapath.resume([CAME_IN, WENT_IN])
    before = (await rig.datapath.reasons())[Reason.REFUSED]
    await rig.packet(*CAME_OUT, b"late")
    await rig.packet(*WENT_OUT, b"late")
    assert await rig.seen() == []
    assert (await rig.datapath.reasons())[Reason.REFUSED] == before + 2
    assert await session_of(rig.datapath, CAME_OUT, WENT_OUT) == []


@pytest.mark.parametrize("substream", [True, False])
async def test_only_while_all_waits(rig: Rig, substream: bool) -> None:
    await rig.packet(*CAME_IN, b"one", seq=1000)
    await rig.seen()
    await rig.datapath.hold([CAME_IN] if not substream else [CAME_IN, WENT_IN], substream=substream)
    if substream:  # there is none to the left yet: all waits there
        await rig.datapath.hold([WENT_IN])
    with pytest.raises(DatapathError, match="are not held"):
        await rig.datapath.splice(one(rig), (CAME_OUT, WENT_OUT))
    await rig.datapath.resume([CAME_IN, WENT_IN])
    assert await session_of(rig.datapath, CAME_IN, CAME_OUT, WENT_IN, WENT_OUT) == [1, 1, 2, 2]
    await rig.packet(*CAME_IN, b"two", seq=1003)
    assert await rig.seen() == [Seen(Place.STACK, CAME.supersession, b"two")]


async def test_the_next_agent_finds_one(rig: Rig) -> None:
    await splice(rig)
    await rig.packet(*CAME_IN, b"waits", seq=1000)
    await rig.reopen(keep=True)
    found = {row.entry.key: row.entry async for row in rig.datapath.dump()}
    assert found == {row.key: row for row in one(rig)}
    assert await rig.seen() == [Seen(Place.WIRE, GOES_ON.right, b"waits")]  # type: ignore[arg-type]


async def test_it_changes_as_any_does(rig: Rig) -> None:
    await splice(rig)
    await rig.datapath.resume([CAME_IN, WENT_IN])
    right, _ = one(rig)
    other = right.rewrite._replace(sport=62009)
    await rig.datapath.redirect([right._replace(rewrite=other)])
    await rig.packet(*CAME_IN, b"there", seq=1000)
    assert await rig.seen() == [Seen(Place.WIRE, other, b"there")]


async def test_a_session_gets_another_name(rig: Rig) -> None:
    keys = [row.key for row in entries_for(GOES_ON)]
    await rig.packet(*WENT_IN, b"one", seq=1)
    await rig.datapath.rename([*keys, CAME_IN], 2, 9)
    assert await session_of(rig.datapath, *keys, CAME_IN) == [9, 9, 1]
    await rig.packet(*WENT_IN, b"two", seq=4)
    (row,) = await rig.datapath.rows([WENT_IN])
    assert row.counters.packets == 2
    assert {each.flow.dst for each in await rig.seen()} == {HOST_LEFT}
