"""How long connect() takes: a program that a lab runs inside a host.

``python -m m2m.lab.probe ADDRESS COUNT PORT [PORT...]`` connects to the ports in turn, COUNT
times each, and prints a JSON object: port -> list of microseconds.
"""

from __future__ import annotations

import json
import socket
import sys
import time


def connect_times(address: str, count: int, ports: list[int]) -> dict[int, list[float]]:
    """Microseconds of each of *count* connects per port; the ports take turns.

    Raises :exc:`OSError` when a connection is refused.
    """
    times: dict[int, list[float]] = {port: [] for port in ports}
    for _ in range(count):
        for port in ports:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                client.settimeout(10)
                start = time.perf_counter()
                client.connect((address, port))
                times[port].append((time.perf_counter() - start) * 1e6)
    return times


if __name__ == "__main__":
    target, number, *targets = sys.argv[1:]
    print(json.dumps(connect_times(target, int(number), [int(port) for port in targets])))
