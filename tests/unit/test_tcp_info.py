"""What the kernel tells about a TCP socket."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from m2m.lab.traffic import tcp_info

_SIZES = {"__u8": 1, "__u32": 4, "__u64": 8}


def test_a_connection_on_the_loopback() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as server,
    ):
        client.sendall(b"x" * 1000)
        assert server.recv(1000)
        info = tcp_info.read(client)
    assert info.retransmitted == info.unneeded == info.out_of_order == 0
    assert 0 < info.rtt < 1


def test_another_socket_is_refused() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(OSError):
        tcp_info.read(sock)


def test_fields_are_where_the_kernels_header_has_them() -> None:
    """Each field as the header declares it gets the number of its place as its value."""
    text = Path("/usr/include/linux/tcp.h").read_text()
    body = re.search(r"struct tcp_info \{(.*?)\n\};", text, re.DOTALL)
    assert body is not None
    raw, values, bits = b"", dict[str, int](), 0
    for kind, names in re.findall(r"^\s*(__u\w+)\s+([^;]*);", body[1], re.MULTILINE):
        if ":" in names:  # two bytes of bit fields
            bits += 1
            raw += b"\0"
            continue
        raw += b"\0" * (-len(raw) % _SIZES[kind])
        values[names] = len(values) if _SIZES[kind] > 1 else 0
        raw += values[names].to_bytes(_SIZES[kind], "little")
    assert bits == 2

    class Recorded:
        def getsockopt(self, level: int, name: int, size: int) -> bytes:
            assert (level, name) == (socket.IPPROTO_TCP, socket.TCP_INFO)
            return raw[:size]

    info = tcp_info.read(Recorded())  # type: ignore[arg-type]
    assert info == (
        values["tcpi_total_retrans"],
        values["tcpi_dsack_dups"],
        values["tcpi_rcv_ooopack"],
        values["tcpi_rtt"] / 1e6,
    )
