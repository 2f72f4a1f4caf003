"""Many sessions, most of them nearly idle; a few carry numbered records at a steady pace.

``python -m m2m.lab.traffic.probes serve ADDRESS PORT --proto udp|tcp|mptcp --interval MS --out
FILE`` serves until SIGTERM. ``python -m m2m.lab.traffic.probes send ADDRESS PORT ... --sessions N
--probes P`` opens N sessions, P of which, chosen at random, are *probes*: a record each way at
every interval, at each end's own pace. In the others a record goes and comes back now and then.
Until SIGTERM; then each end writes a :class:`Report` as msgpack to FILE. Nothing is judged here.
"""

from __future__ import annotations

import argparse
import array
import gc
import random
import select
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic

import msgspec

from m2m.lab.pace import SLOWNESS
from m2m.lab.traffic.ending import asked_to_end
from m2m.lab.traffic.numbered import Account, Ledger, Number, burst, header_of, stamp

SIZE = 64
"""Bytes of a record."""

_MPTCP = 262  # IPPROTO_MPTCP
_PROBE = 0x8000  # in a flow's number: the server is to send at its own pace
_IDLE_RATE = 40.0  # records per second in all sessions that are no probes
_WINDOW = 32  # sessions being opened at a time
_AGAIN, _PATIENCE = 1.0, 30.0 * SLOWNESS  # s until an opening record is sent again; until giving up
_CONTROL_BUFFER = 1 << 20


class Stream(msgspec.Struct):
    """What one end knows of one session."""

    flow: int
    probe: bool
    account: Account  # of what came: lost are the holes below the highest number
    arrivals: list[float]  # CLOCK_MONOTONIC, of a probe's records
    error: str | None = None  # what the kernel said when it ended the session
    error_at: float | None = None


class Report(msgspec.Struct):
    """What one end knows when it is told to stop."""

    proto: str
    interval: float  # s
    streams: list[Stream]
    end: float  # CLOCK_MONOTONIC

    @property
    def probes(self) -> list[Stream]:
        """The streams whose arrivals are there."""
        return [stream for stream in self.streams if stream.probe]


class Session:
    """One end of one session: numbers what it sends, notes what comes."""

    def __init__(self, flow: int, send: Callable[[bytes], int]) -> None:
        self.flow = flow
        self.error: tuple[str, float] | None = None
        self._send = send
        self._sent = 0
        self._record = burst(SIZE, 1)
        self._left = b""  # of a record of which the socket took a part
        self._ledger = Ledger()
        self._highest = -1
        self._arrivals = array.array("d")
        self._part = b""

    @property
    def probe(self) -> bool:
        return bool(self.flow & _PROBE)

    @property
    def answered(self) -> bool:
        """Whether something has come."""
        return self._highest >= 0

    def send(self) -> None:
        """Send the next record, if the one before is out; an error ends the session."""
        if self.error is not None:
            return
        data = self._left
        if not data:
            stamp(self._record, 0, Number(SIZE, self.flow, self._sent))
            data = bytes(self._record)
        try:
            taken = self._send(data)
        except BlockingIOError:
            return  # the same number at the next turn
        except OSError as error:
            self.fail(error)
            return
        if not self._left:
            self._sent += 1
        self._left = data[taken:]

    def fail(self, error: OSError) -> None:
        """The kernel has ended it."""
        if self.error is None:
            self.error = error.strerror or str(error), monotonic()

    def take_bytes(self, data: bytes) -> int:
        """Records of a byte stream; how many are whole."""
        data = self._part + data
        whole = len(data) - len(data) % SIZE
        for at in range(0, whole, SIZE):
            self.take(data[at : at + SIZE])
        self._part = data[whole:]
        return whole // SIZE

    def take(self, record: bytes) -> None:
        """One whole record."""
        now = monotonic()
        header = self._ledger.enter(record, now)
        if header is None:
            return
        self._highest = max(self._highest, header.number)
        if self.probe:
            self._arrivals.append(now)

    def stream(self) -> Stream:
        """What became of it so far."""
        error, at = self.error or (None, None)
        account = self._ledger.account(self._highest + 1)
        return Stream(self.flow & ~_PROBE, self.probe, account, list(self._arrivals), error, at)


