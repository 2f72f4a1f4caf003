"""The conntrack entries of a stateful Linux firewall (nftables or iptables).

At an inline middlebox the firewall sees the supersession, so that is what its entries are of.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Self

import trio

from m2m.protocol.flow import Flow, Proto, is_ipv4
from nf_adapters.state import (
    LONGEST_LOCK,
    BadState,
    Immovable,
    NoState,
    NotLocked,
    StateAdapter,
    StateError,
)
from nf_adapters.state.ctnetlink import AlreadyThere, Conntrack
from nf_adapters.state.entry import KIND, Entry, decode, encode
from nf_adapters.state.lock import Locks

_SESSIONS = "those are TCP or UDP over IPv4 in this version"


class _Locked(NamedTuple):
    until: float  # in Trio's time
    state: bytes


class ConntrackState(StateAdapter):
    """The entries of the network namespace in which it was opened.

    *zone* is the conntrack zone in which the firewall tracks sessions, the same at old and new
    instance; 0 unless its rules say otherwise.
    """

    kind: ClassVar[str] = KIND

    def __init__(self, table: Conntrack, locks: Locks, zone: int) -> None:
        self._table = table
        self._locks = locks
        self._zone = zone
        self._locked: dict[Flow, _Locked] = {}

    @classmethod
    async def open(cls, *, zone: int = 0) -> Self:
        """Raises :exc:`~m2m.errors.UnsupportedHost`."""
        table = Conntrack()
        try:
            locks = await Locks.open()
        except BaseException:
            table.close()
            raise
        return cls(table, locks, zone)

    async def quiesce(self, flow: Flow) -> None:
        await trio.lowlevel.checkpoint()
        if not _can_have_entry(flow):
            raise NoState(f"{flow} is no session: {_SESSIONS}")
        with trio.CancelScope(shield=True):
            until = await self._locks.add(flow)
            try:
                self._locked[flow] = _Locked(until, encode(self._find(flow)))
            except StateError:
                await self._locks.remove(flow)
                raise

    async def export(self, flow: Flow) -> bytes:
        await trio.lowlevel.checkpoint()
        locked = self._locked.get(flow)
        if locked is None or trio.current_time() >= locked.until:
            raise NotLocked(
                f"the state of {flow} is not locked; quiesce it first, at most"
                f" {LONGEST_LOCK:.0f} s before"
            )
        return locked.state

    async def import_(self, flow: Flow, state: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if not _can_have_entry(flow):
            raise BadState(f"{flow} is no session: {_SESSIONS}")
        entry = decode(state, flow)
        if entry.zone != self._zone:
            raise BadState(
                f"the state of {flow} is of conntrack zone {entry.zone}, and here the firewall"
                f" tracks in zone {self._zone}; give both hosts the same"
            )
        try:
            self._create(entry)
        except AlreadyThere:  # from a time when the session came this way before
            self._replace(entry)

    async def release(self, flow: Flow, *, keep: bool) -> None:
        await trio.lowlevel.checkpoint()
        if not _can_have_entry(flow):
            return
        self._locked.pop(flow, None)
        try:
            if not keep:
                self._table.delete(flow, self._zone)
        finally:
            with trio.CancelScope(shield=True):
                await self._locks.remove(flow)

    async def close(self) -> None:
        self._locked.clear()
        self._table.close()
        await self._locks.close()

    def _find(self, flow: Flow) -> Entry:
        found = self._table.get(flow, self._zone)
        if found is None:
            raise NoState(
                f"the firewall has no entry for {flow} in zone {self._zone}: it saw no packet of"
                " it, or none for longer than its timeout"
            )
        if found.obstacle is None and found.entry.zone != self._zone:
            found = found._replace(obstacle="its zone is that of one direction only")
        if found.obstacle is not None:
            raise Immovable(f"the entry of {flow} cannot be moved: {found.obstacle}")
        return found.entry

    def _replace(self, entry: Entry) -> None:
        former = self._find(entry.flow)
        self._table.delete(entry.flow, self._zone)
        try:
            self._create(entry)
        except StateError:
            self._table.create(former)
            raise

    def _create(self, entry: Entry) -> None:
        self._table.create(entry)
        if entry.labels:
            made = self._table.get(entry.flow, self._zone)
            if made is None or made.entry.labels != entry.labels:
                self._table.delete(entry.flow, self._zone)
                raise StateError(
                    f"the labels of {entry.flow} are lost here: no rule of this firewall uses"
                    " `ct label`; load the rules of the old one"
                )


def _can_have_entry(flow: Flow) -> bool:
    return is_ipv4(flow.src) and is_ipv4(flow.dst) and flow.proto in (Proto.TCP, Proto.UDP)
