"""A small TCP proxy, as a program that knows of M2M: it tells the agent of its sockets.

``python -m tests.support.proxy_program PORT AGENT_SOCKET`` accepts on PORT, one thread for each
connection. A request is one line: ``GET NAME``. It is answered from the cache if NAME begins with
``hit``; ``NEW NAME`` opens another connection to the server for it, ``GET`` uses the one there is.
What it finds out is told line by line on standard output, as JSON.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading

from m2m.protocol.flow import Flow, Proto
from nf_adapters.sockets import SIZE, Kind, Message, decode, encode

_PATIENCE = 20.0  # s; a hundred ask at once, on what may be a slow machine
_SO_ORIGINAL_DST = 80
_ORIGINAL = struct.Struct("!2xH4s8x")


class Agent:
    """One conversation with the agent; another one when the agent is a new one."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._line: socket.socket | None = None
        self._number = 0

    def ask(self, kind: Kind, session: int, flow: Flow) -> Message | None:
        """None: the agent is away."""
        for _ in range(2):
            try:
                if self._line is None:
                    self._line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                    self._line.settimeout(_PATIENCE)
                    self._line.connect(self._path)
                self._number += 1
                self._line.send(encode(Message(kind, self._number, session, flow)))
                data = self._line.recv(SIZE)
                if data:
                    answer = decode(data)
                    assert answer.number == self._number
                    return answer
            except OSError:
                pass
            if self._line is not None:
                self._line.close()
                self._line = None
        return None


def tell(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def original(sock: socket.socket) -> tuple[str, int]:
    port, address = _ORIGINAL.unpack(sock.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16))
    return socket.inet_ntoa(address), port


class Conversation:
    """One client's connection, and the ones that go on with it."""

    def __init__(self, client: socket.socket, agent: str) -> None:
        self.client = client
        self.agent = Agent(agent)
        self.peer = client.getpeername()
        self.meant = original(client)
        self.servers: list[socket.socket] = []
        accepted = Flow.of(Proto.TCP, *self.peer, *self.meant)
        found = self.agent.ask(Kind.ACCEPTED, 0, accepted)
        self.session = found.session if found is not None and found.kind is Kind.FOUND else 0
        tell(
            accepted=self.peer, meant=self.meant,
            found=None if found is None else [found.kind.name, str(found.flow)],
        )  # fmt: skip

    def connect(self) -> socket.socket:
        """Raises :exc:`OSError`."""
        server = socket.socket()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(self.meant)
            server.bind((probe.getsockname()[0], 0))
        flow = Flow.of(Proto.TCP, *server.getsockname(), *self.meant)
        answer = self.agent.ask(Kind.CONNECTING, self.session, flow)
        tell(
            connecting=server.getsockname(), of=self.peer,
            answer=None if answer is None else [answer.kind.name, answer.text],
        )  # fmt: skip
        try:
            if answer is not None and answer.kind is Kind.REFUSED:
                raise ConnectionRefusedError(answer.text)
            server.connect(self.meant)
        except OSError:
            server.close()
            self.agent.ask(Kind.REVOKED, self.session, flow)
            raise
        self.servers.append(server)
        return server

    def fetch(self, verb: str, name: str) -> str:
        if name.startswith("hit"):
            return f"cached {name}"
        try:
            if verb == "NEW" and self.servers:
                self.servers.pop().close()
            server = self.servers[-1] if self.servers else self.connect()
            server.sendall(f"{name}\n".encode())
            return server.makefile().readline().strip()
        except OSError as error:
            return f"failed {type(error).__name__}"

    def run(self) -> None:
        with self.client:
            for line in self.client.makefile():
                verb, name = line.split()
                self.client.sendall(f"{self.fetch(verb, name)}\n".encode())
        for server in self.servers:
            server.close()


def main(port: int, agent: str) -> None:
    listener = socket.create_server(("0.0.0.0", port), backlog=1024)
    tell(listening=port)
    while True:
        client, _ = listener.accept()
        threading.Thread(
            target=lambda sock: Conversation(sock, agent).run(), args=(client,)
        ).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
