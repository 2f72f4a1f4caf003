"""What real processes tell of their sockets, by the preload library or by themselves, to an agent
that the test plays."""

from __future__ import annotations

import os
import signal
import socket
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from m2m.protocol.flow import Flow
from nf_adapters.sockets import Kind, Message
from tests.support import proxied
from tests.support.namespaces import Namespace, NamespaceFactory
from tests.support.proxied import (
    PORT,
    PROXY,
    SERVER,
    Agent,
    agent,
    client,
    outgoing,
    running,
    supersession,
)

pytestmark = pytest.mark.needs("netns", "nft")


@pytest.fixture
def place(netns: NamespaceFactory) -> Namespace:
    return proxied.host(netns)


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Agent]:
    async with agent(tmp_path / "agent.proxy") as made:
        yield made


@pytest.fixture
def server(place: Namespace) -> Iterator[socket.socket]:
    with place.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((SERVER, PORT))
        listener.listen(64)
        listener.settimeout(20)
        yield listener


async def test_tokens_tell_connections_apart(
    place: Namespace, peer: Agent, server: socket.socket
) -> None:
    """Accepted one after the other, continued in another order, each by another call."""
    text = """
    accepted = [listener.accept()[0] for _ in range(3)]
    tokens = [original(sock) for sock in accepted]
    tell(tokens)
    for number in (1, 2, 0):
        out = socket.create_connection(tokens[number])
        tell(out.getpeername())
    signal.pause()
    """
    async with running(place, peer.path, text) as program:
        clients = [await client(place) for _ in range(3)]
        (tokens,) = await program.told()
        assert {address for address, _ in tokens} == {SERVER}
        assert len({port for _, port in tokens} - {PORT}) == 3
        for place_in_order, number in enumerate((1, 2, 0)):
            assert await program.told() == [[SERVER, PORT]]
            there, _ = server.accept()
            said = peer.of(Kind.CONNECTING)[place_in_order]
            assert said.flow == outgoing(there)
            assert said.session == peer.sessions[supersession(clients[number])]
            there.close()
        assert len(peer.of(Kind.ACCEPTED)) == 3
        assert not peer.of(Kind.REVOKED)
        for sock in clients:
            sock.close()


async def test_a_token_is_kept_until_all_its_sockets_are_closed(
    place: Namespace, peer: Agent, server: socket.socket
) -> None:
    """It goes round all tokens; one that names a pooled connection is not given again."""
    text = """
    first, _ = listener.accept()
    token = original(first)
    pooled = socket.create_connection(token)
    first.close()
    seen = set()
    for _ in range(200):
        sock, _ = listener.accept()
        seen.add(original(sock)[1])
        sock.close()
    tell(token[1] in seen, len(seen))
    late = socket.create_connection(token)
    tell(late.getpeername())
    """
    async with running(place, peer.path, text) as program:
        for _ in range(201):
            (await client(place)).close()
        assert await program.told() == [False, 200]
        assert await program.told() == [[SERVER, PORT]]
        assert len({said.session for said in peer.of(Kind.CONNECTING)}) == 1
        assert await program.ended() == 0


@pytest.mark.parametrize("way", ["fork", "thread", "last"])
async def test_a_process_or_thread_continues_what_it_was_made_for(
    place: Namespace, peer: Agent, server: socket.socket, way: str
) -> None:
    text = f"""
    def serve(sock):
        out = socket.create_connection((SERVER, PORT))
        sock.sendall(b"%d" % out.getsockname()[1])
    for number in range(10):
        sock, _ = listener.accept()
        if "{way}" == "last":
            serve(sock)
        elif "{way}" == "thread":
            threading.Thread(target=serve, args=[sock]).start()
        elif os.fork() == 0:
            serve(sock)
            os._exit(0)
        sock.close() if "{way}" == "fork" else None
    signal.pause()
    """
    more = {"M2M_SOCKETS_LAST": "1"} if way == "last" else {}
    async with running(place, peer.path, text, **more):
        clients = [await client(place) for _ in range(10)]
        for sock in clients:
            port = int(await trio.to_thread.run_sync(sock.recv, 10))
            (said,) = [m for m in peer.of(Kind.CONNECTING) if m.flow and m.flow.sport == port]
            assert said.session == peer.sessions[supersession(sock)]
        assert not peer.of(Kind.REVOKED)


