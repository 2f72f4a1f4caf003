"""Bytes over TCP as fast as they go, each of them checked where it arrives.

Where the processor is emulated they go at 100 Mbit/s, all connections together.

``python -m m2m.lab.traffic.bulk serve PORT`` serves until it is killed.
``python -m m2m.lab.traffic.bulk send ADDRESS PORT [--seconds S] [--flows N]
[--ways up|down|both]`` keeps N connections busy, from the client to the server (up), back (down),
or in both directions at once, for S seconds or until SIGTERM. Then it prints a :class:`Report` as
JSON.
"""

from __future__ import annotations

import argparse
import math
import selectors
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec

from m2m.lab.pace import SLOWNESS
from m2m.lab.traffic import blocks, tcp_info
from m2m.lab.traffic.blocks import Kind
from m2m.lab.traffic.ending import asked_to_end

_LOOK = 0.1  # s between two looks at whether to end
_PACE = 125e6 / SLOWNESS if SLOWNESS > 1 else 0  # bytes/s of all flows; 0: as fast as they go
_SO_MAX_PACING_RATE = 47  # asm-generic/socket.h
_QUIET = 30.0  # s without a byte, after which a transfer has failed


class Way(msgspec.Struct):
    """What arrived in one direction, in all connections together."""

    bytes: int = 0
    wrong: int = 0  # bytes that differ from what was sent
    stall: float = 0.0  # s, the longest that a connection waited for its next bytes
    retransmitted: int = 0  # segments that the sender's kernels sent again
    unneeded: int = 0  # of those, how many had arrived already
    out_of_order: int = 0  # packets that the receivers' kernels saw behind a gap

    def add(self, other: Way) -> None:
        """Count another connection in."""
        self.bytes += other.bytes
        self.wrong += other.wrong
        self.stall = max(self.stall, other.stall)
        self.retransmitted += other.retransmitted
        self.unneeded += other.unneeded
        self.out_of_order += other.out_of_order


class Report(msgspec.Struct, tag="bulk"):
    """One run of ``send``. A direction that was not asked for is None."""

    flows: int
    seconds: float
    up: Way | None
    down: Way | None


class _Hello(msgspec.Struct):
    down: bool  # the server sends data as well,
    pace: int  # and not more than so many bytes/s; 0: as fast as it goes


class _Verdict(msgspec.Struct):
    """What the server says at its end."""

    received: Way
    info: tcp_info.TcpInfo


class Progress(msgspec.Struct):
    """How far one end of a connection is: what it goes on from elsewhere."""

    flow: int
    sending: bool
    received: Way
    ended: bool
    out: bytes  # the rest of the block that is being sent
    last: bytes
    numbers: tuple[int, int]  # of the next blocks of data, what is sent and what comes
    come: bytes  # the beginning of the block that is coming


