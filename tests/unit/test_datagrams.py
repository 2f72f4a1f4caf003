"""Numbered datagrams over UDP, on the loopback, also through a proxy that mistreats some."""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from m2m.lab.traffic import datagrams
from m2m.lab.traffic.numbered import header_of
from tests.support.serving import serving

RATE = 20e6


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving("datagrams", "127.0.0.1") as port:
        yield port


@pytest.fixture(autouse=True)
def _short_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "_SETTLE", 0.1)


@pytest.mark.parametrize(("flows", "count", "size"), [(1, 1, 1400), (1, 32, 1400), (10, 4, 64)])
def test_all_arrive_in_order(port: int, flows: int, count: int, size: int) -> None:
    report = datagrams.send(
        "127.0.0.1", port, rate=RATE, seconds=0.1, size=size, flows=flows, count=count
    )
    up = report.up
    assert report.flows == flows and report.down is None
    assert up.sent == up.arrived > 0
    assert up.sent % count == 0
    assert not (up.lost or up.duplicated or up.reordered or up.corrupted or up.overrun)


def test_the_server_answers_each_with_one_of_its_own(port: int) -> None:
    report = datagrams.send("127.0.0.1", port, rate=RATE, seconds=0.1, count=8, both=True)
    assert report.down is not None
    assert report.down.sent == report.down.arrived == report.up.sent
    assert not (report.down.lost or report.down.reordered or report.down.corrupted)


def test_the_rate_is_what_was_asked_for_at_most(port: int) -> None:
    report = datagrams.send("127.0.0.1", port, rate=RATE, seconds=0.2)
    assert 0 < report.rate <= RATE * 1.1


def test_a_burst_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 46 datagrams of 1400 bytes, not 47"):
        datagrams.send("127.0.0.1", 9, rate=RATE, seconds=0.1, count=47)


def test_no_server_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "_PATIENCE", 0.3)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        with pytest.raises(TimeoutError, match=r"not answered for 0\.3 s"):
            datagrams.send("127.0.0.1", silent.getsockname()[1], rate=RATE, seconds=0.1)


@contextmanager
def mistreating(server_port: int, what: Callable[[int, bytes], list[bytes]]) -> Iterator[int]:
    """A proxy before the server: *what* says what becomes of a datagram with this number."""
    stop_read, stop_write = socket.socketpair()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as front,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as back,
        stop_read,
        stop_write,
    ):
        front.bind(("127.0.0.1", 0))
        back.connect(("127.0.0.1", server_port))

        def proxy() -> None:
            selector = selectors.DefaultSelector()
            for sock in (front, back, stop_read):
                selector.register(sock, selectors.EVENT_READ)
            client: tuple[str, int] | None = None
            while True:
                for key, _ in selector.select():
                    if key.fileobj is stop_read:
                        return
                    if key.fileobj is back:
                        assert client is not None
                        front.sendto(back.recv(1 << 16), client)
                        continue
                    data, client = front.recvfrom(1 << 16)
                    header = header_of(data)
                    for out in what(header.number, data) if header else [data]:
                        back.send(out)

        thread = threading.Thread(target=proxy)
        thread.start()
        yield front.getsockname()[1]
        stop_write.send(b".")
        thread.join()


def test_what_a_network_does_wrong_is_counted(port: int) -> None:
    kept: list[bytes] = []

    def mistreat(number: int, data: bytes) -> list[bytes]:
        match number:
            case 10 | 11:
                return []
            case 20:
                return [data, data, data]
            case 30:
                kept.append(data)
                return []
            case 33:
                return [data, kept.pop()]
            case 40:
                return [data[:-1] + bytes([data[-1] ^ 1])]
        return [data]

    with mistreating(port, mistreat) as proxy:
        report = datagrams.send("127.0.0.1", proxy, rate=RATE, seconds=0.5, count=4)
    up = report.up
    assert up.sent > 50
    assert (up.lost, up.duplicated, up.reordered, up.corrupted) == (3, 2, 1, 1)


def test_the_command_prints_json(port: int) -> None:
    command = [sys.executable, "-m", "m2m.lab.traffic.datagrams", "send", "127.0.0.1", str(port)]
    done = subprocess.run(
        [*command, "--rate", "10", "--seconds", "0.1", "--both"],
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout)
    assert report["up"]["sent"] == report["down"]["arrived"] > 0


def test_sigterm_ends_a_run_in_order(port: int) -> None:
    command = [sys.executable, "-m", "m2m.lab.traffic.datagrams", "send", "127.0.0.1", str(port)]
    with subprocess.Popen(
        [*command, "--rate", "10", "--seconds", "600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as run:
        assert run.stderr and run.stderr.readline() == b"sending\n"
        run.terminate()
        report = json.load(run.stdout)  # type: ignore[arg-type]
    assert run.returncode == 0
    assert report["up"]
