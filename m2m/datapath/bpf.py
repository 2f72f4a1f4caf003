"""The eBPF datapath: the programs of ``m2m/bpf`` behind the contract of :mod:`m2m.datapath`.

Calls that touch interfaces (open, attach, install, release, close) work in the network namespace of
the calling thread.
"""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import trio

from m2m.datapath import (
    NOTE_SIZE,
    Datapath,
    DatapathError,
    DatapathFull,
    Ended,
    Event,
    Held,
    Holding,
    Limits,
    Reason,
    Row,
    Verdict,
    check_notes,
    host,
    layout,
)
from m2m.datapath._bpf import Map, Object, RingBuffer, wait_for_programs
from m2m.datapath.attach import Attachments, attach_own
from m2m.datapath.change import Changes
from m2m.datapath.flow_table import FlowTable
from m2m.datapath.hold import HoldQueue
from m2m.datapath.hold_device import HoldDevice
from m2m.datapath.hold_rules import Where
from m2m.datapath.hold_tables import HoldTables
from m2m.datapath.notes import Notes
from m2m.datapath.pins import Pins
from m2m.datapath.sweep import Sweeper
from m2m.datapath.tables import ENTRIES_PER_SESSION, Tables
from m2m.datapath.ticker import Ticker
from m2m.policy.rules import PolicySet
from m2m.protocol.flow import Address, Flow
from m2m.protocol.translation import Action, Entry, Hook, Position, Toward

__all__ = ["EbpfDatapath"]

_PROGRAMS = Path(__file__).parent.parent / "bpf"
_HEARTBEAT = 1.0  # s between signs of life
_ENDS_AT_ONCE = 32  # sessions
_HEARTBEAT_LIMIT = 3.0  # s without one, and the agent counts as away


