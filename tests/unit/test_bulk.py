"""Checked bytes over TCP, on the loopback, also through a proxy that changes some of them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from m2m.lab.traffic import blocks, bulk
from tests.support.serving import serving


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving("bulk") as port:
        yield port


@pytest.mark.parametrize("flows", [1, 20])
def test_bytes_go_up(port: int, flows: int) -> None:
    report = bulk.send("127.0.0.1", port, seconds=0.1, flows=flows)
    assert report.flows == flows and report.seconds >= 0.1
    assert report.down is None and report.up is not None
    assert report.up.bytes >= blocks.SIZE * flows and report.up.wrong == 0


def test_bytes_go_down(port: int) -> None:
    report = bulk.send("127.0.0.1", port, seconds=0.1, flows=2, ways="down")
    assert report.up is None and report.down is not None
    assert report.down.bytes >= blocks.SIZE * 2 and report.down.wrong == 0


def test_bytes_go_both_ways_at_once(port: int) -> None:
    report = bulk.send("127.0.0.1", port, seconds=0.1, ways="both")
    assert report.up and report.down
    assert report.up.bytes and report.down.bytes
    assert (report.up.wrong, report.down.wrong) == (0, 0)


@contextmanager
def flipping(server_port: int, places: set[int], way: str) -> Iterator[int]:
    """A proxy before the server that changes the bytes at these *places* of one direction."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pump(source: socket.socket, sink: socket.socket, wrong: set[int]) -> None:
            at = 0
            while data := bytearray(source.recv(1 << 16)):
                for place in wrong:
                    if at <= place < at + len(data):
                        data[place - at] ^= 0x55
                at += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

        def proxy() -> None:
            client = listener.accept()[0]
            with client, socket.create_connection(("127.0.0.1", server_port)) as server:
                up = threading.Thread(
                    target=pump, args=(client, server, places if way == "up" else set())
                )
                up.start()
                pump(server, client, places if way == "down" else set())
                up.join()

        thread = threading.Thread(target=proxy)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.mark.parametrize("way", ["up", "down"])
def test_wrong_bytes_are_counted_where_they_arrive(port: int, way: str) -> None:
    first = blocks.SIZE if way == "up" else 0  # the client greets before its data
    places = {first + 100, first + 5000, first + blocks.SIZE + 1}
    with flipping(port, places, way) as proxy:
        report = bulk.send("127.0.0.1", proxy, seconds=0.2, ways="both")
    assert report.up and report.down
    assert (report.up.wrong, report.down.wrong) == ((3, 0) if way == "up" else (0, 3))


def test_a_peer_that_ends_in_mid_stream_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        with pytest.raises(ConnectionError):
            bulk.send("127.0.0.1", listener.getsockname()[1], seconds=1)
        thread.join()


def test_a_broken_connection_does_not_end_the_server(port: int) -> None:
    socket.create_connection(("127.0.0.1", port)).close()
    assert bulk.send("127.0.0.1", port, seconds=0.05).up


def test_the_command_prints_json(port: int) -> None:
    command = [sys.executable, "-m", "m2m.lab.traffic.bulk", "send", "127.0.0.1", str(port)]
    done = subprocess.run(
        [*command, "--seconds", "0.1", "--flows", "2", "--ways", "both"],
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout)
    assert report["flows"] == 2
    assert report["up"]["wrong"] == report["down"]["wrong"] == 0


def test_sigterm_ends_a_run_in_order(port: int) -> None:
    command = [sys.executable, "-m", "m2m.lab.traffic.bulk", "send", "127.0.0.1", str(port)]
    with subprocess.Popen(
        [*command, "--seconds", "600"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stderr and run.stderr.readline() == b"sending\n"
        run.terminate()
        report = json.load(run.stdout)  # type: ignore[arg-type]
    assert run.returncode == 0
    assert report["up"]
