"""Packets as the datapath in memory sees them, and those that wait while their chain changes."""

from __future__ import annotations

from enum import IntFlag
from typing import NamedTuple

from m2m.datapath import Holding
from m2m.datapath._core import seq_after, seq_end
from m2m.protocol.flow import Flow, Proto
from m2m.protocol.splice import Splice
from m2m.protocol.translation import Hook, Toward

__all__ = ["Packet", "Tcp", "Waiting"]


class Tcp(IntFlag):
    """Flags of a TCP header."""

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    ACK = 0x10


class Packet(NamedTuple):
    """One packet at a hook; *length* is its IP total length."""

    hook: Hook
    flow: Flow
    payload: bytes
    length: int
    seq: int
    ack: int
    flags: Tcp
    ttl: int

    @property
    def opens(self) -> bool:
        """Whether a first packet looks like this."""
        is_udp = self.flow.proto == Proto.UDP
        return is_udp or self.flags & (Tcp.SYN | Tcp.ACK) == Tcp.SYN

    @property
    def end(self) -> int:
        """One past the last sequence number it occupies."""
        syn, fin = bool(self.flags & Tcp.SYN), bool(self.flags & Tcp.FIN)
        return seq_end(self.seq, len(self.payload), syn, fin)

    @property
    def only_acknowledges(self) -> bool:
        return not self.payload and not self.flags & (Tcp.SYN | Tcp.FIN | Tcp.RST)

    def carried(self, splice: Splice, toward: Toward) -> Packet:
        """Itself on the other side of a splice."""
        seq, ack = self.seq + splice.seq[toward], self.ack - splice.seq[1 - toward]
        return self._replace(seq=seq & 0xFFFFFFFF, ack=ack & 0xFFFFFFFF)

    def before(self, number: int) -> Packet:
        """Its part in front of a sequence number."""
        size = (number - self.seq) & 0xFFFFFFFF
        return self._replace(
            payload=self.payload[:size],
            length=self.length - len(self.payload) + size,
            flags=self.flags & ~Tcp.FIN,
        )

    def from_(self, number: int) -> Packet:
        """Its part behind."""
        size = (number - self.seq) & 0xFFFFFFFF
        return self._replace(
            payload=self.payload[size:], length=self.length - size, seq=number & 0xFFFFFFFF
        )


class Waiting:
    """The packets of one entry that wait, and which others will."""

    def __init__(self, until: float) -> None:
        self.packets: list[Packet] = []
        self.checkpoint: int | None = None  # of a substream; None: everything waits
        self.until = until

    def cover(self, checkpoint: int | None) -> None:
        """Hold what is beyond *checkpoint*, or everything."""
        self.checkpoint = checkpoint

    def state(self, packets: int) -> Holding:
        return Holding(packets, self.checkpoint)

    def sort(self, packet: Packet, acked: int | None) -> tuple[Packet | None, Packet | None]:
        """What of *packet* goes on at once and what waits; *acked* is the largest number that has
        been acknowledged in this direction."""
        if self.checkpoint is None:
            return None, packet
        if not seq_after(packet.end, self.checkpoint):
            return packet, None
        if packet.only_acknowledges:  # what is before its number does not pass with it
            return packet._replace(seq=self.checkpoint), None
        if seq_after(self.checkpoint, packet.seq):
            return packet.before(self.checkpoint), packet.from_(self.checkpoint)
        news = packet.flags & Tcp.ACK and (acked is None or seq_after(packet.ack, acked))
        if not news:
            return None, packet
        acknowledgement = packet._replace(
            payload=b"", length=packet.length - len(packet.payload), seq=self.checkpoint,
            flags=Tcp.ACK,
        )  # fmt: skip
        return acknowledgement, packet
