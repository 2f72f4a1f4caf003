"""``python -m nf_adapters.skb.seen_by --queue N``: a header line for the first request of each HTTP
connection, after which the function leaves.

An example of a function that changes the length of a stream (``docs/inline-nfs.md``). What is
queued for it are both directions of connections, from their SYN on. It ends by SIGTERM or SIGINT,
and tells what it has done.
"""

from __future__ import annotations

import argparse
import re
import struct
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Final

import sdnotify
import structlog
from netfilterqueue import Packet

from m2m import logs
from m2m.errors import M2MError
from m2m.protocol.flow import V4_PREFIX, Flow
from nf_adapters.skb.insertion import Insertion
from nf_adapters.skb.leaving import Stays, leave
from nf_adapters.skb.packet import ACK, SYN, TCP, Layout, layout
from nf_adapters.skb.serving import serve

__all__ = ["LINE", "SeenBy"]

_log = structlog.get_logger()

LINE: Final = b"X-Seen-By: m2m\r\n"

_REQUEST = re.compile(rb"[A-Z]+ \S+ HTTP/1\.[01]\r\n")
_LARGEST = 1280  # octets of a packet that a line is put into: no link needs them to be fewer
_MOST = 10_000  # connections that have asked nothing yet; the oldest of more gets no line


class SeenBy:
    """Changes packets; *asks* to leave each connection whose server has acknowledged the line."""

    def __init__(self, asks: Callable[[Flow], None]) -> None:
        self.counts = Counter(inserted=0, left=0)
        self._asks = asks
        self._begun: dict[Flow, int] = {}  # the number of a client's first octet
        self._changed: dict[Flow, Insertion] = {}

    def carry(self, packet: bytes) -> bytes:
        """The packet as it goes on."""
        at = layout(packet)
        if at is None or packet[9] != TCP:
            return packet
        flow, flags = _flow_of(packet, at), packet[at.transport + 13]
        if flags & (SYN | ACK) == SYN:
            (number,) = struct.unpack_from("!I", packet, at.transport + 4)
            self._begun.pop(flow, None)  # it is the youngest now
            if len(self._begun) == _MOST:
                del self._begun[next(iter(self._begun))]
            self._begun[flow] = (number + 1) % (1 << 32)
            self._changed.pop(flow, None)
            return packet
        if flow in self._begun and len(packet) > at.payload:
            self._look_at_first(flow, packet, at)
        insertion = self._changed.get(flow)
        if insertion is not None:
            return insertion.onward(packet, at)
        insertion = self._changed.get(flow.reverse())
        if insertion is None:
            return packet
        before = insertion.settled
        made = insertion.back(packet, at)
        if insertion.settled and not before:
            self._asks(flow.reverse())
        return made

    def _look_at_first(self, flow: Flow, packet: bytes, at: Layout) -> None:
        """A client has said something; what comes first decides."""
        (seq,) = struct.unpack_from("!I", packet, at.transport + 4)
        if self._begun.pop(flow) != seq or len(packet) + len(LINE) > _LARGEST:
            return
        found = _REQUEST.match(packet[at.payload :])
        if found is not None:
            self._changed[flow] = Insertion((seq + found.end()) % (1 << 32), LINE)
            self.counts["inserted"] += 1

    def has_left(self, flow: Flow) -> None:
        """No packet of it comes any more."""
        self._changed.pop(flow, None)
        self.counts["left"] += 1

    def judge(self, packet: Packet) -> None:
        """Let it go on."""
        before = packet.get_payload()
        made = self.carry(before)
        if made is not before:
            packet.set_payload(made)
        packet.accept()


def _flow_of(packet: bytes, at: Layout) -> Flow:
    source, destination = (V4_PREFIX + packet[place : place + 4] for place in (12, 16))
    sport, dport = struct.unpack_from("!HH", packet, at.transport)
    return Flow(TCP, source, sport, destination, dport)


def main() -> int:
    """Serve the queue until a signal comes; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m nf_adapters.skb.seen_by", description=__doc__)
    parser.add_argument("--queue", type=int, required=True, help="netfilter queue, 0 to 32767")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="where sockets of agents are")
    parser.add_argument("--agent", metavar="NAME", help="which agent (default: the only one here)")
    args = parser.parse_args()
    logs.configure()

    notifier = sdnotify.SystemdNotifier()

    def go(flow: Flow) -> None:
        """Its packets are waited for meanwhile: not in the thread that gives verdicts."""
        try:
            if leave(flow, (len(LINE), 0), agent=args.agent, run_dir=args.run_dir):
                seen_by.has_left(flow)
                notifier.notify(f"STATUS={seen_by.counts['left']} sessions left")
        except Stays as error:
            _log.warning("stays in a session", flow=str(flow), why=str(error))

    seen_by = SeenBy(lambda flow: Thread(target=go, args=(flow,), daemon=True).start())
    serve(args.queue, seen_by.judge)
    _log.info("ended", queue=args.queue, **seen_by.counts)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except M2MError as error:
        sys.exit(str(error))
