"""The server of :mod:`m2m.lab.traffic.bulk` as a process that can move to another host, live.

``python -m m2m.lab.traffic.movable serve PORT --orders SOCKET`` serves until it is killed.
``python -m m2m.lab.traffic.movable wait --orders SOCKET`` waits for what another such process has
written.

On the Unix socket SOCKET it takes orders, each one line, and answers each by one line when it has
been carried out:

``freeze``
    read and write no more, and say nothing by any connection
``take-out FILE``
    when frozen: write all there is to know to a new file, and let go of the connections unheard
``put-in FILE``
    be what FILE says, frozen
``thaw``
    go on
"""

from __future__ import annotations

import argparse
import os
import selectors
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from m2m.lab import tcp_repair
from m2m.lab.traffic.bulk import End, Ends, Progress, serve_one


class _Connection(msgspec.Struct):
    image: tcp_repair.Image
    progress: Progress


class _Frozen(msgspec.Struct):
    """The process."""

    connections: list[_Connection]


class Server:
    """The process: its connections, and who tells it what to do."""

    def __init__(self, orders: Path) -> None:
        self._ends = Ends()
        self._frozen: dict[End, tcp_repair.Image | None] = {}
        self._listener: socket.socket | None = None
        self._orders = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with suppress(FileNotFoundError):
            orders.unlink()
        self._orders.bind(os.fspath(orders))
        self._orders.listen()
        self._ends.selector.register(self._orders, selectors.EVENT_READ, self._hear)

    def listen(self, port: int) -> None:
        """Take connections from now on."""
        self._listener = socket.create_server(("", port), backlog=1024)
        self._listener.setblocking(False)
        self._ends.selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def run(self) -> None:
        """Serve, for ever."""
        while True:
            for key, events in self._ends.selector.select():
                if isinstance(key.data, End):
                    self._serve(key.data, events)
                else:
                    key.data()

    def _serve(self, end: End, events: int) -> None:
        if end in self._frozen:
            return  # an order has come before, in the same turn
        try:
            serve_one(self._ends, end, events)
        except OSError as error:
            print(f"flow {end.flow}: {error}", file=sys.stderr, flush=True)
            self._ends.remove(end)

    def _accept(self) -> None:
        assert self._listener is not None
        self._ends.add(End(self._listener.accept()[0], 0, b""))

    def _hear(self) -> None:
        """Take one order: whoever gives it is quick, and waits for it."""
        connection, _ = self._orders.accept()
        with connection, connection.makefile("rw") as said:
            order, _, argument = said.readline().strip().partition(" ")
            carry_out = _ORDERS.get(order)
            try:
                said.write(carry_out(self, argument) if carry_out else f"no order: {order!r}")
            except (OSError, msgspec.MsgspecError, tcp_repair.NotMovable) as error:
                said.write(f"failed: {error}")
            said.write("\n")

    def _freeze(self, _: str) -> str:
        for end in self._ends.ends:
            tcp_repair.freeze(end.sock)
        for end in tuple(self._ends.ends):
            self._ends.leave(end)
            self._frozen[end] = None
        return f"frozen {len(self._frozen)}"

    def _take_out(self, argument: str) -> str:
        connections = [
            _Connection(tcp_repair.take_out(end.sock), end.progress) for end in self._frozen
        ]
        self._frozen.clear()
        if self._listener is not None:
            self._ends.selector.unregister(self._listener)
            self._listener.close()
        Path(argument).write_bytes(msgspec.msgpack.encode(_Frozen(connections)))
        return f"out {len(connections)}"

    def _put_in(self, argument: str) -> str:
        found = msgspec.msgpack.decode(Path(argument).read_bytes(), type=_Frozen)
        for one in found.connections:
            end = End.resumed(tcp_repair.put_in(one.image), one.progress)
            self._frozen[end] = one.image
        return f"in {len(found.connections)}"

    def _thaw(self, _: str) -> str:
        count = len(self._frozen)
        for end, image in self._frozen.items():
            tcp_repair.thaw(end.sock, image)
            self._ends.add(end)
        self._frozen.clear()
        return f"thawed {count}"


_ORDERS: dict[str, Callable[[Server, str], str]] = {
    "freeze": Server._freeze,
    "take-out": Server._take_out,
    "put-in": Server._put_in,
    "thaw": Server._thaw,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``serve`` or ``wait``."""
    parser = argparse.ArgumentParser(prog="m2m.lab.traffic.movable")
    commands = parser.add_subparsers(required=True, dest="command")
    serve = commands.add_parser("serve")
    serve.add_argument("port", type=int)
    for one in (serve, commands.add_parser("wait")):
        one.add_argument("--orders", type=Path, required=True)
    options = parser.parse_args(argv)
    server = Server(options.orders)
    if options.command == "serve":
        server.listen(options.port)
    print("listening", flush=True)
    server.run()


if __name__ == "__main__":
    main()
