"""The program that times connect()."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from m2m.lab.probe import connect_times


def test_each_port_has_its_samples() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        ports = [one.getsockname()[1], two.getsockname()[1]]
        command = [sys.executable, "-m", "m2m.lab.probe", "127.0.0.1", "3", *map(str, ports)]
        printed = subprocess.run(command, capture_output=True, check=True, timeout=30).stdout
    times = json.loads(printed)
    assert {int(port): len(samples) for port, samples in times.items()} == dict.fromkeys(ports, 3)
    assert all(sample > 0 for samples in times.values() for sample in samples)


def test_a_refused_connection_is_no_sample() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        connect_times("127.0.0.1", 1, [port])