async def test_an_event_loop_without_tokens_is_left_alone(
    place: Namespace, peer: Agent, server: socket.socket
) -> None:
    text = """
    accepted = [listener.accept()[0] for _ in range(2)]
    out = socket.create_connection((SERVER, PORT))
    tell("connected")
    """
    async with running(place, peer.path, text) as program:
        clients = [await client(place) for _ in range(2)]
        assert await program.told() == ["connected"]
        assert await program.ended() == 0
        assert not peer.heard
        for sock in clients:
            sock.close()


async def test_failed_connects_are_revoked(place: Namespace, peer: Agent) -> None:
    """Nobody listens: by a call that waits, by one that does not, and one that is given up."""
    text = """
    sock, _ = listener.accept()
    token = original(sock)
    tell(refused(token))
    out = socket.socket()
    out.setblocking(False)
    code = out.connect_ex(token)
    poll = select.poll()
    poll.register(out, select.POLLOUT)
    poll.poll(20000)
    tell(errno.errorcode[code], errno.errorcode[out.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)])
    out.close()
    other = socket.socket()
    other.setblocking(False)
    other.connect_ex(token)
    again = other.dup()
    other.close()
    tell("closed one")
    sys.stdin.readline()
    again.close()
    tell("closed all")
    """
    async with running(place, peer.path, text) as program:
        here = await client(place)
        assert await program.told() == ["ECONNREFUSED"]
        assert await program.told() == ["EINPROGRESS", "ECONNREFUSED"]
        assert await program.told() == ["closed one"]
        assert await program.told() == ["closed all"]
        announced, revoked = peer.of(Kind.CONNECTING), peer.of(Kind.REVOKED)
        assert [said.flow for said in announced] == [said.flow for said in revoked]
        assert len(revoked) == 3
        here.close()


async def test_what_stood_is_not_revoked(
    place: Namespace, peer: Agent, server: socket.socket
) -> None:
    """However it ends: closed here, closed there, reset."""
    text = """
    sock, _ = listener.accept()
    token = original(sock)
    for way in range(3):
        out = socket.socket()
        out.setblocking(False)
        assert out.connect_ex(token) == errno.EINPROGRESS
        poll = select.poll()
        poll.register(out, select.POLLOUT)
        poll.poll(20000)
        assert out.connect_ex(token) in (0, errno.EISCONN, errno.ECONNRESET)
        if way:
            poll.register(out, select.POLLIN)
            poll.poll(20000)
        out.close()
        tell(way)
    """
    async with running(place, peer.path, text) as program:
        here = await client(place)
        for way in range(3):
            there, _ = await trio.to_thread.run_sync(server.accept)
            if way == 2:
                there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            if way:
                there.close()
            assert await program.told() == [way]
            there.close()
        assert len(peer.of(Kind.CONNECTING)) == 3
        assert not peer.of(Kind.REVOKED)
        here.close()


async def test_the_next_backend_is_tried(
    place: Namespace, peer: Agent, server: socket.socket
) -> None:
    """As Balance's child does: each attempt is announced, those that fail are revoked."""
    text = f"""
    sock, _ = listener.accept()
    if os.fork():
        sock.close()
        signal.pause()
    tell(refused((SERVER, 81)), refused(("{PROXY}", 82)))
    out = socket.create_connection((SERVER, PORT))
    side = socket.create_connection((SERVER, PORT))
    tell("connected")
    signal.pause()
    """
    async with running(place, peer.path, text) as program:
        here = await client(place)
        assert await program.told() == ["ECONNREFUSED", "ECONNREFUSED"]
        assert await program.told() == ["connected"]
        assert [m.flow.dport for m in peer.of(Kind.CONNECTING) if m.flow] == [81, 82, PORT]
        assert [m.flow.dport for m in peer.of(Kind.REVOKED) if m.flow] == [81, 82]
        here.close()
        for pid in place.pids():
            os.kill(pid, signal.SIGKILL)


async def test_descriptors_that_are_closed_unseen(
    place: Namespace, peer: Agent, server: socket.socket
) -> None:
    """The library does not see close_range() of the kernel itself, nor what exec leaves open."""
    text = """
    import ctypes
    libc = ctypes.CDLL(None)
    sock, _ = listener.accept()
    child = os.fork()
    if child == 0:
        number = sock.detach()
        libc.syscall(3, number)  # close
        out = socket.socket()
        assert out.fileno() == number
        out.connect((SERVER, PORT))
        tell("connected", number)
        os._exit(0)
    os.waitpid(child, 0)
    sock.close()
    """
    async with running(place, peer.path, text) as program:
        here = await client(place)
        told, _ = await program.told()
        assert told == "connected"
        assert await program.ended() == 0
        here.close()


