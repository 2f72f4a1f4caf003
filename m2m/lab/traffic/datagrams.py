"""Numbered datagrams over UDP at a given rate; the receiver tells what became of them.

``python -m m2m.lab.traffic.datagrams serve ADDRESS PORT`` serves until it is killed.
``python -m m2m.lab.traffic.datagrams send ADDRESS PORT --rate MBITS [--seconds S] [--size BYTES]
[--flows N] [--burst COUNT] [--both]`` sends for S seconds or until SIGTERM, and prints a
:class:`Report` as JSON. With ``--both`` the server answers each datagram with a numbered one of its
own.

A burst travels as one packet of up to 64 kB where the network can (UDP segmentation offload), as
TCP's do; ``--burst 1`` sends packet by packet.
"""

from __future__ import annotations

import argparse
import math
import random
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from m2m.lab.traffic.ending import asked_to_end
from m2m.lab.traffic.numbered import LARGEST, Account, Ledger, Number, burst, stamp

_UDP_SEGMENT, _UDP_GRO = 103, 104  # linux/udp.h
_SO_RCVBUFFORCE, _SO_MEMINFO = 33, 55  # asm-generic/socket.h
_RECEIVE_BUFFER = 32 << 20
_MEMINFO = struct.Struct("9I")  # the last is the number of dropped packets (linux/sock_diag.h)
_MOST_SEGMENTS = 64  # UDP_MAX_SEGMENTS before Linux 6.9

_TICK = 0.001  # s between two looks at what is due
_SETTLE = 1.0  # s for what is on its way, or held
_REPEAT, _PATIENCE = 0.2, 20.0  # s between two questions; until giving up
_CONTROL = b"m2mC"
_ANSWER = 0x8000  # in a flow's number: answer each datagram

Address = tuple[str, int]


class Report(msgspec.Struct, tag="datagrams"):
    """One run of ``send``. *down* is None when the server did not answer."""

    flows: int
    seconds: float
    rate: float  # bit/s sent upwards, of UDP payload
    up: Account
    down: Account | None


class _Ask(msgspec.Struct):
    """What the client says before it sends, and when it has sent all; repeated until answered."""

    flow: int
    sent: int


class _Result(msgspec.Struct):
    """What the server answers."""

    flow: int
    received: Account
    sent: int


def _said(what: msgspec.Struct) -> bytes:
    return _CONTROL + msgspec.msgpack.encode(what)


class _Socket:
    """A UDP socket that sends bursts, and takes those apart that come."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        with suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
        self._buffer = memoryview(bytearray(1 << 16))

    def received(self) -> Iterator[tuple[Address, list[bytes]]]:
        """What waits in the socket: who sent it, and the datagrams of one burst."""
        while True:
            try:
                got, notes, _, peer = self.sock.recvmsg_into(
                    [self._buffer], socket.CMSG_SPACE(4), socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return
            size = got
            for level, kind, data in notes:
                if (level, kind) == (socket.IPPROTO_UDP, _UDP_GRO):
                    size = int.from_bytes(data[:4], sys.byteorder)
            whole = range(0, got, size) if size else range(1)
            yield peer, [bytes(self._buffer[at : min(at + size, got)]) for at in whole]

    def send(self, data: bytearray | memoryview, size: int, peer: Address | None) -> None:
        """Send *data* as datagrams of *size* bytes; waits while the socket is full."""
        notes: list[tuple[int, int, bytes]] = []
        if len(data) > size:
            notes = [(socket.IPPROTO_UDP, _UDP_SEGMENT, size.to_bytes(2, sys.byteorder))]
        self.sock.sendmsg([data], notes, 0, *([] if peer is None else [peer]))

    def dropped(self) -> int:
        """Packets that came while the socket's buffer was full."""
        raw = self.sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
        return int(_MEMINFO.unpack(raw)[-1])


class _Sender:
    """The numbered datagrams of one flow in one direction."""

    def __init__(self, flow: int, size: int, most: int) -> None:
        self.sent = 0
        self._flow = flow
        self._size = size
        self._burst = burst(size, most)

    def send(self, sock: _Socket, count: int, peer: Address | None = None) -> None:
        """Send *count* of them as one burst."""
        for i in range(count):
            stamp(self._burst, i * self._size, Number(self._size, self._flow, self.sent + i))
        sock.send(memoryview(self._burst)[: count * self._size], self._size, peer)
        self.sent += count


