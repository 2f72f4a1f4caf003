"""What captures need to show supersessions: the mapping of this host's tuples, kept with its rows.

Every row by which packets of a session come in names a tuple; the packets that leave by the same
leg have its reverse. So the mapping follows from what is installed and removed, however that came
about: set-up, change, move, end. A tuple is named before its row is there, so that a session's
first packet is captured by its name too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence

import structlog
import trio

from m2m.datapath import Datapath, Event, Holding, Reason, Row, Verdict
from m2m.policy.rules import PolicySet
from m2m.protocol.flow import Address, Flow, is_ipv4
from m2m.protocol.translation import Entry, Hook, Position, Toward
from nf_adapters import pcap

__all__ = ["NamingDatapath"]

_log = structlog.get_logger()

_GRACE = 15.0  # s for which a tuple that is over keeps its name, at least; at most twice that
_PIECES = 15  # of the table, swept one at a time


class NamingDatapath(Datapath):
    """Another datapath, and the mapping of what is in it."""

    def __init__(self, datapath: Datapath, mapping: pcap.Mapping) -> None:
        self._datapath = datapath
        self._table = mapping.table
        self._refused = self._table.refused
        self.name = datapath.name  # type: ignore[misc]  # of the class, elsewhere
        self.splices = datapath.splices  # type: ignore[misc]

    def begin(self) -> None:
        """What a predecessor has left in the mapping stands until :meth:`taken_over`."""
        self._table.take_over()

    def taken_over(self) -> None:
        """All sessions of the kernel's have been read (:meth:`dump`): what was not among them is
        over."""
        self._table.taken_over()

    async def forget_names(self) -> None:
        """Tuples that are over are forgotten after a while, for ever."""
        piece = -(-len(self._table) // _PIECES)
        while True:
            await trio.sleep(_GRACE / _PIECES)
            self._table.sweep(piece)
            if self._table.refused != self._refused:
                _log.warning(
                    "no room in the mapping: captures show subsessions; give --sessions a "
                    "larger number",
                    tuples=self._table.refused - self._refused,
                )
                self._refused = self._table.refused

    # -- what changes the mapping -------------------------------------------------------

    async def install(self, entries: Sequence[Entry]) -> None:
        added = self._publish(entries)
        try:
            await self._datapath.install(entries)
        except BaseException:
            for flow in added:
                self._table.end(flow)
            raise

    async def remove(self, keys: Iterable[tuple[Hook, Flow]]) -> None:
        gone = list(keys)
        await self._datapath.remove(gone)
        for hook, flow in gone:
            if hook is Hook.IN and is_ipv4(flow.src):
                self._table.end(flow)
                self._table.end(flow.reverse())

    async def dump(self) -> AsyncIterator[Row]:
        async for row in self._datapath.dump():
            self._publish((row.entry,))
            yield row

    def _publish(self, entries: Iterable[Entry]) -> list[Flow]:
        """The tuples that had no such name before."""
        moment = pcap.now()
        return [
            flow
            for flow, name, again in _names(entries)
            if self._table.publish(flow, name, again, moment) == 1
        ]

    # -- what does not ------------------------------------------------------------------

    async def attach(self, ifindexes: Iterable[int]) -> None:
        await self._datapath.attach(ifindexes)

    async def set_addresses(self, addresses: Iterable[Address]) -> None:
        await self._datapath.set_addresses(addresses)

    async def load_policy(self, policy: PolicySet) -> None:
        await self._datapath.load_policy(policy)

    async def redirect(self, entries: Sequence[Entry]) -> list[int]:
        return await self._datapath.redirect(entries)

    async def hold(
        self, keys: Iterable[tuple[Hook, Flow]], *, substream: bool = False
    ) -> list[Holding]:
        return await self._datapath.hold(keys, substream=substream)

    async def resume(self, keys: Iterable[tuple[Hook, Flow]]) -> list[int]:
        return await self._datapath.resume(keys)

    async def watch_ack(self, keys: Iterable[tuple[Hook, Flow]], number: int) -> None:
        await self._datapath.watch_ack(keys, number)

    async def watch_count(self, keys: Iterable[tuple[Hook, Flow]], number: int) -> None:
        await self._datapath.watch_count(keys, number)

    async def inherit(self, old: tuple[Hook, Flow], new: tuple[Hook, Flow]) -> None:
        await self._datapath.inherit(old, new)

    async def splice(
        self, rows: tuple[Entry, Entry], silent: tuple[tuple[Hook, Flow], tuple[Hook, Flow]]
    ) -> tuple[bool, bool]:
        return await self._datapath.splice(rows, silent)

    async def rename(self, keys: Iterable[tuple[Hook, Flow]], session: int, name: int) -> None:
        await self._datapath.rename(keys, session, name)

    async def rows(self, keys: Iterable[tuple[Hook, Flow]]) -> list[Row]:
        return await self._datapath.rows(keys)

    async def idle(self, keys: Iterable[tuple[Hook, Flow]]) -> list[float | None]:
        return await self._datapath.idle(keys)

    async def keep(self, notes: Mapping[int, bytes]) -> None:
        await self._datapath.keep(notes)

    async def forget(self, sessions: Iterable[int]) -> None:
        await self._datapath.forget(sessions)

    async def kept(self) -> dict[int, bytes]:
        return await self._datapath.kept()

    async def release(self, flow: Flow, verdict: Verdict) -> None:
        await self._datapath.release(flow, verdict)

    def events(self) -> AsyncIterator[Event]:
        return self._datapath.events()

    async def reasons(self) -> Mapping[Reason, int]:
        return await self._datapath.reasons()

    async def close(self, *, keep: bool) -> None:
        await self._datapath.close(keep=keep)


def _names(entries: Iterable[Entry]) -> Iterator[tuple[Flow, Flow, bool]]:
    """Wire tuple, supersession in the same direction, and whether this host has received such
    packets as another tuple before it sends them so."""
    for entry in entries:
        if entry.hook is not Hook.IN or not entry.session or not is_ipv4(entry.match.src):
            continue
        middle = entry.position in (Position.TAP, Position.INLINE)
        name = entry.supersession
        if entry.toward is Toward.LEFT:
            name = name.reverse()
        yield entry.match, name, False
        yield entry.match.reverse(), name.reverse(), middle
