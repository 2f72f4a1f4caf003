"""When a program that copies may leave: what ``nf_adapters/sockets/relay.h`` and ``http.h`` make of
four streams of bytes, however these are cut into calls."""

from __future__ import annotations

import ctypes
import subprocess
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
NOTHING, RESPONSE, TUNNEL = range(3)
LOST = 9


class Stream(IntEnum):
    """Whom it comes from or goes to, and what ``streams_look`` calls it."""

    ASKS, SENT, FROM, TO = range(4)

    @property
    def is_server(self) -> bool:
        return self in (Stream.SENT, Stream.FROM)

    @property
    def is_read(self) -> bool:
        return self in (Stream.ASKS, Stream.FROM)


class Seen(NamedTuple):
    """What is known of a stream: how far it is, messages begun and done, octets."""

    state: int
    begun: int
    done: int
    body: int
    fed: int


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    built = tmp_path_factory.mktemp("relay") / "streams.so"
    source = ROOT / "tests/core/relay_streams.c"
    subprocess.run(
        ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-shared", "-fPIC",
         f"-I{ROOT}/nf_adapters/sockets", str(source), "-o", str(built)],
        check=True,
    )  # fmt: skip
    found = ctypes.CDLL(str(built))
    found.streams_new.restype = ctypes.c_void_p
    return found


class Relay:
    """The four streams of a program, fed as its calls would."""

    def __init__(self, library: ctypes.CDLL, *, tunnel: bool = False) -> None:
        self._library = library
        self._all = ctypes.c_void_p(library.streams_new(int(tunnel)))

    def __call__(self, stream: Stream, *pieces: bytes) -> Relay:
        for piece in pieces:
            self._library.streams_feed(
                self._all, int(stream.is_server), int(stream.is_read), piece,
                ctypes.c_size_t(len(piece)),
            )  # fmt: skip
        return self

    @property
    def copies(self) -> int:
        return self._library.streams_copy(self._all)

    def is_due(self, after: int) -> bool:
        return bool(self._library.streams_are_due(self._all, ctypes.c_uint64(after)))

    @property
    def is_off(self) -> bool:
        return bool(self._library.streams_are_off(self._all))

    @property
    def is_even(self) -> bool:
        return bool(self._library.streams_are_even(self._all))

    def look(self, stream: Stream) -> Seen:
        numbers = (ctypes.c_uint64 * 5)()
        self._library.streams_look(self._all, int(stream), numbers)
        return Seen(*numbers)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """In pieces, some of them perhaps empty."""
    ends = sorted(place % (len(data) + 1) for place in places)
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


CUTS = st.lists(st.integers(0, 10_000), max_size=20)

GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
SERVER = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nCache-Control: max-age=0, no-store\r\n\r\n"
CLIENT = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nVia: 1.1 squid (squid/5.7)\r\n\r\n"
KEPT = SERVER.replace(b"no-store", b"public")


def in_a_response(relay: Relay, *, server: bytes = SERVER, client: bytes = CLIENT) -> Relay:
    """400 octets of a body have come through."""
    relay(Stream.ASKS, GET)(Stream.SENT, GET)
    return relay(Stream.FROM, server + bytes(400))(Stream.TO, client + bytes(400))


def test_a_response_is_left_in_its_middle(library: ctypes.CDLL) -> None:
    relay = in_a_response(Relay(library))
    assert relay.copies == RESPONSE
    assert relay.is_due(400)
    assert not relay.is_due(401)
    assert relay.is_even
    assert not relay.is_off
    assert not relay(Stream.FROM, bytes(1)).is_even
    assert relay(Stream.TO, bytes(1)).is_even
    relay(Stream.FROM, bytes(300))(Stream.TO, bytes(300))
    assert not relay.is_due(400), "what is left is not worth while"


def test_a_response_that_ends_meanwhile(library: ctypes.CDLL) -> None:
    relay = in_a_response(Relay(library))
    relay(Stream.FROM, bytes(600))(Stream.TO, bytes(599))
    assert not relay.is_even
    assert relay(Stream.TO, bytes(1)).is_even
    assert not relay.is_off
    assert not relay.is_due(1)
    assert relay(Stream.ASKS, b"G").is_off


