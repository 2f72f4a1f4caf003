"""A world in which a network function has changed the length of the streams that pass it.

All numbers that a packet shows are looked at where it is delivered: whichever way it has gone, and
whatever has become of the chain meanwhile, they have to be the receiver's.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from m2m.protocol.events import RequestWanted
from m2m.protocol.splice import Splice
from m2m.protocol.translation import Entry, Hook, Toward
from m2m.protocol.update import Mode
from m2m.protocol.wire import Hop
from tests.support.simulation import Fate
from tests.support.traffic import WRAP, BusyKernel, BusyWorld, Packet

LENGTHENS: Final = 2
"""The host whose function it is; inline."""


@dataclass
class _Counted(Packet):
    """Beside the numbers that it shows, the same as the senders of both streams count."""

    said: tuple[int, int, int | None] = (0, 0, None)


class LengtheningKernel(BusyKernel):
    """Of one host, what is between rows adds to numbers."""

    @property
    def world(self) -> LengtheningWorld:
        assert isinstance(self.host.world, LengtheningWorld)
        return self.host.world

    def _through_nf(self, entry: Entry, packet: Packet) -> None:
        if self.host.index == LENGTHENS:
            packet.count_on(self.world.sums)
        super()._through_nf(entry, packet)


class LengtheningWorld(BusyWorld):
    """Its function has added *sums* to the streams to right and left, and adds no more."""

    kernel = LengtheningKernel

    def __init__(
        self,
        middleboxes: int,
        rng: random.Random,
        sums: tuple[int, int],
        fate: Callable[[], Fate] | None = None,
    ) -> None:
        self.sums = sums
        super().__init__(middleboxes, rng, fate=fate)

    def ask_to_leave(self, mode: Mode = Mode.LF, hops: tuple[Hop, ...] = ()) -> int:
        """The function's host wants to be taken out, or to be replaced by *hops*."""
        number, added = next(self.change_numbers), Splice.of_sums(*self.sums)
        wanted = RequestWanted(self.session, number, mode, None, (), None, hops, added)
        self.host(LENGTHENS).feed(wanted)
        return number

    def _send(self, toward: Toward, number: int | None, seq: int, end: int) -> None:
        back = Toward(1 - toward)
        flow = self.conversation if toward is Toward.RIGHT else self.conversation.reverse()
        said = seq, end, self._received[back]
        packet = _Counted(flow, toward, number, *said, said=said)
        assert packet.ack is not None
        packet.ack = (packet.ack + self.sums[back]) % WRAP  # as it has come
        if number is not None and number >= 0:
            self.sent[toward].append(packet)
        host = self.client if toward is Toward.RIGHT else self.server
        host.kernel.packet(Hook.OUT, packet)

    def delivered(self, packet: Packet) -> None:
        assert isinstance(packet, _Counted)
        added = self.sums[packet.toward]
        packet.seq, packet.end = (packet.seq - added) % WRAP, (packet.end - added) % WRAP
        seq, end, ack = packet.said
        # A part of a segment that was split, or an acknowledgement ahead of it, has one of them.
        assert packet.seq == seq or packet.end == end, f"wrong numbers: {packet}"
        assert (packet.end - seq) % WRAP <= (end - seq) % WRAP, f"wrong numbers: {packet}"
        assert packet.ack == ack, f"a wrong acknowledgement: {packet}"
        super().delivered(packet)