class EbpfDatapath(Datapath):
    """One agent's hold on its pinned tables and programs. Made by :meth:`open`.

    What the set-up of a session calls (install, release, remove, rows) can be cancelled before it
    begins and does not let other tasks run: it is a few system calls, and its latency counts.
    """

    name: ClassVar[str] = "ebpf"

    def __init__(
        self, pins: Pins, limits: Limits, ports: tuple[int, int], name: str, where: Where
    ) -> None:
        """Use :meth:`open`."""
        loaded = pins.load(
            _PROGRAMS / "m2m.bpf.o",
            {"flows": limits.sessions * ENTRIES_PER_SESSION, "notes": limits.sessions},
        )
        hold = pins.load(_PROGRAMS / "hold.bpf.o", {})
        self._pins = pins
        self._tables = Tables(loaded)
        self._tables.configure(limits, ports, _HEARTBEAT_LIMIT)
        self._notes = Notes(loaded.map("notes"))
        self._attachments = Attachments(pins, loaded.program("m2m_in"), loaded.program("m2m_out"))
        self._sweeper = Sweeper(loaded.program("m2m_sweep"))
        self._ring = RingBuffer(loaded.map("events"))
        self._device = HoldDevice(name)
        for side, program in (("in", "m2m_let_go"), ("out", "m2m_held")):
            attach_own(pins, self._device.ifindex, side, loaded.program(program))
        self._changes = Changes(loaded, self._device, limits, self._tables.splices)
        self._queue, self._hold_tables = self._open_queue(hold, name, limits.hold_packets, where)
        self._ticker = Ticker(_HEARTBEAT)
        self._ready = select.epoll()
        self._ready.register(self._ticker.fileno(), select.EPOLLIN)
        self._ready.register(self._ring.fileno(), select.EPOLLIN)
        self._ready.register(self._queue.fileno(), select.EPOLLIN)
        for fileno in self._changes.filenos():
            self._ready.register(fileno, select.EPOLLIN)
        self._objects = loaded, hold
        self._sweeper.start()

    @classmethod
    async def open(
        cls,
        name: str,
        limits: Limits = Limits(),  # noqa: B008 - immutable
        *,
        ports: tuple[int, int] = (61000, 65535),
        where: Where = Where.OUTPUT,
    ) -> EbpfDatapath:
        """Load the programs and make, or take over, the tables of the agent *name*.

        *ports* are the first and the last subsession port; *where* tells whose first packets are
        held. Tables taken over keep their size.
        Raises :exc:`~m2m.errors.UnsupportedHost` when the host cannot do it, and
        :exc:`~m2m.datapath.DatapathError` when another agent has the tables.
        """
        await trio.lowlevel.checkpoint()
        host.check()
        pins = Pins(name)
        found_something = True
        try:
            _make_way(pins, name, limits)
            found_something = bool(pins.names())
            return cls(pins, limits, ports, name, where)
        except BaseException:
            pins.release(keep=found_something)
            raise

    # -- the contract -------------------------------------------------------------------

    async def attach(self, ifindexes: Iterable[int]) -> None:
        await trio.lowlevel.checkpoint()
        ours = self._device.ifindex, self._device.peer_ifindex
        self._attachments.set(ifindex for ifindex in ifindexes if ifindex not in ours)
        self._watch_first_packets()

    async def set_addresses(self, addresses: Iterable[Address]) -> None:
        await trio.lowlevel.checkpoint()
        self._tables.set_addresses(addresses)

    async def load_policy(self, policy: PolicySet) -> None:
        # The spare set was the active one until the last call: let its last readers finish.
        await trio.to_thread.run_sync(wait_for_programs)
        had_rules = bool(self._tables.rule_count)
        self._tables.set_rules(policy)
        if bool(policy.rules) != had_rules:
            self._watch_first_packets()

    async def install(self, entries: Sequence[Entry]) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._install(entries)

    def _install(self, entries: Sequence[Entry]) -> None:
        if not self._attachments.outgoing and any(each.hook is Hook.OUT for each in entries):
            self._attachments.translate_outgoing()
        rows = self._tables.rows_of(entries)
        if self._changes.any:
            self._changes.forget(key for key, _ in rows)
        splices = {
            layout.pack_key(*entry.key): entry.splice.pack()
            for entry in entries
            if entry.splice is not None
        }
        self._tables.install(rows, splices)

    async def remove(self, keys: Iterable[tuple[Hook, Flow]]) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        keys = list(keys)
        if self._changes.any:
            self._changes.forget(layout.pack_key(*key) for key in keys)
        self._tables.remove(keys)

    async def redirect(self, entries: Sequence[Entry]) -> list[int]:
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._changes.redirect(entries)

    async def hold(
        self, keys: Iterable[tuple[Hook, Flow]], *, substream: bool = False
    ) -> list[Holding]:
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._changes.hold(keys, substream=substream)

    async def resume(self, keys: Iterable[tuple[Hook, Flow]]) -> list[int]:
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._changes.resume(keys)

    async def watch_ack(self, keys: Iterable[tuple[Hook, Flow]], number: int) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._changes.watch_ack(keys, number)

    async def watch_count(self, keys: Iterable[tuple[Hook, Flow]], number: int) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._changes.watch_count(keys, number)

    async def inherit(self, old: tuple[Hook, Flow], new: tuple[Hook, Flow]) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._changes.inherit(old, new)

    async def splice(
        self, rows: tuple[Entry, Entry], silent: tuple[tuple[Hook, Flow], tuple[Hook, Flow]]
    ) -> tuple[bool, bool]:
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._changes.splice(rows, silent)

    async def rename(self, keys: Iterable[tuple[Hook, Flow]], session: int, name: int) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._changes.rename(keys, session, name)

    async def rows(self, keys: Iterable[tuple[Hook, Flow]]) -> list[Row]:
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._tables.rows(keys)

    async def idle(self, keys: Iterable[tuple[Hook, Flow]]) -> list[float | None]:
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._tables.idle(keys)

    async def dump(self) -> AsyncIterator[Row]:
        for batch in self._tables.batches():
            await trio.lowlevel.checkpoint()
            for row in batch:
                yield row

    async def keep(self, notes: Mapping[int, bytes]) -> None:
        check_notes(notes)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._notes.keep(notes)

    async def forget(self, sessions: Iterable[int]) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._notes.forget(sessions)

    async def kept(self) -> dict[int, bytes]:
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._notes.kept()

    async def release(self, flow: Flow, verdict: Verdict) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if verdict is not Verdict.STEER:
            action = Action.PASS if verdict is Verdict.PASS else Action.DROP
            # With no room for the decision it is made again for the flow's next first packet.
            with contextlib.suppress(DatapathFull):
                self._install([_unsteered(flow, action)])
        self._queue.release(flow, verdict)

    async def events(self) -> AsyncIterator[Event]:
        self._beat()
        over: deque[Ended] = deque()  # told by the sweeper, thousands at a time
        while True:
            if over:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(self._ready)
            for ready, _ in self._ready.poll(0):
                if ready == self._queue.fileno():
                    for flow in self._queue.receive():
                        yield Held(flow)
                elif ready == self._ring.fileno():
                    over.extend(self._told())
                elif ready != self._ticker.fileno():
                    for event in self._changes.events():
                        yield event
                elif self._ticker.rings():
                    self._beat()
            # First packets, and the other tasks, do not wait for all of them.
            for _ in range(min(len(over), _ENDS_AT_ONCE)):
                yield over.popleft()

    def _told(self) -> Iterator[Ended]:
        """The sessions that are over; what else the programs say is acted upon."""
        for record in self._ring.consume():
            session, kind, toward, serial = layout.unpack_event(record)
            reason = layout.end_reason(kind)
            if reason is not None:
                yield Ended(session, reason)
            else:
                self._changes.event(kind, session, toward, serial)

    def _beat(self) -> None:
        """Say that an agent is here; look after what needs it about once a second."""
        self._tables.config[layout.HEARTBEAT] = time.monotonic_ns()
        self._tables.set_clock()
        self._queue.tick()
        self._changes.tick()
        if self._sweeper.failure is not None:
            raise DatapathError(f"the sweeper failed: {self._sweeper.failure}")

    async def reasons(self) -> Mapping[Reason, int]:
        await trio.lowlevel.checkpoint()
        return self._tables.reasons()

    async def close(self, *, keep: bool) -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._sweeper.stop)
        # Whoever is told to wait for an agent now learns that there is none.
        self._tables.config[layout.HEARTBEAT] = 0
        self._changes.close(keep=keep)
        self._queue.close(keep=keep)
        if not keep:
            self._attachments.set(())
        self._ready.close()
        self._ticker.close()
        self._ring.close()
        self._hold_tables.close()
        self._tables.close()
        for loaded in self._objects:
            loaded.close()
        self._pins.release(keep=keep)

    # -- first packets ------------------------------------------------------------------

    def _open_queue(
        self, hold: Object, name: str, limit: int, where: Where
    ) -> tuple[HoldQueue, HoldTables]:
        tables = HoldTables(
            flows=FlowTable(hold.map("flows")),
            holds=hold.map("holds"),
            hold_state=hold.map("hold_state"),
            settle=hold.program("settle"),
        )
        for program in ("hold", "refuse"):
            self._pins.replace(program, hold.program(program))
        pins = {program: self._pins.path(program) for program in ("hold", "refuse")}
        return HoldQueue.open(name, tables, limit=limit, where=where, **pins), tables

    def _watch_first_packets(self) -> None:
        """No rules, nothing to hold: then packets need not be shown to iptables at all."""
        interfaces = self._attachments.interfaces() if self._tables.rule_count else ()
        self._queue.watch(map(socket.if_indextoname, interfaces))