@pytest.mark.parametrize(
    "server",
    [
        KEPT,
        SERVER.replace(b"200", b"203"),
        SERVER.replace(b"200", b"404"),
        SERVER.replace(b"1000", b"1001"),
        SERVER.replace(b"no-store", b'no-cache="a, no-store, b"'),
        SERVER.replace(b"no-store", b"no-storely"),
        SERVER.replace(b"Cache", b"X-Cache"),
        SERVER.replace(b"Content-Length: 1000", b"Transfer-Encoding: chunked"),
        SERVER.replace(b"Content-Length: 1000", b"Connection: close"),
    ],
)
def test_what_is_not_left(library: ctypes.CDLL, server: bytes) -> None:
    assert in_a_response(Relay(library), server=server).copies == NOTHING


@pytest.mark.parametrize(
    "server",
    [
        SERVER.replace(b"no-store", b"private"),
        SERVER.replace(b"no-store", b'private="x-user"'),
        SERVER.replace(b"no-store", b'no-cache="a, \\", b", NO-STORE'),
        SERVER.replace(b"Content-Length: ", b"content-length:\t "),
        SERVER.replace(b"1000", b"1000 \t"),
        SERVER.replace(b"\r\nCache", b"\r\nContent-Length: 1000\r\nCache"),
        b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n" + SERVER,
        SERVER.replace(b"OK\r\n", b"OK\r\nX-Long: " + b"x" * 9000 + b"\r\n"),
    ],
)
def test_what_is_left(library: ctypes.CDLL, server: bytes) -> None:
    assert in_a_response(Relay(library), server=server).copies == RESPONSE


def test_partial_content_is_left_if_it_stays_so(library: ctypes.CDLL) -> None:
    partial = [head.replace(b"200", b"206") for head in (SERVER, CLIENT)]
    assert in_a_response(Relay(library), server=partial[0], client=partial[1]).copies == RESPONSE
    assert in_a_response(Relay(library), server=partial[0]).copies == NOTHING


@pytest.mark.parametrize(
    "asked",
    [
        GET.replace(b"GET", b"POST"),
        GET.replace(b"GET", b"HEAD"),
        GET.replace(b"/a HTTP/1.1", b"/a"),
        GET.replace(b"Host", b"Content-Length: 2\r\nHost") + b"hi",
        GET.replace(b"Host", b"Transfer-Encoding: chunked\r\nHost") + b"0\r\n\r\n",
    ],
)
def test_other_requests(library: ctypes.CDLL, asked: bytes) -> None:
    relay = Relay(library)(Stream.ASKS, asked)(Stream.SENT, asked)
    relay(Stream.FROM, SERVER + bytes(400))(Stream.TO, CLIENT + bytes(400))
    assert relay.copies == NOTHING


@pytest.mark.parametrize("places", [[], [len(GET)], [len(GET) + 1], [5]])
def test_a_request_that_was_read_behind_it_keeps_the_program_in(
    library: ctypes.CDLL, places: list[int]
) -> None:
    """The program may have more in hand: only the last request's response is left."""
    relay = Relay(library)(Stream.ASKS, *cut(GET + GET, places))(Stream.SENT, GET)
    relay(Stream.FROM, SERVER + bytes(400))(Stream.TO, CLIENT + bytes(400))
    assert relay.copies == NOTHING
    relay(Stream.FROM, bytes(600))(Stream.TO, bytes(600))
    relay(Stream.SENT, GET)
    relay(Stream.FROM, SERVER + bytes(400))(Stream.TO, CLIENT + bytes(400))
    assert relay.copies == RESPONSE
    assert relay(Stream.ASKS, b"G").is_off


def test_the_next_request_has_its_own_response(library: ctypes.CDLL) -> None:
    """One that the cache answers is not the server's, whatever its length."""
    relay = Relay(library)(Stream.ASKS, GET)(Stream.SENT, GET)
    relay(Stream.FROM, SERVER + bytes(400))(Stream.TO, CLIENT + bytes(1000))
    relay(Stream.ASKS, GET)(Stream.TO, CLIENT)
    assert relay.copies == NOTHING