class End:
    """One end of a connection: sends blocks while it is told to, and checks those that come."""

    def __init__(self, sock: socket.socket, flow: int, first: bytes) -> None:
        self.sock = sock
        self.flow = flow
        self.sending = False  # data, without an end
        self.received = Way()
        self.ended = False  # nothing comes any more but the peer's close
        self.heard = b""  # what the peer's last block of another kind than data said
        self._out = memoryview(first)
        self._last = b""
        self._numbers_out = self._numbers_in = 0
        self._in = bytearray(blocks.SIZE)
        self._filled = 0
        self._since = time.monotonic()

    @classmethod
    def resumed(cls, sock: socket.socket, progress: Progress) -> End:
        """The end whose :attr:`progress` this was, with another socket."""
        end = cls(sock, progress.flow, progress.out)
        end.sending, end.received, end.ended = progress.sending, progress.received, progress.ended
        end._last = progress.last
        end._numbers_out, end._numbers_in = progress.numbers
        end._filled = len(progress.come)
        end._in[: end._filled] = progress.come
        return end

    @property
    def progress(self) -> Progress:
        """To go on from elsewhere."""
        return Progress(
            self.flow, self.sending, self.received, self.ended, bytes(self._out), self._last,
            (self._numbers_out, self._numbers_in), bytes(self._in[: self._filled]),
        )  # fmt: skip

    def pace(self, rate: int) -> None:
        """Send no more than *rate* bytes/s; 0: as fast as it goes."""
        if rate:
            self.sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, rate)

    def finish(self, last: bytes) -> None:
        """Send no more data, and *last* after what has begun."""
        self.sending = False
        self._last = last

    @property
    def wants_to_write(self) -> bool:
        return bool(self._out or self.sending or self._last)

    def write(self) -> None:
        """Send what the socket takes of one block."""
        if not self._out and self.sending:
            self._out = memoryview(blocks.data(self.flow, self._numbers_out))
            self._numbers_out += 1
        elif not self._out:
            self._out, self._last = memoryview(self._last), b""
        with suppress(BlockingIOError):
            self._out = self._out[self.sock.send(self._out) :]

    def read(self) -> int | None:
        """Take what has come; the kind of a block other than data, once it is whole.

        Raises :exc:`ConnectionError` when the peer ends in mid-stream.
        """
        try:
            got = self.sock.recv_into(memoryview(self._in)[self._filled :])
        except BlockingIOError:
            return None
        if not got:
            raise ConnectionResetError(f"flow {self.flow}: the peer ended in mid-stream")
        now = time.monotonic()
        if self._numbers_in:
            self.received.stall = max(self.received.stall, now - self._since)
        self._since = now
        self._filled += got
        if self._filled < blocks.SIZE:
            return None
        self._filled = 0
        kind = blocks.kind_of(self._in)
        if kind in (Kind.HELLO, Kind.END):
            flow, self.heard = blocks.heard(self._in)
            self.ended = kind == Kind.END
            self.flow = flow if kind == Kind.HELLO else self.flow
            return kind
        self.received.bytes += blocks.SIZE
        self.received.wrong += blocks.wrong_bytes(self._in, self.flow, self._numbers_in)
        self._numbers_in += 1
        return None

    @property
    def quiet(self) -> float:
        """Seconds since something came."""
        return time.monotonic() - self._since


