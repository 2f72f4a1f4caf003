"""How long connect() takes: a program that a lab runs inside a host.

``python -m m2m.lab.probe [--ask] [--pause S] ADDRESS COUNT PORT [PORT...]`` connects in turn,
COUNT times each, and prints a JSON object: port -> list of microseconds. With ``--ask`` it also
asks for a page and reads it to its end; with ``--pause`` it waits before each connection.
"""

from __future__ import annotations

import argparse
import json
import socket
import time

_ASKED = b"GET / HTTP/1.0\r\n\r\n"


def connect_times(
    address: str, count: int, ports: list[int], *, ask: bool = False, pause: float = 0.0
) -> dict[int, list[float]]:
    """Microseconds of each of *count* connects per port, with *ask* of whole requests; the ports
    take turns.

    Raises :exc:`OSError` when a connection is refused, or ends without an answer.
    """
    times: dict[int, list[float]] = {port: [] for port in ports}
    for _ in range(count):
        for port in ports:
            time.sleep(pause)
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                client.settimeout(10)
                start = time.perf_counter()
                client.connect((address, port))
                if ask:
                    _ask(client)
                times[port].append((time.perf_counter() - start) * 1e6)
    return times


def _ask(client: socket.socket) -> None:
    client.sendall(_ASKED)
    head = client.recv(4096)
    if b" 200 " not in head[:16]:
        raise OSError(f"the answer is {head[:40]!r}")
    while client.recv(4096):
        pass


def main() -> None:
    """Run as the module says."""
    parser = argparse.ArgumentParser(prog="m2m.lab.probe")
    parser.add_argument("--ask", action="store_true")
    parser.add_argument("--pause", type=float, default=0.0, metavar="S")
    parser.add_argument("address")
    parser.add_argument("count", type=int)
    parser.add_argument("ports", type=int, nargs="+")
    args = parser.parse_args()
    times = connect_times(args.address, args.count, args.ports, ask=args.ask, pause=args.pause)
    print(json.dumps(times))


if __name__ == "__main__":
    main()