class _Peer:
    """One flow, as the server knows it."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.answers: _Sender | None = None
        self.result: bytes | None = None  # told once, the same again when asked again


class _Server:
    """Keeps the account of every flow, and answers where it is asked to."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = _Socket(sock)
        self._peers: dict[tuple[Address, int], _Peer] = {}
        self._dropped = 0

    def run(self) -> None:
        poll = select.epoll()
        poll.register(self._socket.sock, select.EPOLLIN)
        while True:
            poll.poll()
            for address, datagrams in self._socket.received():
                self._take(address, datagrams, time.monotonic())

    def _take(self, address: Address, datagrams: list[bytes], now: float) -> None:
        if datagrams[0].startswith(_CONTROL):
            ask = msgspec.msgpack.decode(datagrams[0][len(_CONTROL) :], type=_Ask)
            self._socket.sock.sendto(self._answer(address, ask), address)
            return
        answers: dict[Number, int] = {}
        for data in datagrams:
            peer = self._peers.get((address, _flow_of(data)))
            header = peer.ledger.enter(data, now) if peer else None
            if header is not None and header.flow & _ANSWER:
                kind = header._replace(number=0)
                answers[kind] = answers.get(kind, 0) + 1
        for header, count in answers.items():
            peer = self._peers[address, header.flow]
            if peer.answers is None:
                peer.answers = _Sender(header.flow, header.size, _most(header.size))
            peer.answers.send(self._socket, count, address)

    def _answer(self, address: Address, ask: _Ask) -> bytes:
        peer = self._peers.setdefault((address, ask.flow), _Peer())
        if not ask.sent:
            return _said(_Result(ask.flow, peer.ledger.account(0), 0))
        if peer.result is None:
            account = peer.ledger.account(ask.sent)
            dropped = self._socket.dropped()
            account.overrun, self._dropped = dropped - self._dropped, dropped
            sent = peer.answers.sent if peer.answers else 0
            peer.result = _said(_Result(ask.flow, account, sent))
        return peer.result


def _flow_of(data: bytes) -> int:
    """The flow that a datagram says it is of, even if it has other errors."""
    return int.from_bytes(data[6:8], "big")


