"""TCP connections taken out of the kernel and put in again, with all that waits in them."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator

import msgspec
import pytest

from m2m.lab.tcp_repair import NotMovable, freeze, put_in, take_out, thaw

pytestmark = pytest.mark.needs("root")

HOST = "127.9.8.7"  # where nobody else takes a port that is free for a moment


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection with small buffers."""
    with socket.create_server((HOST, 0)) as listener:
        here = socket.socket()
        here.bind((HOST, 0))
        for one in (here, listener):  # before the handshake: it tells the window
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        here.settimeout(10.0)
        here.connect(listener.getsockname())
        there = listener.accept()[0]
        there.settimeout(10.0)
        with here, there:
            yield here, there


def moved(sock: socket.socket) -> socket.socket:
    freeze(sock)
    image = take_out(sock)
    made = put_in(image)
    thaw(made, image)
    made.settimeout(10.0)
    return made


def fill(sock: socket.socket, data: Iterator[bytes]) -> bytes:
    """Send until nothing more goes: some of it has arrived, and some was never sent."""
    sent = b""
    sock.setblocking(False)
    try:
        for piece in data:
            sent += piece[: sock.send(piece)]
    except BlockingIOError:
        pass
    sock.settimeout(10.0)
    return sent


def read(sock: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        piece = sock.recv(size - len(got))
        assert piece, "it was ended"
        got += piece
    return got


def lines(mark: bytes) -> Iterator[bytes]:
    return (b"%s %09d\n" % (mark, number) for number in itertools.count())


def test_an_idle_connection_goes_on(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    ends = here.getsockname(), here.getpeername()
    with moved(here) as made:
        assert (made.getsockname(), made.getpeername()) == ends
        made.sendall(b"up")
        there.sendall(b"down")
        assert (there.recv(10), made.recv(10)) == (b"up", b"down")
        made.shutdown(socket.SHUT_WR)
        assert there.recv(10) == b""


def test_what_waits_in_all_four_queues_arrives_once(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    here, there = pair
    up, down = fill(here, lines(b"up")), fill(there, lines(b"down"))
    for _ in range(3):
        here = moved(here)
    with here:
        assert read(there, len(up)) == up
        assert read(here, len(down)) == down
        here.sendall(b"end")
        there.sendall(b"end")
        assert (there.recv(10), here.recv(10)) == (b"end", b"end")


def test_it_can_stay_after_all(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    freeze(here)
    thaw(here)
    here.sendall(b"x")
    assert there.recv(10) == b"x"


def test_an_image_that_cannot_be_put_in_ends_nothing(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    here, there = pair
    freeze(here)
    image = take_out(here)
    with pytest.raises(OSError, match="assign requested address"):
        put_in(msgspec.structs.replace(image, local=("192.0.2.1", image.local[1])))
    with put_in(image) as made:
        thaw(made, image)
        made.sendall(b"x")
        assert there.recv(10) == b"x"


def test_one_that_is_half_closed_is_not_movable(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    here, there = pair
    there.shutdown(socket.SHUT_WR)
    assert here.recv(1) == b""
    with pytest.raises(NotMovable, match="state 8"):
        freeze(here)
