"""A datapath on a test bench: one host between two neighbours.

::

    left 10.9.1.2 ─────── 10.9.1.1 host 10.9.2.1 ─────── 10.9.2.2 right
    (and 203.0.113.0/24 behind it)                (and 198.51.100.0/24 behind it)

A :class:`Rig` lets packets enter the host or leave it and tells what came out, so that every
datapath can be held to the same tests. Packets are told apart by their payload.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import trio

from m2m.agent.names import NamingDatapath
from m2m.datapath import Datapath, Event, Limits
from m2m.datapath.fake import FakeDatapath
from m2m.datapath.fake_kernel import FakeKernel, Fate, Outcome
from m2m.datapath.fake_packets import Tcp
from m2m.protocol.flow import Address, Flow, parse_address
from m2m.protocol.translation import Hook, NextHop
from nf_adapters.pcap import Mapping

LEFT, HOST_LEFT = parse_address("10.9.1.2"), parse_address("10.9.1.1")
HOST_RIGHT, RIGHT = parse_address("10.9.2.1"), parse_address("10.9.2.2")
CLIENT, SERVER = parse_address("203.0.113.5"), parse_address("198.51.100.7")
PORTS = range(61000, 65536)
PATIENCE = 10  # s until a test gives up on something that must happen


class Place(Enum):
    """Where a packet came out."""

    STACK = "stack"  # at the host's own sockets
    WIRE = "wire"  # at a neighbour


class Seen(NamedTuple):
    """A packet that came out: where, and the flow its headers showed."""

    place: Place
    flow: Flow
    payload: bytes


class Rig(ABC):
    """One host with one datapath, opened, attached to both its links."""

    datapath: Datapath
    to_left: NextHop
    to_right: NextHop

    @abstractmethod
    async def packet(
        self, hook: Hook, flow: Flow, payload: bytes = b"", *, seq: int = 0, ack: int = 0,
        flags: Tcp = Tcp.ACK, ttl: int = 64,
    ) -> None:  # fmt: skip
        """Let one packet enter the host (from the left or the right, as its source or its
        destination says) or leave it."""

    @abstractmethod
    async def seen(self) -> list[Seen]:
        """What came out since the last call, in order at each place, once nothing is under way."""

    @abstractmethod
    async def numbers(self) -> list[tuple[int, int]]:
        """The same, of TCP alone: sequence and acknowledgement numbers."""

    @abstractmethod
    async def open(self) -> None:
        """Open the datapath as a new agent would: addresses set, both links attached."""

    @abstractmethod
    def stops_marked(self) -> AbstractContextManager[None]:
        """Meanwhile the host drops what is marked for a proxy."""

    @abstractmethod
    async def remove(self) -> None:
        """End of the test: nothing may be left."""

    @abstractmethod
    def links(self) -> list[int]:
        """Indexes of the host's interfaces: left, right."""

    async def close(self, *, keep: bool) -> None:
        await self.datapath.close(keep=keep)

    async def reopen(self, *, keep: bool) -> None:
        await self.close(keep=keep)
        await self.open()


class Listener:
    """The agent's ear: takes the datapath's events as they come."""

    def __init__(self) -> None:
        self._send, self._events = trio.open_memory_channel[Event](1000)

    async def run(self, datapath: Datapath) -> None:
        async for event in datapath.events():
            await self._send.send(event)

    async def next(self) -> Event:
        with trio.fail_after(PATIENCE):
            return await self._events.receive()

    def waiting(self) -> int:
        """How many events have come that :meth:`next` has not returned."""
        return self._events.statistics().current_buffer_used


class FakeRig(Rig):
    """In memory: what the kernel would let out is read off the outcomes."""

    to_left = NextHop(1, LEFT, 1500)
    to_right = NextHop(2, RIGHT, 1500)

    def __init__(self, limits: Limits) -> None:
        self._kernel = FakeKernel(limits, interfaces=frozenset(self.links()), ports=PORTS)
        self._out: list[Seen] = []
        self._numbers: list[tuple[int, int]] = []
        self._stops_marked = False

    def links(self) -> list[int]:
        return [1, 2]

    async def open(self) -> None:
        self.datapath = FakeDatapath(self._kernel)
        await self.datapath.set_addresses([HOST_LEFT, HOST_RIGHT])
        await self.datapath.attach(self.links())

    async def packet(
        self, hook: Hook, flow: Flow, payload: bytes = b"", *, seq: int = 0, ack: int = 0,
        flags: Tcp = Tcp.ACK, ttl: int = 64,
    ) -> None:  # fmt: skip
        self._collect_released()
        outcome = self._kernel.packet(
            hook, flow, payload=payload, seq=seq, ack=ack, flags=flags, ttl=ttl
        )
        if outcome.marked and self._stops_marked:
            return
        if outcome.fate is Fate.DELIVERED and outcome.flow.dst not in (HOST_LEFT, HOST_RIGHT):
            # an inline NF: the host's stack forwards it
            await self.packet(
                Hook.OUT, outcome.flow, payload, seq=seq, ack=ack, flags=flags, ttl=ttl - 1
            )
        else:
            self._note(hook, outcome)

    def _note(self, hook: Hook, outcome: Outcome) -> None:
        if outcome.fate in (Fate.HELD, Fate.DROPPED):
            return
        local: set[Address] = {HOST_LEFT, HOST_RIGHT}
        at_stack = hook is Hook.IN and outcome.fate is not Fate.SENT and outcome.flow.dst in local
        place = Place.STACK if at_stack else Place.WIRE
        self._out.append(Seen(place, outcome.flow, outcome.payload))
        self._numbers.append(outcome.numbers)

    def _collect_released(self) -> None:
        released, self._kernel.released = self._kernel.released, []
        for outcome in released:
            delivered = outcome.fate is Fate.DELIVERED
            self._note(Hook.IN if delivered else Hook.OUT, outcome)

    @contextmanager
    def stops_marked(self) -> Iterator[None]:
        self._stops_marked = True
        yield
        self._stops_marked = False

    async def seen(self) -> list[Seen]:
        await self.numbers()
        out, self._out = self._out, []
        return out

    async def numbers(self) -> list[tuple[int, int]]:
        self._collect_released()
        numbers, self._numbers = self._numbers, []
        return numbers

    async def remove(self) -> None:
        await self.datapath.close(keep=False)


class NamingRig(FakeRig):
    """The same behind the mapping that captures use, as an agent has it."""

    async def open(self) -> None:
        await super().open()
        self._directory = tempfile.TemporaryDirectory(prefix="m2m-rig-")
        mapping = Mapping(Path(self._directory.name) / "rig.map", 100)
        self.datapath = NamingDatapath(self.datapath, mapping)

    async def remove(self) -> None:
        await super().remove()
        self._directory.cleanup()
