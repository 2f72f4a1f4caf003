"""An inline function puts a line into a live request, and is taken out of the session: real agents,
nginx, and packets that are lost.

::

    client ── tap ── fw (puts the line in) ── ids (tap) ── server (nginx)
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from m2m.lab.programs import filler
from tests.support.chain import LiveChain, LiveHost, change_chain, live_chain
from tests.support.document import load
from tests.support.live import PATIENCE
from tests.support.namespaces import NamespaceFactory
from tests.support.processes import Daemon, daemon

pytestmark = [
    pytest.mark.needs("netns", "bpffs", "nfqueue", "nft", "iptables", "nginx"),
    pytest.mark.timeout(120),
]

PORT = 80
SIZE = 10_000_000
LOSS = 0.01  # of all packets between hosts
POLICY = f"""
nf first tap {{ tap1 = 10.9.5.2 }}
nf seen inline {{ seen1 = 10.9.2.2 }}
nf ids tap {{ ids1 = 10.9.3.2 }}
match(dstport={PORT} & proto=tcp) >> {{first -> seen -> ids}} allow={{operator, nf}}
"""
NGINX = """
pid {home}/nginx.pid;
error_log stderr warn;
daemon off;
user root;
worker_processes 1;
events {{ worker_connections 64; }}
http {{
    log_format seen '$request_method $uri $status $http_x_seen_by';
    access_log {home}/access.log seen;
    client_body_temp_path {home}/body;
    client_max_body_size 0;
    server {{
        listen {port};
        root {home}/pages;
        limit_rate 20m;
        dav_methods PUT;
    }}
}}
"""
PAGE = filler(SIZE)


@asynccontextmanager
async def nginx(chain: LiveChain, home: Path) -> AsyncIterator[None]:
    """Serves :data:`PAGE`, and keeps what is put there, while the block runs."""
    (home / "pages").mkdir(parents=True)
    (home / "pages/page").write_bytes(PAGE)
    conf = home / "nginx.conf"
    conf.write_text(NGINX.format(home=home, port=PORT))
    with await chain.listen(PORT) as listener:  # so nobody has to wait until it listens
        command = ("nginx", "-e", "stderr", "-p", str(home), "-c", str(conf))
        process = await trio.lowlevel.open_process(
            chain.server.namespace.command(*command),
            pass_fds=(listener.fileno(),), env={**os.environ, "NGINX": f"{listener.fileno()};"},
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            process.send_signal(signal.SIGQUIT)
            await process.wait()


class Client:
    """One connection, with as many requests as one likes."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._stream = trio.SocketStream(sock)
        self._buffer = b""
        self.got = 0  # octets of the present response

    async def ask(self, method: str, path: str, body: bytes = b"") -> None:
        head = f"{method} {path} HTTP/1.1\r\nHost: m2m\r\nContent-Length: {len(body)}\r\n\r\n"
        await self._stream.send_all(head.encode() + body)

    async def answer(self) -> bytes:
        """The body of a response."""
        with trio.fail_after(PATIENCE):
            while b"\r\n\r\n" not in self._buffer:
                self._buffer += await self._more()
            head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
            fields = dict(line.split(b": ") for line in head.split(b"\r\n")[1:])
            size = int(fields[b"Content-Length"])
            body = bytearray(self._buffer)
            while len(body) < size:
                body += await self._more()
                self.got = len(body)
        self._buffer = bytes(body[size:])
        return bytes(body[:size])

    async def get(self, path: str = "/page") -> bytes:
        await self.ask("GET", path)
        return await self.answer()

    async def _more(self) -> bytes:
        data = await self._stream.receive_some(1 << 20)
        assert data, "the connection was closed"
        return bytes(data)

    async def close(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def the_function(host: LiveHost) -> AsyncIterator[Daemon]:
    command = (sys.executable, "-m", "nf_adapters.skb.seen_by", "--queue", "11")
    where = ("--run-dir", str(host.run_dir), "--agent", host.name)
    async with daemon(host.namespace, host.run_dir, "seen-by", *command, *where) as made:
        load(host, "seen-by.sh")
        yield made


def packets_at(host: LiveHost) -> int:
    """What has come to the function's rules."""
    listed = host.namespace.run("iptables", "-t", "mangle", "-nvxL", "FORWARD").stdout
    return sum(int(line.split()[0]) for line in listed.splitlines() if "NFQUEUE" in line)


@pytest.fixture
async def chain(netns: NamespaceFactory, tmp_path: Path) -> AsyncIterator[LiveChain]:
    async with live_chain(netns, tmp_path, "--linger", "0.5", more=("tap",), text=POLICY) as made:
        yield made


async def test_it_leaves_in_the_middle_of_a_response(chain: LiveChain) -> None:
    home = chain.server.run_dir / "web"
    digest = hashlib.sha256(PAGE).digest()
    async with nginx(chain, home), the_function(chain.fw) as function:
        chain.router.run(
            "iptables", "-A", "FORWARD", "-m", "statistic", "--mode", "random",
            "--probability", str(LOSS), "-j", "DROP",
        )  # fmt: skip
        here = chain.client.socket(socket.SOCK_STREAM)
        await here.connect((chain.server.address, PORT))
        client = Client(here)
        async with trio.open_nursery() as nursery:

            async def download() -> None:
                assert hashlib.sha256(await client.get()).digest() == digest

            nursery.start_soon(download)
            await function.says("STATUS=1 sessions left")
            assert client.got < SIZE, "it was over before"
        assert chain.fw.entries() == len(chain.fw.sessions()) == 0
        before = packets_at(chain.fw)
        (session,) = chain.client.sessions()
        # Both ways, and the sum goes on to the client.
        await client.ask("PUT", "/put", PAGE[: SIZE // 2])
        assert await client.answer() == b""
        assert (home / "pages/put").read_bytes() == PAGE[: SIZE // 2]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(download)
            await change_chain(chain.client, session.id, mode="ss+op", do="remove", old=("first",))
            await change_chain(
                chain.client,
                session.id,
                mode="op",
                do="insert",
                new=("first/tap1",),
                before="server",
            )
        path = await trio.to_thread.run_sync(chain.client.path, session.id)
        assert [hop.nf for hop in path.hops[1:-1]] == ["ids/ids1", "first/tap1"]
        assert packets_at(chain.fw) == before
        await client.close()
        await chain.until_empty()
    assert "event=ended queue=11 inserted=1 left=1" in function.output
    assert (home / "access.log").read_text().splitlines() == [
        "GET /page 200 m2m", "PUT /put 201 -", "GET /page 200 -",
    ]  # fmt: skip
