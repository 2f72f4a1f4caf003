"""A small TCP proxy that leaves.

``python -m tests.support.leaving_program PORT AGENT_SOCKET AFTER`` accepts on PORT, one thread for
each connection, and begins each stream, either way, with a line of its own, so that numbers on both
sides differ. Then it copies; after AFTER bytes of a session it would leave it. What it does is told
line by line on standard output, as JSON.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import threading
import time

from nf_adapters.sockets import m2m_nf

TO_SERVER, TO_CLIENT = b"asked by way of a proxy\n", b"answered by way of a proxy, which has more\n"
_ONCE = 1 << 16
_AGAIN = 0.5  # s after which one that had to stay asks again


def tell(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Copying:
    """Two connections, and what is on its way between them."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.pairs = {client: server, server: client}
        self.buffers = {client: bytearray(), server: bytearray()}  # to be written there
        self.ended: set[socket.socket] = set()  # nothing more comes from them
        self.shut: set[socket.socket] = set()
        self.copied = 0
        for sock in self.pairs:
            sock.setblocking(False)

    def step(self, wait: float | None) -> bool:
        """Copy what can be; whether anything was."""
        reads = [sock for sock in self.pairs if sock not in self.ended and self._room(sock)]
        writes = [sock for sock in self.pairs if self.buffers[sock]]
        readable, writable, _ = select.select(reads, writes, [], wait)
        for sock in readable:
            data = sock.recv(_ONCE)
            if data:
                self.buffers[self.pairs[sock]] += data
            else:
                self.ended.add(sock)
        for sock in {*writable, *(self.pairs[one] for one in readable)}:
            self._write(sock)
        return bool(readable or writable)

    def _room(self, sock: socket.socket) -> bool:
        return len(self.buffers[self.pairs[sock]]) < _ONCE

    def _write(self, sock: socket.socket) -> None:
        buffer = self.buffers[sock]
        if buffer:
            try:
                sent = sock.send(buffer)
            except BlockingIOError:
                return
            del buffer[:sent]
            self.copied += sent
        if not buffer and self.pairs[sock] in self.ended and sock not in self.shut:
            self.shut.add(sock)
            sock.shutdown(socket.SHUT_WR)

    @property
    def over(self) -> bool:
        return len(self.shut) == len(self.pairs)

    @property
    def empty(self) -> bool:
        return not any(self.buffers.values())


def leave(session: m2m_nf.Session, copying: Copying) -> bool:
    """Whether it has left."""
    client, server = copying.pairs
    began = time.monotonic()
    try:
        leaving = session.leave(client, server)
        while True:
            while copying.step(0) or not copying.empty:
                if not copying.empty:
                    copying.step(None)
            if leaving.passed():
                break
    except m2m_nf.Stays as error:
        tell(stays=str(error), session=session.id)
        return False
    tell(left=session.id, took=time.monotonic() - began, copied=copying.copied)
    return True


def serve(client: socket.socket, after: int) -> None:
    session = m2m_nf.accepted(client)
    server = socket.socket()
    if session is None:
        tell(accepted=None)
        client.close()
        return
    with session.connecting(server, session.destination):
        server.connect(session.destination)
    copying = Copying(client, server)
    copying.buffers[client] += TO_CLIENT
    copying.buffers[server] += TO_SERVER
    due, stays = 0.0, False
    try:
        while not copying.over:
            copying.step(_AGAIN if stays else None)
            if after >= 0 and copying.copied >= after and time.monotonic() >= due:
                if leave(session, copying):
                    break
                stays = True
                due = time.monotonic() + _AGAIN
    except OSError as error:
        tell(failed=str(error), session=session.id)
    client.close()
    server.close()


def main(port: int, agent: str, after: int) -> None:
    os.environ["M2M_SOCKETS"] = agent
    listener = socket.create_server(("0.0.0.0", port), backlog=1024)
    tell(listening=port)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client, after)).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
