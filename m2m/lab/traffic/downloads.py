"""Long downloads by HTTP that no cache may keep, byte by byte the right ones, and when they came.

``python -m m2m.lab.traffic.downloads serve PORT ...`` answers ``GET /SIZE`` until it is killed.
``... load ADDRESS COUNT SIZE SECONDS PORT ...`` has so many connections load so much each, all at
once, gives up those that have not all of it after some seconds, and prints a :class:`Loaded` as
JSON. Of several ports, each has so many connections; they are read by turns, those of one port at a
time, so that what the machine does beside it hits them all alike.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Sequence

import msgspec

from m2m.lab.pace import SLOWNESS

__all__ = ["BIN", "Flow", "Loaded", "Part", "Turn"]

BIN = 0.05  # s
# s that one port's connections are read before those of the next: short beside the spells in
# which a shared machine is slower, so that these hit all ports alike.
_TURN = 0.015 * SLOWNESS
_LEAD = 1 / 3  # of a turn: from then on as much is sent as is read, and no less waits than before
_WAITING = 1 << 18  # octets that may wait on a connection for its turn (SO_RCVBUF)
_PERIOD = (1 << 20) + 7  # octets after which the content begins anew: no power of two
_PERIODS = 32  # that the server keeps
_PIECE = 1 << 18  # octets read at once
_HEAD = (
    "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
    "Content-Length: {}\r\nCache-Control: no-store\r\n\r\n"
)
_ASK = "GET /{} HTTP/1.1\r\nHost: {}\r\n\r\n"


class Flow(msgspec.Struct):
    """One download."""

    bytes: int = 0
    right: bool = True  # all that came
    whole: bool = False  # all of it came
    gap: float = 0.0  # s: the longest in which nothing came, once something had,
    gap_at: float = 0.0  # and when that ended, s since the beginning
    gaps: dict[int, float] = {}  # by number of the bin in which it ended, its longest, above 10 ms


class Turn(msgspec.Struct, frozen=True):
    """What came to one port's connections while they, and no others, were read, after its lead."""

    at: float  # s since the beginning
    octets: int
    seconds: float


class Part(msgspec.Struct):
    """All those from one port."""

    bins: list[int]  # bytes of all flows, in pieces of BIN
    flows: list[Flow]
    turns: list[Turn] = []  # if there are several ports


class Loaded(msgspec.Struct):
    """All of them."""

    began: float  # s since 1970
    parts: list[Part]  # by port


def _period() -> bytes:
    return hashlib.shake_128(b"m2m").digest(_PERIOD)


def serve(ports: Sequence[int]) -> None:
    """Answer at all *ports*, for ever: one process and one content, so that they are alike."""
    content = os.memfd_create("content")
    for _ in range(_PERIODS):
        os.write(content, _period())
    selector = selectors.DefaultSelector()
    for port in ports:
        listener = socket.create_server(("0.0.0.0", port), backlog=512)
        selector.register(listener, selectors.EVENT_READ, listener)
    print("listening", flush=True)
    while True:
        for key, _ in selector.select():
            sock, _ = key.data.accept()
            threading.Thread(target=_answer, args=(sock, content), daemon=True).start()


def _answer(sock: socket.socket, content: int) -> None:
    with sock:
        asked = b""
        try:
            while b"\r\n\r\n" not in asked:
                more = sock.recv(4096)
                if not more:
                    return
                asked += more
            size = int(asked.split()[1].strip(b"/"))
            sock.sendall(_HEAD.format(size).encode())
            sent = 0
            while sent < size:
                at = sent % (_PERIOD * _PERIODS)
                most = min(size - sent, _PERIOD * _PERIODS - at)
                sent += os.sendfile(sock.fileno(), content, at, most)
            while sock.recv(4096):
                pass
        except OSError:
            pass  # the client has had enough


