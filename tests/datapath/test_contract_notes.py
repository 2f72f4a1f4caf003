"""The contract: what an agent keeps with its sessions for the one after it."""

from __future__ import annotations

import pytest

from m2m.datapath import NOTE_SIZE, DatapathFull
from m2m.protocol.translation import Position
from tests.datapath.conftest import LIMITS, OpenRig
from tests.support.rig import Rig
from tests.support.sessions import entries, session

LARGEST = (1 << 64) - 1


def note(number: int) -> bytes:
    return bytes((number % 256,)) * NOTE_SIZE


async def test_notes_come_back_as_they_were_put_in(rig: Rig) -> None:
    notes = {0: note(1), 1: note(2), LARGEST: note(3)}
    assert await rig.datapath.kept() == {}
    await rig.datapath.keep(notes)
    assert await rig.datapath.kept() == notes
    await rig.datapath.keep({})
    assert await rig.datapath.kept() == notes


async def test_a_later_note_replaces_an_earlier_one(rig: Rig) -> None:
    await rig.datapath.keep({1: note(1), 2: note(2)})
    await rig.datapath.keep({1: note(3)})
    await rig.datapath.keep({2: note(4), 3: note(5)})
    assert await rig.datapath.kept() == {1: note(3), 2: note(4), 3: note(5)}


async def test_what_is_forgotten_is_gone(rig: Rig) -> None:
    await rig.datapath.keep({number: note(number) for number in range(1, 5)})
    await rig.datapath.forget([1, 3, 99])
    await rig.datapath.forget([])
    assert await rig.datapath.kept() == {2: note(2), 4: note(4)}


async def test_as_many_as_there_can_be_sessions(rig: Rig) -> None:
    notes = {number: note(number) for number in range(LIMITS.sessions)}
    await rig.datapath.keep(notes)
    for one_more in ({1000: note(0)}, {1000: note(0), 1001: note(1)}):
        with pytest.raises(DatapathFull):
            await rig.datapath.keep(one_more)
    assert await rig.datapath.kept() == notes
    # Those that are there are still replaced, and one that goes makes room.
    await rig.datapath.keep({number: note(number + 1) for number in range(LIMITS.sessions)})
    await rig.datapath.forget([7])
    await rig.datapath.keep({1000: note(9)})
    kept = await rig.datapath.kept()
    assert len(kept) == LIMITS.sessions
    assert (kept[1000], kept[8]) == (note(9), note(9))


async def test_more_than_are_read_at_once(open_rig: OpenRig) -> None:
    rig = await open_rig(sessions=20_000)
    notes = {number << 40 | number: note(number) for number in range(20_000)}
    await rig.datapath.keep(notes)
    assert await rig.datapath.kept() == notes


@pytest.mark.parametrize("size", [0, NOTE_SIZE - 1, NOTE_SIZE + 1])
async def test_of_one_size_only(rig: Rig, size: int) -> None:
    with pytest.raises(ValueError, match=f"00000000000000ab is {size} octets long, not 72"):
        await rig.datapath.keep({1: note(1), 0xAB: bytes(size)})
    assert await rig.datapath.kept() == {}


async def test_i6_notes_outlive_the_agent_and_their_entries(rig: Rig) -> None:
    rows = entries(rig, session(Position.CLIENT))
    await rig.datapath.install(rows)
    await rig.datapath.keep({rows[0].session: note(1), 5: note(2)})
    await rig.datapath.remove([entry.key for entry in rows])
    await rig.reopen(keep=True)
    assert await rig.datapath.kept() == {rows[0].session: note(1), 5: note(2)}


async def test_i9_closing_takes_notes_out(rig: Rig) -> None:
    await rig.datapath.keep({1: note(1)})
    await rig.reopen(keep=False)
    assert await rig.datapath.kept() == {}