def test_other_messages_are_followed(library: ctypes.CDLL) -> None:
    """Chunks, trailers, bodies of requests, responses without one: what comes behind is found."""
    post = (
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1a;x=y\r\n"
        + bytes(26)
        + (b"\r\n0\r\nTrailer: HTTP/1.1\r\n\r\n")
    )
    put = b"\r\nPUT / HTTP/1.1\r\nContent-Length: 4\r\n\r\nGET "
    answers = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n"
    )
    relay = Relay(library)(Stream.ASKS, post + put)(Stream.TO, answers)
    assert relay.look(Stream.ASKS)[1:] == (2, 2, 4, len(post + put))
    assert relay.look(Stream.TO)[1:] == (2, 2, 10, len(answers))
    relay(Stream.ASKS, GET)(Stream.SENT, GET)
    relay(Stream.FROM, SERVER + bytes(400))(Stream.TO, CLIENT + bytes(400))
    assert relay.copies == RESPONSE


@pytest.mark.parametrize(
    "text",
    [
        SERVER.replace(b"\r\n", b"\n"),
        SERVER.replace(b"OK\r\n", b"OK\n"),
        SERVER.replace(b"OK\r\n", b"OK\r\r\n"),
        SERVER.replace(b"OK", b"O\0K"),
        SERVER.replace(b"Cache", b" Cache"),
        SERVER.replace(b"Control:", b"Control :"),
        SERVER.replace(b"Cache-Control", b""),
        SERVER.replace(b"Cache-Control:", b"Cache-Control"),
        SERVER.replace(b"1000", b"1000, 1000"),
        SERVER.replace(b"1000", b"+1000"),
        SERVER.replace(b"1000", b"-1"),
        SERVER.replace(b"1000", b""),
        SERVER.replace(b"1000", b"10 00"),
        SERVER.replace(b"1000", b"1" * 19),
        SERVER.replace(b"1000", b" " * 300 + b"1000"),
        SERVER.replace(b"Cache", b"Content-Length: 999\r\nCache"),
        SERVER.replace(b"Cache", b"Transfer-Encoding: chunked\r\nCache"),
        SERVER.replace(b"Content-Length: 1000", b"Transfer-Encoding: gzip, chunked"),
        SERVER.replace(b"HTTP/1.1", b"HTTP/2"),
        SERVER.replace(b"HTTP/1.1 200", b"HTTP/1.1 2000"),
        SERVER.replace(b"HTTP/1.1 200", b"HTTP/1.1 20"),
        SERVER.replace(b"HTTP/1.1 200 OK", b"ICY 200 OK everybody"),
        b"\r\n" + SERVER,
        b"x" * 70_000,
        *(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk
            for chunk in (b"g\r\n", b"\r\n", b"1\r\nx\n", b"1g\r\n", b"f" * 16 + b"\r\n", b"-1\r\n")
        ),
    ],
)  # fmt: skip
@settings(max_examples=20)
@given(places=CUTS)
def test_malformed(library: ctypes.CDLL, text: bytes, places: list[int]) -> None:
    relay = Relay(library)(Stream.ASKS, GET)(Stream.SENT, GET)
    relay(Stream.FROM, *cut(text + bytes(400), places))(Stream.TO, CLIENT + bytes(400))
    assert relay.look(Stream.FROM).state == LOST
    assert relay.copies == NOTHING


@given(*[CUTS] * 4)
def test_cuts_change_nothing(
    library: ctypes.CDLL, asks: list[int], sent: list[int], came: list[int], went: list[int]
) -> None:
    chunked = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n1\r\n23\r\n0\r\nA: b\r\n\r\n"
    )
    relay = Relay(library)
    for one, two, last in (
        (GET, chunked, chunked),
        (GET, SERVER + bytes(400), CLIENT + bytes(400)),
    ):
        relay(Stream.ASKS, *cut(one, asks))(Stream.SENT, *cut(one, sent))
        relay(Stream.FROM, *cut(two, came))(Stream.TO, *cut(last, went))
    assert relay.copies == RESPONSE
    assert relay.is_due(400)
    assert relay.is_even
    assert [relay.look(stream).done for stream in Stream] == [2, 2, 1, 1]