def _unsteered(flow: Flow, action: Action) -> Entry:
    return Entry(0, Hook.OUT, flow, flow, action, Toward.RIGHT, Position.CLIENT, flow)


@functools.cache
def _key_and_value_sizes() -> dict[str, tuple[int, int]]:
    return {
        "flows": (layout.KEY4_SIZE, layout.ENTRY_SIZE),
        "config": (4, layout.CONFIG_SIZE),
        "rules": (4, layout.RULE_SIZE),
        "notes": (8, NOTE_SIZE),
    }


def _make_way(pins: Pins, name: str, limits: Limits) -> None:
    """Remove tables that cannot be taken over, if they are empty.

    Raises :exc:`DatapathError` when they carry sessions.
    """
    flows, config = pins.pinned_map("flows"), pins.pinned_map("config")
    if flows is None or config is None:
        pins.unpin(*pins.names())  # of an agent that was killed while it started
        return
    sizes = {"flows": flows, "config": config, "rules": pins.pinned_map("rules")}
    notes = pins.pinned_map("notes")
    if notes is not None:  # else of an agent before there were any: they are made
        sizes["notes"] = notes
    same = all(
        table is not None and (table.key_size, table.value_size) == _key_and_value_sizes()[each]
        for each, table in sizes.items()
    )
    version = 0
    if same:
        value = config.lookup(bytes(4))
        assert value is not None
        version = int.from_bytes(value[layout.LAYOUT_VERSION.offset :][:4], "little")
    empty = flows.next_key() is None
    if version == layout.VERSION and (not empty or _has_room(flows, limits)):
        return
    if not empty:
        raise DatapathError(
            f"the tables of agent {name} are those of another version of M2M (layout {version},"
            f" not {layout.VERSION}) and still carry sessions; let them end under that version,"
            f" or give them up: rm -r {pins.directory}"
        )
    pins.unpin(*(pin for pin in pins.names() if not pin.startswith(("link-", "tc-"))))


def _has_room(flows: Map, limits: Limits) -> bool:
    return flows.max_entries == limits.sessions * ENTRIES_PER_SESSION
