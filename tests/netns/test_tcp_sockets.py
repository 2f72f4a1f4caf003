"""What the kernel tells of its sockets (m2m/bpf/tcp.bpf.c)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from m2m.datapath.tcp_sockets import State, TcpSockets
from m2m.protocol.flow import Flow, Proto
from tests.support.namespaces import NamespaceFactory

pytestmark = pytest.mark.needs("netns", "bpffs")

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair(netns: NamespaceFactory) -> Iterator[Pair]:
    """Both ends of a connection, in a namespace that the test is in."""
    place = netns("sockets")
    with place.entered(), socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
        with one, other:
            yield one, other


def flow(sock: socket.socket) -> Flow:
    return Flow.of(Proto.TCP, *sock.getsockname(), *sock.getpeername())


def test_both_ends_agree(pair: Pair) -> None:
    sockets = TcpSockets()
    one, other = (sockets.find(flow(sock)) for sock in pair)
    assert one is not None and other is not None
    assert one.at_rest and other.at_rest
    assert (one.sends, one.receives) == (other.receives, other.sends)
    assert (one.scale, one.peer_scale) == (other.peer_scale, other.scale)
    assert one.stamps and one.sack and not one.urgent
    assert one.state is other.state is State.ESTABLISHED
    assert one.mss + 12 == other.peer_mss  # timestamps are not counted
    sockets.close()


def test_what_is_not_read_and_what_is_over(pair: Pair) -> None:
    sockets = TcpSockets()
    one, other = pair
    one.sendall(b"four")
    found = sockets.find(flow(other))
    assert found is not None and not found.at_rest
    assert found.receives - found.read == 4
    other.recv(4)
    one.shutdown(socket.SHUT_WR)
    assert other.recv(1) == b""
    states = [sockets.find(flow(sock)) for sock in pair]
    # What has come may be acknowledged a little later.
    assert states[0] is not None and states[0].state in (State.FIN_WAIT1, State.FIN_WAIT2)
    assert states[1] is not None and states[1].state is State.CLOSE_WAIT
    assert states[1].receives == states[1].read == states[0].written
    assert sockets.find(flow(one)._replace(sport=1)) is None
    sockets.close()


def test_looking_leaves_no_file_open(pair: Pair) -> None:
    """An agent looks thousands of times while sessions are left."""
    sockets = TcpSockets()
    sockets.prepare()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        assert sockets.find(flow(pair[0])) is not None
    assert len(os.listdir("/proc/self/fd")) == before
    sockets.close()