def _most(size: int) -> int:
    """Datagrams of *size* bytes that one burst can hold."""
    return max(1, min(_MOST_SEGMENTS, LARGEST // size))


def serve(address: str, port: int) -> None:
    """Keep account of what comes to *port* of *address*, until killed."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    server = _Server(sock)
    print(f"listening on {sock.getsockname()[1]}", flush=True)
    server.run()


class _Flow:
    """One flow, as the client knows it."""

    def __init__(self, address: Address, number: int, size: int, most: int) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(address)
        self.number = number
        self.socket = _Socket(sock)
        self.sender = _Sender(number, size, most)
        self.ledger = Ledger()
        self.result: _Result | None = None

    def read(self) -> None:
        """Take what has come back."""
        now = time.monotonic()
        for _, datagrams in self.socket.received():
            for data in datagrams:
                if data.startswith(_CONTROL):
                    self.result = msgspec.msgpack.decode(data[len(_CONTROL) :], type=_Result)
                else:
                    self.ledger.enter(data, now)


class _Client:
    def __init__(self, flows: list[_Flow]) -> None:
        self._flows = flows
        self._poll = select.epoll()
        self._by_number = {flow.socket.sock.fileno(): flow for flow in flows}
        for number in self._by_number:
            self._poll.register(number, select.EPOLLIN)

    def listen(self, seconds: float) -> None:
        """Take what comes within *seconds*, the first of it at least."""
        for number, _ in self._poll.poll(max(seconds, 0.0)):
            self._by_number[number].read()

    def ask(self) -> None:
        """Ask the server about each flow until it has answered. Raises :exc:`TimeoutError`."""
        deadline = time.monotonic() + _PATIENCE
        for flow in self._flows:
            flow.result = None
        while waiting := [flow for flow in self._flows if flow.result is None]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server has not answered for {_PATIENCE:g} s")
            for flow in waiting:
                flow.socket.sock.send(_said(_Ask(flow.number, flow.sender.sent)))
            repeat = time.monotonic() + _REPEAT
            while any(flow.result is None for flow in waiting) and time.monotonic() < repeat:
                self.listen(repeat - time.monotonic())

    def send(
        self, rate: float, seconds: float, count: int, size: int, end_now: Callable[[], bool]
    ) -> None:
        """Send *rate* bit/s in all, in bursts of *count* datagrams."""
        start = time.monotonic()
        bursts, turn = 0, 0
        while (elapsed := time.monotonic() - start) < seconds and not end_now():
            due = int(elapsed * rate / (8 * size * count)) + 1
            for _ in range(min(due - bursts, len(self._flows))):
                flow = self._flows[turn % len(self._flows)]
                flow.sender.send(flow.socket, count)
                turn += 1
                bursts += 1
            self.listen(0.0 if bursts < due else _TICK)


def send(
    address: str,
    port: int,
    *,
    rate: float,
    seconds: float,
    size: int = 1400,
    flows: int = 1,
    count: int = 16,
    both: bool = False,
    end_now: Callable[[], bool] = lambda: False,
) -> Report:
    """Send numbered datagrams of *size* bytes at *rate* bit/s in all; what became of them.

    Sends for *seconds* or until *end_now*. Raises :exc:`ValueError` when a burst of *count* does
    not fit into one packet, :exc:`TimeoutError` when the server does not answer.
    """
    if not 1 <= count <= _most(size):
        raise ValueError(f"a burst holds 1 to {_most(size)} datagrams of {size} bytes, not {count}")
    first = random.randrange(_ANSWER - flows)
    mark = _ANSWER if both else 0
    made = [_Flow((address, port), first + i | mark, size, count) for i in range(flows)]
    client = _Client(made)
    client.ask()  # the way there is open from here on
    print("sending", file=sys.stderr, flush=True)
    start = time.monotonic()
    client.send(rate, seconds, count, size, end_now)
    took = time.monotonic() - start
    settled = time.monotonic() + _SETTLE
    while (left := settled - time.monotonic()) > 0:
        client.listen(left)
    client.ask()
    return _report(made, took, size, both)


def _report(flows: list[_Flow], seconds: float, size: int, both: bool) -> Report:
    sent = sum(flow.sender.sent for flow in flows)
    report = Report(len(flows), seconds, sent * size * 8 / seconds, Account(), None)
    if both:
        report.down = Account()
    for flow in flows:
        assert flow.result is not None
        report.up.add(flow.result.received)
        if report.down is not None:
            account = flow.ledger.account(flow.result.sent)
            account.overrun = flow.socket.dropped()
            report.down.add(account)
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="m2m.lab.traffic.datagrams")
    commands = parser.add_subparsers(required=True)
    server = commands.add_parser("serve")
    server.add_argument("address")
    server.add_argument("port", type=int)
    server.set_defaults(run=lambda options: serve(options.address, options.port))
    client = commands.add_parser("send")
    client.add_argument("address")
    client.add_argument("port", type=int)
    client.add_argument("--rate", type=float, required=True, metavar="MBITS")
    client.add_argument("--seconds", type=float, default=math.inf)
    client.add_argument("--size", type=int, default=1400)
    client.add_argument("--flows", type=int, default=1)
    client.add_argument("--burst", type=int, default=16)
    client.add_argument("--both", action="store_true")
    client.set_defaults(run=_send)
    return parser


def _send(options: argparse.Namespace) -> Any:
    report = send(
        options.address, options.port,
        rate=options.rate * 1e6, seconds=options.seconds, size=options.size,
        flows=options.flows, count=options.burst, both=options.both, end_now=asked_to_end(),
    )  # fmt: skip
    print(msgspec.json.encode(report).decode())


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``serve`` or ``send``."""
    options = _parser().parse_args(argv)
    options.run(options)


if __name__ == "__main__":
    main()