async def test_a_policy_that_fails_closed_makes_connect_fail(
    place: Namespace, peer: Agent, server: socket.socket
) -> None:
    text = """
    sock, _ = listener.accept()
    tell(refused(original(sock)))
    """
    peer.answer = lambda said: (
        peer.usual(said) if said.kind is Kind.ACCEPTED else said._replace(kind=Kind.REFUSED)
    )
    async with running(place, peer.path, text) as program:
        here = await client(place)
        assert await program.told() == ["ECONNREFUSED"]
        assert await program.ended() == 0
        assert not peer.of(Kind.REVOKED)
        here.close()


@pytest.mark.parametrize("state", ["absent", "passes", "unknown", "hangs", "dies"])
async def test_without_the_agent_all_is_as_without_m2m(
    place: Namespace, peer: Agent, server: socket.socket, tmp_path: Path, state: str
) -> None:
    text = """
    for _ in range(3):
        sock, _ = listener.accept()
        out = socket.create_connection(original(sock))
        tell(out.getpeername())
    """
    if state == "passes":
        peer.answer = lambda said: (
            peer.usual(said) if said.kind is Kind.ACCEPTED
            else said._replace(kind=Kind.UNKNOWN, text="no policy")
        )  # fmt: skip
    elif state == "unknown":
        peer.answer = lambda said: Message(Kind.UNKNOWN, said.number)
    elif state == "hangs":
        peer.answer = lambda said: None
    elif state == "dies":
        peer.answer = lambda said: Message(Kind.GONE, said.number + 1)
    path = tmp_path / "nobody" if state == "absent" else peer.path
    async with running(place, path, text) as program:
        here = [await client(place) for _ in range(3)]
        for _ in here:
            assert await program.told() == [[SERVER, PORT]]
        assert await program.ended() == 0
        if state == "hangs":
            assert len(peer.heard) == 2  # it is not asked again for a while
        for sock in here:
            sock.close()


async def test_an_agent_that_is_started_again_is_asked(
    place: Namespace, server: socket.socket, tmp_path: Path
) -> None:
    text = """
    for _ in range(2):
        sock, _ = listener.accept()
        out = socket.create_connection(original(sock))
        tell(out.getpeername())
    """
    path = tmp_path / "agent.proxy"
    async with running(place, path, text) as program:
        for _ in range(2):
            async with agent(path) as peer:
                here = await client(place)
                assert await program.told() == [[SERVER, PORT]]
                assert len(peer.of(Kind.CONNECTING)) == 1
                here.close()


@pytest.mark.parametrize("library", [True, False])
async def test_a_program_says_itself_what_it_continues(
    place: Namespace, peer: Agent, server: socket.socket, library: bool
) -> None:
    """By the calls for Python, which are those for C; the library stands back."""
    text = """
    from nf_adapters.sockets import m2m_nf
    sock, _ = listener.accept()
    session = m2m_nf.accepted(sock)
    tell(session)
    out = socket.socket()
    try:
        with session.connecting(out, (SERVER, 81)) as announced:
            assert announced
            out.connect((SERVER, 81))
    except ConnectionRefusedError:
        out = socket.socket()
    with session.connecting(out, session.destination):
        out.connect(session.destination)
    tell(out.getsockname(), m2m_nf.accepted(out) is None)
    """
    more = {} if library else {"LD_PRELOAD": ""}
    async with running(place, peer.path, text, **more) as program:
        here = await client(place)
        [session] = await program.told()
        assert session == [1, list(here.getsockname()), [SERVER, PORT]]
        peer.answer = lambda said: (
            Message(Kind.UNKNOWN, said.number) if said.kind is Kind.ACCEPTED else peer.usual(said)
        )
        name, no_session = await program.told()
        assert no_session
        first, second = peer.of(Kind.CONNECTING)
        assert [said.flow for said in peer.of(Kind.REVOKED)] == [first.flow]
        assert second.flow == Flow.of(6, *name, SERVER, PORT)
        assert second.session == 1
        here.close()


LEAVES = {"M2M_SOCKETS_LEAVE": "10", "M2M_SOCKETS_TUNNEL": "1"}
COPIES = """\
def copy(one, other, size):
    while size:
        data = one.recv(size)
        other.sendall(data)
        size -= len(data)
sock, _ = listener.accept()
out = socket.create_connection(original(sock))
"""