UPGRADE = b"GET /chat HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
SWITCHES = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


@given(*[CUTS] * 3)
def test_an_upgrade_is_a_tunnel(
    library: ctypes.CDLL, head: list[int], down: list[int], up: list[int]
) -> None:
    relay = Relay(library)(Stream.ASKS, *cut(UPGRADE, head))(Stream.SENT, *cut(UPGRADE, head))
    relay(Stream.FROM, *cut(SWITCHES + b"welcome", head))
    assert relay.copies == NOTHING
    relay(Stream.TO, *cut(SWITCHES, head))
    assert relay.copies == TUNNEL
    assert not relay.is_even
    relay(Stream.TO, *cut(b"welcome", down))
    assert relay.is_even
    relay(Stream.ASKS, *cut(GET, up))
    assert not relay.is_even
    relay(Stream.SENT, *cut(GET, down))
    assert relay.is_even
    assert relay.is_due(7 + len(GET))
    assert not relay.is_due(8 + len(GET))
    assert not relay.is_off


def test_a_client_that_does_not_wait_for_the_tunnel(library: ctypes.CDLL) -> None:
    """What the program has of it in hand is not known: it stays."""
    relay = Relay(library)(Stream.ASKS, UPGRADE + b"at once")(Stream.SENT, UPGRADE)
    relay(Stream.FROM, SWITCHES)(Stream.TO, SWITCHES)
    assert relay.copies == NOTHING


CONNECT = b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"
CONNECTED = b"HTTP/1.0 200 Connection established\r\nProxy-agent: a\r\n\r\n"


@given(*[CUTS] * 3)
def test_connect_is_a_tunnel(
    library: ctypes.CDLL, head: list[int], down: list[int], up: list[int]
) -> None:
    """What goes to the server and comes from it is no message of the proxy's."""
    relay = Relay(library)(Stream.ASKS, *cut(CONNECT + b"at once", head))
    relay(Stream.FROM, b"first")
    assert relay.copies == NOTHING
    relay(Stream.TO, *cut(CONNECTED, head))
    assert relay.copies == NOTHING, "which connection is the tunnel's is not known yet"
    relay(Stream.SENT, *cut(b"at once", up))
    assert relay.copies == TUNNEL
    assert not relay.is_even
    relay(Stream.TO, *cut(b"first", down))
    assert relay.is_even
    relay(Stream.FROM, *cut(SERVER, down))
    assert not relay.is_even
    relay(Stream.TO, *cut(SERVER, up))(Stream.ASKS, GET)
    assert not relay.is_even
    relay(Stream.SENT, *cut(GET, up))
    assert relay.is_even
    assert relay.is_due(12 + len(SERVER) + len(GET))
    assert not relay.is_due(13 + len(SERVER) + len(GET))
    assert not relay.is_off


@pytest.mark.parametrize(
    "answer",
    [CONNECTED.replace(b"200", b"403"), CONNECTED.replace(b"Proxy-agent: a", b"Content-Length: 5")],
)
def test_connect_is_refused(library: ctypes.CDLL, answer: bytes) -> None:
    relay = Relay(library)(Stream.ASKS, CONNECT)(Stream.TO, answer)(Stream.SENT, b"hello")
    assert relay.copies == NOTHING


@given(*[CUTS] * 2)
def test_a_tunnel_from_the_first_octet_on(
    library: ctypes.CDLL, down: list[int], up: list[int]
) -> None:
    relay = Relay(library, tunnel=True)
    assert relay.copies == TUNNEL
    relay(Stream.ASKS, *cut(bytes(70), up))(Stream.SENT, *cut(bytes(70), down))
    relay(Stream.FROM, *cut(bytes(30), down))
    assert not relay.is_even
    relay(Stream.TO, *cut(bytes(30), up))
    assert relay.is_even
    assert relay.is_due(100)
    assert not relay.is_due(101)