class Ends:
    """Connections, and which of them can be read or written."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.ends: set[End] = set()

    def add(self, end: End) -> None:
        end.sock.setblocking(False)
        self.ends.add(end)
        self.selector.register(end.sock, selectors.EVENT_READ, end)
        self.update(end)

    def update(self, end: End) -> None:
        """Listen to what *end* waits for."""
        writes = selectors.EVENT_WRITE if end.wants_to_write else 0
        self.selector.modify(end.sock, selectors.EVENT_READ | writes, end)

    def leave(self, end: End) -> None:
        """Listen to *end* no more, and leave it open."""
        self.ends.discard(end)
        self.selector.unregister(end.sock)

    def remove(self, end: End) -> None:
        self.leave(end)
        end.sock.close()


def serve(port: int) -> None:
    """Check what comes on *port*, and send where a client asks for it, until killed."""
    listener = socket.create_server(("", port), backlog=1024)
    listener.setblocking(False)
    ends = Ends()
    ends.selector.register(listener, selectors.EVENT_READ)
    print(f"listening on {listener.getsockname()[1]}", flush=True)
    while True:
        for key, events in ends.selector.select():
            if key.data is None:
                ends.add(End(listener.accept()[0], 0, b""))
                continue
            try:
                serve_one(ends, key.data, events)
            except OSError as error:
                print(f"flow {key.data.flow}: {error}", file=sys.stderr, flush=True)
                ends.remove(key.data)


def serve_one(ends: Ends, end: End, events: int) -> None:
    """What a server does about one connection. Raises :exc:`OSError` when it fails."""
    if events & selectors.EVENT_WRITE:
        end.write()
    if events & selectors.EVENT_READ:
        if end.ended:
            ends.remove(end)
            return
        match end.read():
            case Kind.HELLO:
                hello = msgspec.msgpack.decode(end.heard, type=_Hello)
                end.pace(hello.pace)
                end.sending = hello.down
            case Kind.END:
                info = tcp_info.read(end.sock)
                end.received.out_of_order = info.out_of_order
                verdict = _Verdict(end.received, info)
                end.finish(blocks.said(Kind.END, end.flow, verdict))
    ends.update(end)


def send(
    address: str,
    port: int,
    *,
    seconds: float,
    flows: int = 1,
    ways: str = "up",
    end_now: Callable[[], bool] = lambda: False,
) -> Report:
    """Keep *flows* connections busy for *seconds* or until *end_now*; what arrived at both ends.

    *ways* is ``up``, ``down`` or ``both``. Raises :exc:`OSError` when a connection fails, also
    when nothing comes for half a minute.
    """
    report = Report(
        flows,
        0.0,
        up=Way() if ways in ("up", "both") else None,
        down=Way() if ways in ("down", "both") else None,
    )
    ends = Ends()
    pace = round(_PACE / flows)
    start = time.monotonic()
    for flow in range(flows):
        hello = blocks.said(Kind.HELLO, flow, _Hello(report.down is not None, pace))
        end = End(socket.create_connection((address, port), timeout=_QUIET), flow, hello)
        end.pace(pace)
        end.sending = report.up is not None
        ends.add(end)
    print("sending", file=sys.stderr, flush=True)
    finishing = False
    while ends.ends:
        left = start + seconds - time.monotonic()
        if (left <= 0 or end_now()) and not finishing:
            finishing = True
            for end in ends.ends:
                end.finish(blocks.said(Kind.END, end.flow, None))
                ends.update(end)
        for key, events in ends.selector.select(min(max(left, 0.0), _LOOK) or _LOOK):
            end = key.data
            if events & selectors.EVENT_WRITE:
                end.write()
                ends.update(end)
            if events & selectors.EVENT_READ and end.read() == Kind.END:
                _count(report, end)
                ends.remove(end)
        if finishing and any(end.quiet > _QUIET for end in ends.ends):
            raise TimeoutError(f"nothing from {address}:{port} for {_QUIET:g} s")
    report.seconds = time.monotonic() - start
    return report


def _count(report: Report, end: End) -> None:
    """Count what both ends of a finished connection know."""
    verdict = msgspec.msgpack.decode(end.heard, type=_Verdict)
    mine = tcp_info.read(end.sock)
    for way, received, sender, receiver in (
        (report.up, verdict.received, mine, verdict.info),
        (report.down, end.received, verdict.info, mine),
    ):
        if way is not None:
            received.retransmitted = sender.retransmitted
            received.unneeded = sender.unneeded
            received.out_of_order = receiver.out_of_order
            way.add(received)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="m2m.lab.traffic.bulk")
    commands = parser.add_subparsers(required=True)
    server = commands.add_parser("serve")
    server.add_argument("port", type=int)
    server.set_defaults(run=lambda options: serve(options.port))
    client = commands.add_parser("send")
    client.add_argument("address")
    client.add_argument("port", type=int)
    client.add_argument("--seconds", type=float, default=math.inf)
    client.add_argument("--flows", type=int, default=1)
    client.add_argument("--ways", choices=("up", "down", "both"), default="up")
    client.set_defaults(run=_send)
    return parser


def _send(options: argparse.Namespace) -> None:
    report = send(
        options.address, options.port,
        seconds=options.seconds, flows=options.flows, ways=options.ways, end_now=asked_to_end(),
    )  # fmt: skip
    print(msgspec.json.encode(report).decode())


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``serve`` or ``send``."""
    options = _parser().parse_args(argv)
    options.run(options)


if __name__ == "__main__":
    main()
