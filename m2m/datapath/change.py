"""Changing live sessions: redirect, hold, resume, watch (docs/holding.md, m2m/bpf/change.h).

An entry that changes has records beside the table, made here and taken away again some seconds
after the change. Seconds, because then no program can still be looking at what it found before:

    mark ──► the redirect counts, not the entry ──1 s──► written into the entry, which nobody reads
         ──1 s──► unmark: the entry counts, and nobody finds the records ──1 s──► no records
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence

from m2m.datapath import (
    Acked,
    DatapathError,
    Event,
    Holding,
    HoldOverflow,
    Limits,
    Reached,
    check_redirect,
    layout,
    split,
)
from m2m.datapath import change_tables as do
from m2m.datapath._bpf import Object
from m2m.datapath._core import seq_after
from m2m.datapath.change_tables import ChangeTables, Found
from m2m.datapath.hold_device import HoldDevice
from m2m.datapath.splice_table import SpliceTable
from m2m.protocol.flow import Flow, Proto
from m2m.protocol.splice import Splice
from m2m.protocol.translation import Action, Entry, Hook, Position, Toward

__all__ = ["Changes"]

_OLD = 1.0  # s after which no program still has what it found before
# A number that has been given out comes as soon as a program on another processor goes on. When it
# does not, the others shall not wait for it any more; and then it was lost (no memory, perhaps).
_PATIENCE, _LOST = 0.02, 0.04  # s
_SILENT = layout.ticks(9.0)  # for which what a spliced proxy's sockets send is dropped, at least
_LIMIT_MOST = 8000  # packets; their numbers are compared modulo 2**15

_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23
_ETH_P_ALL, _ETH_P_IP = 3, 0x0800
_SO_RCVBUFFORCE = 33
_SO_SNDBUFFORCE = 32
_FRAME = 1 << 17


class _Record:
    """What is known of an entry that changes."""

    __slots__ = (
        "awaited", "checkpoint", "count_serial", "has_made", "held_from", "hold_serial", "session",
        "since",
        "stage", "toward", "watch_serial", "watched",
    )  # fmt: skip

    def __init__(self, session: int, toward: Toward) -> None:
        self.session = session
        self.toward = toward
        self.held_from: int | None = None  # how many had been held before; None: nothing is
        self.checkpoint: int | None = None
        self.watched = False
        self.awaited = False  # a number of packets
        self.has_made = False  # packets, of others
        # Of the last hold, and of the last watches: what is told names it.
        self.hold_serial = self.watch_serial = self.count_serial = 0
        self.since = time.monotonic()  # of the last change, or of this stage
        self.stage = 0  # towards having no record


class Changes:
    """The changing entries of one agent."""

    def __init__(
        self, loaded: Object, device: HoldDevice, limits: Limits, splices: SpliceTable
    ) -> None:
        self._device = device
        self._splices = splices
        self._hold_time = layout.ticks(limits.hold_time)
        self._tables = ChangeTables(loaded)
        self._records: dict[bytes, _Record] = {}
        self._serial = secrets.randbits(31)
        self._splitter = _open_splitter(device)
        self._events: deque[Event] = deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._tables.begin(min(limits.hold_packets, _LIMIT_MOST), device.ifindex)
        self._take_over()

    def _take_over(self) -> None:
        """Let go what an agent that was killed has held."""
        for key in self._tables.recorded():
            value = self._tables.flows.lookup(key)
            entry = None if value is None else layout.unpack_row(key, value, 0).entry
            record = _Record(entry.session, entry.toward) if entry else _Record(0, Toward.RIGHT)
            self._records[key] = record
            self._drain(key)
            self._tables.run(key, clear=do.WATCH)
        self._tables.give_up(*self._tables.stale_addresses())
        self._tables.nothing_waits()

    # -- the contract -------------------------------------------------------------------

    def redirect(self, entries: Sequence[Entry]) -> list[int]:
        if not entries:
            return []
        rows = [layout.pack_entry(entry, 0) for entry in entries]
        values = self._values([entry.key for entry in entries], [key for key, _ in rows])
        for entry, (key, row), value in zip(entries, rows, values, strict=True):
            if not layout.have_same_fixed(value, row) or (
                entry.toward is Toward.LEFT and (layout.is_spliced(value) or entry.splice)
            ):
                splice = self._splices.get(key) if layout.is_spliced(value) else None
                check_redirect(layout.unpack_row(key, value, 0, splice).entry, entry)
        redirects = []
        for entry, (key, row) in zip(entries, rows, strict=True):
            self._record(key, entry.session, entry.toward)
            redirects.append((key, layout.pack_redirect(row, self._next_serial(), entry.splice)))
            if entry.splice is not None:
                self._splices.expect(key)
        return self._tables.redirect(redirects)

    def hold(self, keys: Iterable[tuple[Hook, Flow]], *, substream: bool) -> list[Holding]:
        values = self._entries(keys)
        for key, value in values.items():
            if layout.action_of(value) not in (Action.SEND, Action.DELIVER):
                raise DatapathError(
                    f"packets of {Flow.unpack(key)} cannot be held: they are of no session"
                )
            if substream and key[36] != Proto.TCP:
                raise DatapathError(
                    f"packets of {Flow.unpack(key)} have no substreams: they are not TCP"
                )
        self._split()
        for key, value in values.items():
            self._begin(self._record_of(key, value), key, substream=substream)
        return [self._holding(key) for key in values]

    def resume(self, keys: Iterable[tuple[Hook, Flow]]) -> list[int]:
        packed = [layout.pack_key(*key) for key in keys]
        self._split()
        return [self._drain(key) if self._holds(key) else 0 for key in packed]

    def watch_ack(self, keys: Iterable[tuple[Hook, Flow]], number: int) -> None:
        for key, value in self._entries(keys).items():
            record = self._record_of(key, value)
            record.watched = True
            record.watch_serial = serial = self._next_serial()
            self._tables.run(key, do.MARK, put=do.WATCH, ack=number, serial=serial)
            # One that met the entry before it was marked has been noted by now.
            acked = self._tables.run(key).acked
            if acked is not None and not seq_after(number, acked):
                self._tables.run(key, clear=do.WATCH)
                self._tell_acked(record)

    def watch_count(self, keys: Iterable[tuple[Hook, Flow]], number: int) -> None:
        for key, value in self._entries(keys).items():
            record = self._record_of(key, value)
            record.awaited = True
            record.count_serial = serial = self._next_serial()
            self._tables.run(key, do.MARK, put=do.COUNT, count=number, serial=serial)
            # One that met the entry before it was marked has been counted by now.
            if self._tables.run(key).packets >= number:
                self._tables.run(key, clear=do.COUNT)
                self._tell_reached(record)

    def inherit(self, old: tuple[Hook, Flow], new: tuple[Hook, Flow]) -> None:
        self._tables.inherit(layout.pack_key(*old), layout.pack_key(*new))

    def splice(
        self, rows: tuple[Entry, Entry], silent: tuple[tuple[Hook, Flow], tuple[Hook, Flow]]
    ) -> tuple[bool, bool]:
        splice = rows[0].splice
        assert splice is not None
        now = layout.now_ticks()
        packed = [layout.pack_entry(row, now) for row in rows]
        # Refused until a time that is yet to come, and for a second from then.
        until = (now + _SILENT) & 0xFFFFFFFF
        refused = [
            layout.pack_entry(
                Entry(0, hook, flow, flow, Action.DROP, Toward.RIGHT, Position.CLIENT, flow), until
            )
            for hook, flow in silent
        ]
        for key, _ in packed:
            self._splices.expect(key)
        self.forget(key for key, _ in refused)
        if not self._tables.splice(packed, refused, splice.pack()):
            for key, _ in packed:
                self._splices.drop(key)
            raise DatapathError(f"packets of {rows[0].match} and {rows[1].match} are not held")
        right, left = (self._records[key] for key, _ in packed)
        right.session = left.session = rows[0].session
        return right.has_made, left.has_made

    def rename(self, keys: Iterable[tuple[Hook, Flow]], session: int, name: int) -> None:
        for pair in keys:
            key = layout.pack_key(*pair)
            self._tables.rename(key, session, name)
            record = self._records.get(key)
            if record is not None and record.session == session:
                record.session = name

    def forget(self, keys: Iterable[bytes]) -> None:
        """These entries are about to be replaced or taken out: what is held goes by them first."""
        for key in keys:
            if key in self._records:
                self._split()
                self._drain(key)
                self._tables.run(key, do.FOLD | do.UNMARK, clear=do.ALL)
                self._records[key] = record = _Record(0, Toward.RIGHT)
                record.stage = 2

    @property
    def any(self) -> bool:
        """Whether :meth:`forget` has work at all."""
        return bool(self._records)

    # -- events -------------------------------------------------------------------------

    def filenos(self) -> tuple[int, int]:
        """Readable when :meth:`events` has something to tell or to do."""
        return self._bell, self._splitter.fileno()

    def events(self) -> list[Event]:
        """What is to be told now; also puts split packets back."""
        self._split()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        told = list(self._events)
        self._events.clear()
        return told

    def event(self, kind: int, session: int, toward: int, serial: int) -> None:
        """What a program has to say, from the ring buffer; of the hold or watch *serial*."""
        for key, record in list(self._records.items()):
            if (record.session, record.toward) != (session, toward):
                continue
            if kind == layout.EVENT_ACKED and serial == record.watch_serial:
                self._tell_acked(record)
            elif kind == layout.EVENT_COUNTED and serial == record.count_serial:
                self._tell_reached(record)
            elif kind == layout.EVENT_STRAY and record.held_from is None:
                self._drain(key)
            elif (
                kind == layout.EVENT_OVERFLOW
                and serial == record.hold_serial
                and record.held_from is not None
            ):
                self._split()
                self._drain(key)
                self._tell(HoldOverflow(session, record.toward))

    def _tell_acked(self, record: _Record) -> None:
        if record.watched:  # it is told once, however it was found out
            record.watched = False
            self._tell(Acked(record.session, record.toward))

    def _tell_reached(self, record: _Record) -> None:
        if record.awaited:
            record.awaited = False
            self._tell(Reached(record.session, record.toward))

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        os.eventfd_write(self._bell, 1)

    def tick(self) -> None:
        """To be called about once a second: take away records that are not needed any more."""
        now = time.monotonic()
        for key, record in list(self._records.items()):
            # A number of packets is not waited for: some may have been lost, and then none comes.
            busy = record.held_from is not None or record.watched
            if busy or now - record.since < _OLD:
                continue
            if record.stage == 0:
                self._tables.run(key, do.FOLD)
            elif record.stage == 1:
                self._tables.run(key, do.UNMARK, clear=do.ALL)
            else:
                self._tables.delete(key)
                del self._records[key]
                value = self._tables.flows.lookup(key)
                if value is None or not layout.is_spliced(value):
                    self._splices.drop(key)
            record.stage, record.since = record.stage + 1, now

    def close(self, *, keep: bool) -> None:
        """Let everything go that is held."""
        self._split()
        for key in self._records:
            self._drain(key)
            self._tables.run(key, clear=do.WATCH)
        self._splitter.close()
        os.close(self._bell)
        self._tables.close()
        self._device.close(keep=keep)

    # -- one entry ----------------------------------------------------------------------

    def _entries(self, keys: Iterable[tuple[Hook, Flow]]) -> dict[bytes, bytes]:
        keys = list(keys)
        packed = [layout.pack_key(*key) for key in keys]
        return dict(zip(packed, self._values(keys, packed), strict=True))

    def _values(self, keys: Iterable[tuple[Hook, Flow]], packed: list[bytes]) -> list[bytes]:
        """What is in the table under each of these keys, which are given in both forms."""
        values = []
        for (hook, flow), value in zip(keys, self._tables.flows.lookup_each(packed), strict=True):
            if value is None or not layout.session_of(value):
                raise DatapathError(f"there is no row for {flow} ({hook.name})")
            values.append(value)
        return values

    def _next_serial(self) -> int:
        self._serial = (self._serial + 1) & 0x7FFFFFFF
        return self._serial

    def _record_of(self, key: bytes, value: bytes) -> _Record:
        session, _, toward, _ = layout.fixed_of(value)
        return self._record(key, session, toward)

    def _record(self, key: bytes, session: int, toward: Toward) -> _Record:
        record = self._records.get(key)
        if record is None:
            self._tables.add(key)
            record = self._records[key] = _Record(session, toward)
        record.session, record.toward = session, toward
        record.stage, record.since = 0, time.monotonic()
        return record

    def _holds(self, key: bytes) -> bool:
        record = self._records.get(key)
        return record is not None and record.held_from is not None

    def _begin(self, record: _Record, key: bytes, *, substream: bool) -> None:
        until = (layout.now_ticks() + self._hold_time) & 0xFFFFFFFF
        if record.held_from is not None:
            if not substream and record.checkpoint is not None:
                self._tables.run(key, clear=do.SUBSTREAM)
                record.checkpoint = None
            return
        # Where packets have waited before, they would not do it again.
        queue, late = self._tables.address(key), self._tables.address(key)
        found = self._tables.run(key, do.QUEUE | do.LATE, queue=queue, late=late)
        self._tables.give_up(found.queue, found.late)
        record.held_from = found.queued
        record.hold_serial = serial = self._next_serial()
        if not substream or not found.has_seq:
            put, clear = do.HOLD, do.SUBSTREAM
            self._tables.run(key, do.MARK, put=put, clear=clear, until=until, serial=serial)
            return
        put, steps = do.HOLD | do.SUBSTREAM, do.CHECKPOINT | do.MARK
        first = self._tables.run(key, steps, put=put, until=until, serial=serial)
        # What met the entry before it was marked has been counted by now, and went on.
        found = self._tables.run(key, do.CHECKPOINT)
        if found.checkpoint != first.checkpoint and found.queued != record.held_from:
            # And something waits that may be before it: it came late.
            self._drain(key)
            self._begin(record, key, substream=True)
        else:
            record.checkpoint = found.checkpoint

    def _holding(self, key: bytes) -> Holding:
        return Holding(self._tables.run(key).packets, self._records[key].checkpoint)

    def _drain(self, key: bytes) -> int:
        """Let go what waits; how many packets had been held."""
        record = self._records[key]
        held_from, record.held_from = record.held_from, None
        record.checkpoint = None
        record.stage, record.since = 0, time.monotonic()
        found = self._tables.run(key)
        if found.state & do.HOLD or found.queued != found.settled:
            place = self._tables.place(key)
            self._device.let_go(place)
            found = self._until_all_have_left(key)
            self._device.forget(place)
        return 0 if held_from is None else found.queued - held_from

    def _until_all_have_left(self, key: bytes) -> Found:
        began, steps, put = time.monotonic(), do.SETTLE, 0
        while True:
            found = self._tables.run(key, steps, put=put)
            if not found.state & do.HOLD and found.queued == found.settled:
                return self._tables.run(key, clear=do.LET_GO)
            waited = time.monotonic() - began
            if waited > _LOST:
                self._tables.run(key, clear=do.HOLD | do.SUBSTREAM)
                steps |= do.SURELY | do.LOST
            elif waited > _PATIENCE:
                steps, put = steps | do.SURELY, do.LET_GO
            if found.released != found.queued:
                self._let_go_late(key)

    def _let_go_late(self, key: bytes) -> None:
        """Packets that came out before their turn may have it now."""
        late = self._tables.run(key, do.LATE, late=self._tables.address(key)).late
        self._device.let_go(late)
        self._device.forget(late)
        self._tables.give_up(late)

    # -- packets to be split ------------------------------------------------------------

    def _split(self) -> None:
        while True:
            try:
                data = self._splitter.recv(_FRAME)
            except BlockingIOError:
                return
            frame = split.parse(data)
            if frame is not None:
                if frame.key in self._records:
                    self._records[frame.key].has_made = True
                for part in self._parts(frame):
                    self._splitter.sendto(part.pack(), (self._device.name, _ETH_P_IP))

    def _parts(self, frame: split.Frame) -> Iterable[split.Frame]:
        """What becomes of a packet that lies across the checkpoint, or of the copy of one that
        waits and acknowledges something."""
        record = self._records.get(frame.key)
        checkpoint = None if record is None else self._as_it_comes(frame.key, record)
        if frame.is_copy:
            made = None if checkpoint is None else split.acknowledgement(frame)
            return () if made is None else (made,)
        if checkpoint is None or not split.lies_across(frame, checkpoint):
            return (frame,)  # nothing is to be split any more
        return split.split(frame, checkpoint) or ()

    def _as_it_comes(self, key: bytes, record: _Record) -> int | None:
        """The checkpoint in the numbers that packets have when they come."""
        packed = self._splices.get(key) if record.toward is Toward.LEFT else None
        if packed is None or record.checkpoint is None:
            return record.checkpoint
        return (record.checkpoint - Splice.unpack(packed).seq[Toward.LEFT]) & 0xFFFFFFFF


def _open_splitter(device: HoldDevice) -> socket.socket:
    """Hears what comes out at the device's other end, and puts frames in at this end."""
    splitter = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    splitter.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    splitter.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    splitter.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 << 20)
    # What is put back waits again, and counts until it goes: a burst for each session held.
    splitter.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _LIMIT_MOST * _FRAME)
    splitter.bind((device.peer, _ETH_P_ALL))
    splitter.setblocking(False)
    return splitter
