"""A datapath in memory: what a kernel would do, for tests of everything above it.

:class:`~m2m.datapath.fake_kernel.FakeKernel` is the part that stays when an agent goes, a
:class:`FakeDatapath` one agent's hold on it. A test plays the network::

    outcome = datapath.packet(Hook.OUT, flow, flags=Tcp.SYN)
    assert outcome.fate is Fate.HELD
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

import trio

from m2m.datapath import (
    Datapath,
    DatapathError,
    Event,
    Holding,
    Reason,
    Row,
    Verdict,
    check_notes,
)
from m2m.datapath.fake_kernel import FakeKernel
from m2m.policy.rules import PolicySet
from m2m.protocol.flow import Address, Flow, Proto
from m2m.protocol.translation import Action, Entry, Hook

__all__ = ["FakeDatapath"]


class FakeDatapath(Datapath):
    """One agent's hold on a :class:`FakeKernel`."""

    name = "fake"

    def __init__(self, kernel: FakeKernel | None = None) -> None:
        self.kernel = FakeKernel() if kernel is None else kernel
        self._closed = False
        self.packet = self.kernel.packet

    async def _step(self) -> None:
        """Every method is a checkpoint, and happens wholly after it."""
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise DatapathError("this datapath is closed; open another one")

    async def attach(self, ifindexes: Iterable[int]) -> None:
        await self._step()
        wanted = frozenset(ifindexes)
        known = self.kernel.interfaces
        if known is not None and (unknown := wanted - known):
            raise DatapathError(f"there is no interface with index {min(unknown)}")
        self.kernel.attached = wanted

    async def set_addresses(self, addresses: Iterable[Address]) -> None:
        await self._step()
        self.kernel.addresses = frozenset(addresses)

    async def load_policy(self, policy: PolicySet) -> None:
        await self._step()
        self.kernel.set_policy(policy)

    async def install(self, entries: Sequence[Entry]) -> None:
        await self._step()
        _check_hops(entries)
        self.kernel.install(entries)

    async def remove(self, keys: Iterable[tuple[Hook, Flow]]) -> None:
        await self._step()
        for key in keys:
            self.kernel.remove(key)

    async def redirect(self, entries: Sequence[Entry]) -> list[int]:
        await self._step()
        _check_hops(entries)
        return self.kernel.redirect(entries)

    async def hold(
        self, keys: Iterable[tuple[Hook, Flow]], *, substream: bool = False
    ) -> list[Holding]:
        await self._step()
        return self.kernel.hold(keys, substream=substream)

    async def resume(self, keys: Iterable[tuple[Hook, Flow]]) -> list[int]:
        await self._step()
        return self.kernel.resume(keys)

    async def watch_ack(self, keys: Iterable[tuple[Hook, Flow]], number: int) -> None:
        await self._step()
        self.kernel.watch_ack(keys, number)

    async def watch_count(self, keys: Iterable[tuple[Hook, Flow]], number: int) -> None:
        await self._step()
        self.kernel.watch_count(keys, number)

    async def inherit(self, old: tuple[Hook, Flow], new: tuple[Hook, Flow]) -> None:
        await self._step()
        self.kernel.inherit(old, new)

    async def splice(
        self, rows: tuple[Entry, Entry], silent: tuple[tuple[Hook, Flow], tuple[Hook, Flow]]
    ) -> tuple[bool, bool]:
        await self._step()
        _check_hops(rows)
        return self.kernel.splice(rows, silent)

    async def rename(self, keys: Iterable[tuple[Hook, Flow]], session: int, name: int) -> None:
        await self._step()
        self.kernel.rename(keys, session, name)

    async def rows(self, keys: Iterable[tuple[Hook, Flow]]) -> list[Row]:
        await self._step()
        return self.kernel.rows(keys)

    async def idle(self, keys: Iterable[tuple[Hook, Flow]]) -> list[float | None]:
        await self._step()
        return self.kernel.idle(keys)

    async def dump(self) -> AsyncIterator[Row]:
        await self._step()
        for row in self.kernel.rows():
            yield row

    async def keep(self, notes: Mapping[int, bytes]) -> None:
        check_notes(notes)
        await self._step()
        self.kernel.keep(notes)

    async def forget(self, sessions: Iterable[int]) -> None:
        await self._step()
        for session in sessions:
            self.kernel.notes.pop(session, None)

    async def kept(self) -> dict[int, bytes]:
        await self._step()
        return dict(self.kernel.notes)

    async def release(self, flow: Flow, verdict: Verdict) -> None:
        await self._step()
        self.kernel.release(flow, verdict)

    async def events(self) -> AsyncIterator[Event]:
        await self._step()
        self.kernel.agent_present = True
        try:
            while not self._closed:
                event = self.kernel.next_event()
                if event is None:
                    await self.kernel.wait()
                else:
                    yield event
        finally:
            if not self._closed:
                self.kernel.agent_gone()

    async def reasons(self) -> Mapping[Reason, int]:
        await self._step()
        return {reason: self.kernel.reasons[reason] for reason in Reason}

    async def close(self, *, keep: bool) -> None:
        await trio.lowlevel.checkpoint()
        if self._closed:
            return
        self._closed = True
        self.kernel.agent_gone()
        self.kernel.wake()
        if not keep:
            self.kernel.clear()


def _check_hops(entries: Iterable[Entry]) -> None:
    for entry in entries:
        if entry.action is Action.SEND and entry.hop is None:
            raise DatapathError(f"entry for {entry.match}: SEND needs a next hop")
        if entry.splice is not None and entry.match.proto != Proto.TCP:
            raise DatapathError(f"the row for {entry.match} cannot have a splice: only TCP's can")