def kinds(peer: Agent) -> list[Kind]:
    return [said.kind for said in peer.heard if said.kind in (Kind.LEAVE, Kind.PASSED)]


async def test_a_program_that_copies_leaves_when_it_has_passed_all_on(
    place: Namespace, peer: Agent, server: socket.socket
) -> None:
    """It is asked again when there was more, stays until twice as much has passed, and leaves."""
    answers = iter([Kind.MORE, Kind.STAYS, Kind.LEFT])
    peer.answer = lambda said: (
        said._replace(kind=next(answers)) if said.kind is Kind.PASSED else peer.usual(said)
    )
    text = """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    copy(sock, out, 9)
    tell("nine")
    first = out.recv(3)
    sock.sendall(first[:1])
    tell("ten")
    signal.sigwait({signal.SIGUSR1})
    sock.sendall(first[1:])
    tell("twelve")
    copy(out, sock, 2)
    copy(sock, out, 9)
    tell("twenty-three")
    copy(sock, out, 5)
    tell("twenty-eight")
    signal.pause()
    """
    async with running(place, peer.path, COPIES + textwrap.dedent(text), **LEAVES) as program:
        here = await client(place)
        there, _ = await trio.to_thread.run_sync(server.accept)
        here.sendall(b"x" * 9)
        assert await program.told() == ["nine"]
        assert kinds(peer) == []
        there.sendall(b"yyy")
        assert await program.told() == ["ten"]
        assert kinds(peer) == [Kind.LEAVE]
        program.process.send_signal(signal.SIGUSR1)
        assert await program.told() == ["twelve"]
        await peer.until(Kind.PASSED)
        there.sendall(b"zz")
        await peer.until(Kind.PASSED, 2)
        here.sendall(b"x" * 9)
        assert await program.told() == ["twenty-three"]
        assert kinds(peer) == [Kind.LEAVE, Kind.PASSED, Kind.PASSED]
        here.sendall(b"x" * 5)
        assert await program.told() == ["twenty-eight"]
        await peer.until(Kind.LEAVE, 2)
        here.close()
        there.close()


@pytest.mark.parametrize("blocking", [True, False])
async def test_what_comes_while_it_waits_is_not_touched(
    place: Namespace, peer: Agent, server: socket.socket, blocking: bool
) -> None:
    """Before the answer the agent might make one connection of both: the call waits for it."""
    peer.waits_for[Kind.PASSED] = trio.Event()
    peer.answer = lambda said: (
        said._replace(kind=Kind.MORE) if said.kind is Kind.PASSED else peer.usual(said)
    )
    text = f"""
    copy(sock, out, 10)
    sock.setblocking({blocking})
    out.setblocking({blocking})
    try:
        tell("nothing", sock.recv(1, socket.MSG_DONTWAIT))
    except BlockingIOError:
        tell("waits")
    if not {blocking}:
        select.select([out], [], [])
    tell(out.recv(10).decode(), time.monotonic())
    """
    async with running(place, peer.path, COPIES + textwrap.dedent(text), **LEAVES) as program:
        here = await client(place)
        there, _ = await trio.to_thread.run_sync(server.accept)
        here.sendall(b"x" * 10)
        assert await program.told() == ["waits"]
        await peer.until(Kind.PASSED)
        there.sendall(b"more")
        answered = time.monotonic()
        peer.waits_for[Kind.PASSED].set()
        said, when = await program.told()
        assert said == "more"
        assert when >= answered
        here.close()
        there.close()


@pytest.mark.parametrize(
    "unseen",
    [
        "out.sendmsg([sock.recv(10)])",
        "out.sendall(sock.recvmsg(10)[0])",
        "out.sendall(sock.recv(10) + b'more')",
    ],
)
async def test_a_program_of_which_not_all_is_seen_stays(
    place: Namespace, peer: Agent, server: socket.socket, unseen: str
) -> None:
    """By other calls it may have bytes in hand that nobody knows of; or it does not only copy."""
    text = f"""
    {unseen}
    out.sendall(b"z" * 20)
    tell("written")
    copy(out, sock, 20)
    tell("copied")
    signal.pause()
    """
    async with running(place, peer.path, COPIES + textwrap.dedent(text), **LEAVES) as program:
        here = await client(place)
        there, _ = await trio.to_thread.run_sync(server.accept)
        here.sendall(b"x" * 10)
        assert await program.told() == ["written"]
        there.sendall(b"y" * 20)
        assert await program.told() == ["copied"]
        assert Kind.PASSED not in kinds(peer)
        here.close()
        there.close()