class _Pace:
    """Says when the next records are due, and does not make up for what was late."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._next = monotonic()

    def wait(self, poll: select.epoll) -> bool:
        """Wait for an event or the next turn; whether the turn has come."""
        left = self._next - monotonic()
        if left > 0:
            # An epoll waits whole milliseconds; being a file, it can itself be waited for.
            select.select([poll], [], [], left)
        now = monotonic()
        if now < self._next:
            return False
        self._next = max(self._next + self._interval, now)
        return True


def _write(out: Path, proto: str, interval: float, sessions: Sequence[Session]) -> None:
    report = Report(proto, interval, [one.stream() for one in sessions], monotonic())
    part = out.with_suffix(".part")
    part.write_bytes(msgspec.msgpack.encode(report))
    part.rename(out)


def read(out: Path) -> Report:
    """The report in *out*. Raises :exc:`OSError` or :exc:`msgspec.DecodeError`."""
    return msgspec.msgpack.decode(out.read_bytes(), type=Report)


def _send_datagram(sock: socket.socket, data: bytes) -> int:
    """Without a route or an address a datagram is lost, and nothing has ended."""
    with suppress(OSError):
        sock.send(data)
    return len(data)


def _stream_socket(proto: str) -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, _MPTCP if proto == "mptcp" else 0)


class _Server:
    def __init__(self, address: str, port: int, proto: str, interval: float) -> None:
        self.sessions: list[Session] = []
        self._by_fd: dict[int, tuple[socket.socket, Session | None]] = {}
        self._by_peer: dict[tuple[str, int], Session] = {}
        self._poll = select.epoll()
        self._pace = _Pace(interval)
        self._datagrams = proto == "udp"
        if self._datagrams:
            self._listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _CONTROL_BUFFER)
        else:
            self._listener = _stream_socket(proto)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((address, port))
        if not self._datagrams:
            self._listener.listen(1024)
        self._listener.setblocking(False)
        self._poll.register(self._listener, select.EPOLLIN)

    def run(self, end_now: Callable[[], bool]) -> None:
        while not end_now():
            due = self._pace.wait(self._poll)
            for fd, _ in self._poll.poll(0):
                self._read(fd)
            if due:
                for session in self.sessions:
                    if session.probe:
                        session.send()

    def _read(self, fd: int) -> None:
        if fd != self._listener.fileno():
            self._read_stream(fd)
        elif self._datagrams:
            self._read_datagrams()
        else:
            sock, _ = self._listener.accept()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._by_fd[sock.fileno()] = sock, None
            self._poll.register(sock, select.EPOLLIN)

    def _read_datagrams(self) -> None:
        with suppress(BlockingIOError):
            while True:
                data, peer = self._listener.recvfrom(2 * SIZE)
                session = self._by_peer.get(peer)
                if session is None:
                    header = header_of(data)
                    if header is None:
                        continue

                    session = Session(header.flow, partial(self._answer, peer))
                    self._by_peer[peer] = session
                    self.sessions.append(session)
                session.take(data)
                if not session.probe:
                    session.send()

    def _answer(self, peer: tuple[str, int], data: bytes) -> int:
        with suppress(OSError):
            self._listener.sendto(data, peer)
        return len(data)

    def _read_stream(self, fd: int) -> None:
        sock, session = self._by_fd[fd]
        try:
            data = sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            data = b""
            if session is not None:
                session.fail(error)
        if not data:
            if session is not None:
                session.fail(ConnectionResetError(0, "closed by the peer"))
            self._poll.unregister(fd)
            del self._by_fd[fd]
            sock.close()
            return
        if session is None:
            header = header_of(data)
            if header is None:  # a first segment that holds less than a record is never sent
                raise ValueError(f"{sock.getpeername()} sends something else than records")
            session = Session(header.flow, sock.send)
            self._by_fd[fd] = sock, session
            self.sessions.append(session)
        whole = session.take_bytes(data)
        if not session.probe:
            for _ in range(whole):
                session.send()


def serve(
    address: str, port: int, *, proto: str, interval: float, out: Path, end_now: Callable[[], bool]
) -> None:
    """Answer, send and take notes until *end_now*, then write to *out*."""
    server = _Server(address, port, proto, interval)
    print(f"listening on {port}", flush=True)
    server.run(end_now)
    _write(out, proto, interval, server.sessions)


class _Client:
    def __init__(
        self, address: str, port: int, *, proto: str, interval: float, sessions: int, probes: int,
        seed: int,
    ) -> None:  # fmt: skip
        self.sessions: list[Session] = []
        self._to = address, port
        self._proto = proto
        self._poll = select.epoll()
        self._sockets: dict[int, tuple[socket.socket, Session]] = {}
        self._pace = _Pace(interval)
        self._interval = interval
        chosen = set(random.Random(seed).sample(range(sessions), probes))
        self._flows = [number | (_PROBE if number in chosen else 0) for number in range(sessions)]

    def open(self) -> None:
        """Open all sessions, in order. Raises :exc:`TimeoutError` when one gets no answer."""
        limit = monotonic() + _PATIENCE
        again = monotonic() + _AGAIN
        todo = list(reversed(self._flows))
        waiting: list[Session] = []
        while todo or waiting:
            while todo and len(waiting) < _WINDOW:
                waiting.append(self._connect(todo.pop()))
                limit = monotonic() + _PATIENCE
            self._listen(0.05)
            if monotonic() > limit:
                raise TimeoutError(f"{len(waiting)} sessions to {self._to} got no answer")
            if monotonic() > again:
                again += _AGAIN
                for session in waiting:
                    session.send()
            waiting = [one for one in waiting if not one.answered]

    def _connect(self, flow: int) -> Session:
        if self._proto == "udp":
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.connect(self._to)
        else:
            sock = _stream_socket(self._proto)
            sock.settimeout(_PATIENCE)
            sock.connect(self._to)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        session = Session(
            flow, partial(_send_datagram, sock) if self._proto == "udp" else sock.send
        )
        self.sessions.append(session)
        self._sockets[sock.fileno()] = sock, session
        self._poll.register(sock, select.EPOLLIN)
        session.send()
        return session

    def run(self, end_now: Callable[[], bool]) -> None:
        probes = [session for session in self.sessions if session.probe]
        idle = [session for session in self.sessions if not session.probe]
        turn, next_idle = 0, monotonic()
        while not end_now():
            due = self._pace.wait(self._poll)
            self._listen(0)
            if not due:
                continue
            for session in probes:
                session.send()
            if idle and monotonic() >= next_idle:
                next_idle += 1 / _IDLE_RATE
                idle[turn % len(idle)].send()
                turn += 1

    def _listen(self, seconds: float) -> None:
        for fd, _ in self._poll.poll(seconds):
            sock, session = self._sockets[fd]
            try:
                data = sock.recv(1 << 16)
            except BlockingIOError:
                continue
            except OSError as error:
                if self._proto != "udp":  # there it tells of one datagram
                    self._gone(fd, session, error)
                continue
            if self._proto == "udp":
                session.take(data)
            elif data:
                session.take_bytes(data)
            else:
                self._gone(fd, session, ConnectionResetError(0, "closed by the peer"))

    def _gone(self, fd: int, session: Session, error: OSError) -> None:
        session.fail(error)
        self._poll.unregister(fd)


def send(
    address: str, port: int, *, proto: str, interval: float, sessions: int, probes: int, seed: int,
    out: Path, end_now: Callable[[], bool],
) -> None:  # fmt: skip
    """Open *sessions*, *probes* of them to be watched, and go on until *end_now*.

    Raises :exc:`OSError` when a session cannot be opened.
    """
    client = _Client(address, port, proto=proto, interval=interval, sessions=sessions,
                     probes=probes, seed=seed)  # fmt: skip
    client.open()
    print("sending", flush=True)
    client.run(end_now)
    _write(out, proto, interval, client.sessions)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="m2m.lab.traffic.probes")
    commands = parser.add_subparsers(required=True, dest="command")
    for name in ("serve", "send"):
        command = commands.add_parser(name)
        command.add_argument("address")
        command.add_argument("port", type=int)
        command.add_argument("--proto", choices=("udp", "tcp", "mptcp"), required=True)
        command.add_argument("--interval", type=float, default=1.0, metavar="MS")
        command.add_argument("--out", type=Path, required=True, metavar="FILE")
        if name == "send":
            command.add_argument("--sessions", type=int, default=1)
            command.add_argument("--probes", type=int, default=1)
            command.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``serve`` or ``send``."""
    options = vars(_parser().parse_args(argv))
    options["interval"] /= 1000
    do: Callable[..., None] = serve if options.pop("command") == "serve" else send
    # Searching a heap that grows by arrivals alone takes milliseconds, and finds nothing.
    gc.disable()
    do(**options, end_now=asked_to_end())


if __name__ == "__main__":
    main()
