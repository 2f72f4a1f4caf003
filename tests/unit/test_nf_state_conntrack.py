"""The adapter's own rules, beside a table and locks in memory."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio
from pyroute2.netlink.nfnetlink.nfctsocket import IPS_CONFIRMED
from trio.testing import MockClock

from m2m.protocol.flow import Flow, Proto
from nf_adapters.state import (
    LONGEST_LOCK,
    BadState,
    Immovable,
    NoState,
    NotLocked,
    StateError,
)
from nf_adapters.state.conntrack import ConntrackState
from nf_adapters.state.ctnetlink import AlreadyThere, Found
from nf_adapters.state.entry import Entry, encode

FLOW = Flow.of(Proto.UDP, "10.0.0.1", 40000, "10.0.0.2", 53)
OTHER = FLOW._replace(sport=40001)
ENTRY = Entry(FLOW, IPS_CONFIRMED, 30)


class Table:
    def __init__(self, *entries: Entry) -> None:
        self.entries = {entry.flow: Found(entry, None) for entry in entries}
        self.refuses: type[StateError] | None = None
        self.keeps_labels = True

    def get(self, flow: Flow, _zone: int) -> Found | None:
        return self.entries.get(flow) or self.entries.get(flow.reverse())

    def create(self, entry: Entry) -> None:
        if entry.flow in self.entries or entry.flow.reverse() in self.entries:
            raise AlreadyThere("there is one")
        if self.refuses is not None:
            error, self.refuses = self.refuses, None
            raise error("refused")
        if not self.keeps_labels:
            entry = Entry(entry.flow, entry.status, entry.timeout)
        self.entries[entry.flow] = Found(entry, None)

    def delete(self, flow: Flow, _zone: int) -> bool:
        found = self.get(flow, _zone)
        if found is not None:
            del self.entries[found.entry.flow]
        return found is not None


class Locks:
    def __init__(self) -> None:
        self.locked: set[Flow] = set()

    async def add(self, flow: Flow) -> float:
        await trio.lowlevel.checkpoint()
        self.locked.add(flow)
        return trio.current_time() + LONGEST_LOCK

    async def remove(self, flow: Flow) -> None:
        await trio.lowlevel.checkpoint()
        self.locked.discard(flow)


def adapter(table: Table, locks: Locks | None = None, zone: int = 0) -> ConntrackState:
    return ConntrackState(cast(Any, table), cast(Any, locks or Locks()), zone)


async def test_a_state_is_exported_only_while_it_is_locked(autojump_clock: MockClock) -> None:
    locks = Locks()
    state = adapter(Table(ENTRY), locks)
    with pytest.raises(NotLocked):
        await state.export(FLOW)
    await state.quiesce(FLOW)
    assert locks.locked == {FLOW}
    assert await state.export(FLOW) == encode(ENTRY)
    await trio.sleep(LONGEST_LOCK)
    with pytest.raises(NotLocked):
        await state.export(FLOW)
    await state.release(FLOW, keep=True)
    assert not locks.locked
    await state.quiesce(FLOW)
    await state.release(FLOW, keep=True)
    with pytest.raises(NotLocked):
        await state.export(FLOW)


async def test_what_cannot_be_moved_is_not_locked() -> None:
    locks, table = Locks(), Table(ENTRY)
    state = adapter(table, locks)
    with pytest.raises(NoState, match="no entry"):
        await state.quiesce(OTHER)
    table.entries[FLOW] = Found(ENTRY, "a reason")
    with pytest.raises(Immovable, match="a reason"):
        await state.quiesce(FLOW)
    with pytest.raises(Immovable, match="one direction only"):
        await adapter(Table(ENTRY), locks, zone=3).quiesce(FLOW)
    assert not locks.locked


async def test_release_forgets_or_keeps() -> None:
    locks, table = Locks(), Table(ENTRY)
    state = adapter(table, locks)
    await state.quiesce(FLOW)
    await state.release(FLOW, keep=True)
    assert FLOW in table.entries
    await state.quiesce(FLOW)
    await state.release(FLOW, keep=False)
    assert not table.entries
    assert not locks.locked
    await state.release(FLOW, keep=False)


async def test_a_cancelled_quiesce_has_not_happened() -> None:
    locks = Locks()
    state = adapter(Table(ENTRY), locks)
    with trio.CancelScope() as scope:
        scope.cancel()
        await state.quiesce(FLOW)
    assert scope.cancelled_caught
    assert not locks.locked


async def test_an_import_replaces_what_was_there() -> None:
    table = Table(ENTRY)
    newer = Entry(FLOW.reverse(), IPS_CONFIRMED, 99, mark=5)
    await adapter(table).import_(FLOW, encode(newer))
    assert table.entries == {newer.flow: Found(newer, None)}


@pytest.mark.parametrize("error", [StateError, AlreadyThere])
async def test_a_refused_import_changes_nothing(error: type[StateError]) -> None:
    table = Table(ENTRY)
    table.refuses = error
    with pytest.raises(StateError):
        await adapter(table).import_(FLOW, encode(Entry(FLOW, IPS_CONFIRMED, 99)))
    assert table.entries == {FLOW: Found(ENTRY, None)}


async def test_labels_that_do_not_stick_are_refused() -> None:
    table = Table()
    table.keeps_labels = False
    labelled = Entry(FLOW, IPS_CONFIRMED, 99, labels=bytes([1]) + bytes(15))
    with pytest.raises(StateError, match="ct label"):
        await adapter(table).import_(FLOW, encode(labelled))
    assert not table.entries


async def test_bad_input_changes_nothing() -> None:
    table = Table(ENTRY)
    with pytest.raises(BadState):
        await adapter(table).import_(FLOW, b"noise")
    with pytest.raises(BadState, match="another session"):
        await adapter(table).import_(OTHER, encode(ENTRY))
    with pytest.raises(BadState, match="zone 0, and here the firewall tracks in zone 4"):
        await adapter(table, zone=4).import_(FLOW, encode(ENTRY))
    table.entries[FLOW] = Found(ENTRY, "translated")
    with pytest.raises(StateError, match="translated"):
        await adapter(table).import_(FLOW, encode(ENTRY))
    assert table.entries == {FLOW: Found(ENTRY, "translated")}


async def test_ipv6_and_other_protocols_have_no_state() -> None:
    state = adapter(Table())
    for flow in (Flow.of(Proto.UDP, "2001:db8::1", 1, "2001:db8::2", 2), FLOW._replace(proto=132)):
        with pytest.raises(NoState, match="no session"):
            await state.quiesce(flow)
        with pytest.raises(BadState, match="no session"):
            await state.import_(flow, encode(ENTRY))
        await state.release(flow, keep=False)
