"""Sessions by the thousand: programs that a lab runs inside its hosts.

``python -m m2m.lab.bench.echo serve FIRST-PORT COUNT`` answers every datagram on COUNT ports.
``python -m m2m.lab.bench.echo open ADDRESS FIRST-PORT COUNT SESSIONS`` opens that many UDP
sessions, each by one datagram that must come back, and prints ``{"seconds", "retries"}``.
A session is a source port with a destination port, so few sockets make many sessions.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections.abc import Iterator

_WINDOW = 64  # sessions being opened at a time
_PATIENCE = 2.0  # s until a datagram that got no answer is sent again
_ATTEMPTS = 5


def serve(first: int, count: int) -> None:
    """Echo datagrams on ports *first* to *first + count - 1* until killed."""
    poll = select.epoll()
    sockets: dict[int, socket.socket] = {}
    for port in range(first, first + count):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sock.bind(("", port))
        sock.setblocking(False)
        poll.register(sock, select.EPOLLIN)
        sockets[sock.fileno()] = sock
    print("listening", flush=True)
    while True:
        for number, _ in poll.poll():
            data, peer = sockets[number].recvfrom(64)
            sockets[number].sendto(data, peer)


def open_sessions(address: str, first: int, count: int, sessions: int) -> dict[str, float]:
    """Open *sessions* UDP sessions; returns the seconds it took and how many tries were repeated.

    Raises :exc:`TimeoutError` when a session does not come up.
    """
    poll = select.epoll()
    sockets: dict[int, socket.socket] = {}

    def wanted() -> Iterator[tuple[socket.socket, int]]:
        left = sessions
        while left:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("", 0))
            sock.setblocking(False)
            poll.register(sock, select.EPOLLIN)
            sockets[sock.fileno()] = sock
            for port in range(first, first + min(count, left)):
                yield sock, port
            left -= min(count, left)

    todo = wanted()
    waiting: dict[tuple[int, int], tuple[float, int]] = {}  # -> when sent, how often
    done = retries = 0
    start = time.monotonic()
    while done < sessions:
        while len(waiting) < _WINDOW and (one := next(todo, None)) is not None:
            one[0].sendto(b"x", (address, one[1]))
            waiting[one[0].fileno(), one[1]] = time.monotonic(), 1
        for number, _ in poll.poll(0.1):
            _, (_, port) = sockets[number].recvfrom(64)
            done += waiting.pop((number, port), None) is not None
        now = time.monotonic()
        for (number, port), (sent, tries) in list(waiting.items()):
            if now - sent > _PATIENCE:
                if tries == _ATTEMPTS:
                    raise TimeoutError(f"no answer from {address}:{port} after {tries} tries")
                retries += 1
                sockets[number].sendto(b"x", (address, port))
                waiting[number, port] = now, tries + 1
    return {"seconds": time.monotonic() - start, "retries": retries}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", port, number]:
            serve(int(port), int(number))
        case ["open", target, port, number, total]:
            print(json.dumps(open_sessions(target, int(port), int(number), int(total))))
        case _:
            sys.exit(__doc__)