class _Loading:
    """One connection: its response, compared as it comes."""

    def __init__(self, sock: socket.socket, size: int) -> None:
        self.sock = sock
        self.flow = Flow(gaps={})
        self._size = size
        self._head = b""
        self._last: float | None = None

    def take(self, data: memoryview, now: float, right: memoryview) -> int:
        """How much of *data*, which came at *now*, is of the body."""
        flow = self.flow
        if b"\r\n\r\n" not in self._head:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return 0
            flow.right &= self._head.startswith(b"HTTP/1.1 200")
            data = memoryview(self._head[end + 4 :])
        if self._last is not None:
            self._note(now - self._last, now)
        self._last = now
        at = 0
        while at < len(data):
            place = (flow.bytes + at) % _PERIOD
            most = min(len(data) - at, _PERIOD - place)
            flow.right &= data[at : at + most] == right[place : place + most]
            at += most
        flow.bytes += len(data)
        flow.whole = flow.bytes == self._size
        flow.right &= flow.bytes <= self._size
        return len(data)

    def _note(self, gap: float, now: float) -> None:
        flow = self.flow
        if gap > flow.gap:
            flow.gap, flow.gap_at = gap, now
        if gap > 0.01:
            number = int(now / BIN)
            flow.gaps[number] = max(gap, flow.gaps.get(number, 0.0))


class _Group:
    """The connections to one port."""

    def __init__(self, address: str, port: int, count: int, size: int, waiting: int | None) -> None:
        self.selector = selectors.DefaultSelector()
        self.bins: list[int] = []
        self.turns: list[Turn] = []
        self.loadings: list[_Loading] = []
        for _ in range(count):
            sock = socket.socket()
            if waiting is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, waiting)
            sock.connect((address, port))
            sock.sendall(_ASK.format(size, address).encode())
            self.loadings.append(_Loading(sock, size))
            self.selector.register(sock, selectors.EVENT_READ, self.loadings[-1])

    def turn(self, began: float, buffer: memoryview, right: memoryview) -> None:
        """Take what comes for a while that begins now."""
        now = time.monotonic() - began
        self.read(began, now + _LEAD * _TURN, buffer, right)
        at, before = time.monotonic() - began, self._octets()
        self.read(began, now + _TURN, buffer, right)
        self.turns.append(Turn(at, self._octets() - before, time.monotonic() - began - at))

    def _octets(self) -> int:
        return sum(one.flow.bytes for one in self.loadings)

    def read(self, began: float, until: float, buffer: memoryview, right: memoryview) -> None:
        """Take what comes until then, s since the beginning."""
        while self.selector.get_map() and (now := time.monotonic() - began) < until:
            for key, _ in self.selector.select(until - now):
                loading: _Loading = key.data
                got = loading.sock.recv_into(buffer)
                now = time.monotonic() - began
                number = int(now / BIN)
                self.bins += [0] * (number + 1 - len(self.bins))
                self.bins[number] += loading.take(buffer[:got], now, right)
                if not got or loading.flow.whole:
                    self.selector.unregister(loading.sock)
                    loading.sock.close()


def load(address: str, ports: Sequence[int], count: int, size: int, seconds: float) -> Loaded:
    """Have *count* connections to each port load *size* bytes each, for so long at most."""
    right = memoryview(_period())
    buffer = memoryview(bytearray(_PIECE))
    began, wall = time.monotonic(), time.time()
    waiting = _WAITING if len(ports) > 1 else None
    groups = [_Group(address, port, count, size, waiting) for port in ports]
    if len(groups) == 1:
        groups[0].read(began, seconds, buffer, right)
    else:
        while time.monotonic() - began < seconds and any(one.selector.get_map() for one in groups):
            for group in groups:
                group.turn(began, buffer, right)
    return Loaded(
        wall,
        [Part(one.bins, [each.flow for each in one.loadings], one.turns) for one in groups],
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``serve`` or ``load``."""
    parser = argparse.ArgumentParser(prog="m2m.lab.traffic.downloads")
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("serve").add_argument("ports", type=int, nargs="+")
    client = parts.add_parser("load")
    client.add_argument("address")
    for name, kind in (("count", int), ("size", int), ("seconds", float)):
        client.add_argument(name, type=kind)
    client.add_argument("ports", type=int, nargs="+")
    options = parser.parse_args(argv)
    if options.part == "serve":
        serve(options.ports)
        return
    found = load(options.address, options.ports, options.count, options.size, options.seconds)
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")


if __name__ == "__main__":
    main()
