"""What the kernel says of a socket, asked by its 5-tuple."""

import socket

import pytest

from m2m.agent.sockets import _total, retransmissions
from m2m.protocol.flow import Flow


@pytest.fixture
def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        there, _ = listener.accept()
    return here, there


def test_a_live_socket_is_found_from_either_end(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    flow = Flow.of(6, *here.getsockname(), *here.getpeername())
    with here, there:
        here.sendall(b"x" * 1000)
        assert there.recv(1000, socket.MSG_WAITALL) == b"x" * 1000
        assert (retransmissions(flow), retransmissions(flow.reverse())) == (0, 0)
    assert retransmissions(flow._replace(sport=1)) is None


def test_only_tcp_over_ipv4_is_asked_for() -> None:
    assert retransmissions(Flow.of(17, "127.0.0.1", 1, "127.0.0.1", 2)) is None
    assert retransmissions(Flow.of(6, "::1", 1, "::1", 2)) is None


def test_the_count_is_read_from_tcp_info() -> None:
    """struct nlmsghdr, struct inet_diag_msg, an attribute of no interest, struct tcp_info."""
    info = bytes(100) + (77).to_bytes(4, "little") + bytes(140)
    attributes = b"\x05\0\x01\0x\0\0\0" + (4 + len(info)).to_bytes(2, "little") + b"\x02\0" + info
    header = bytes(4) + (20).to_bytes(2, "little") + bytes(10)
    assert _total(header + bytes(72) + attributes) == 77
    assert _total(header + bytes(72)) is None
    assert _total(bytes(4) + (2).to_bytes(2, "little") + bytes(10) + bytes(72) + attributes) is None
