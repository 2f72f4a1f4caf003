"""Debian's proxies, unmodified, in a real chain with an inline function and a tap behind them: the
web server sees each client's own address and port on the connection that continues its session."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.support import web
from tests.support.chain import LiveChain, live_chain
from tests.support.namespaces import NamespaceFactory
from tests.support.real_proxies import USER, Proxy, library_installed

pytestmark = [
    pytest.mark.needs("netns", "bpffs", "nfqueue", "nft", "iptables", "squid", "haproxy", "socat",
                      "stunnel", "openssl"),
    pytest.mark.timeout(180),
]  # fmt: skip

MANY = 500 if os.environ.get("M2M_HEAVY") == "1" else 150  # clients at once
FEW = 20
AT_A_TIME = 50
MISSES = 2  # a worker of Squid may miss what the other opens just then, with and without M2M
LISTENS = 3129
SERVER, PLAIN = ("10.9.4.2", 80), ("10.9.4.2", 81)  # PLAIN is of no policy

POLICY = f"""
nf firewall inline {{ fw1 = 10.9.2.2 }}
nf cache proxy port={LISTENS} {{ cache1 = 10.9.5.2 }}
nf filter inline {{ filter1 = 10.9.6.2 }}
nf ids tap {{ ids1 = 10.9.3.2 }}
match(dstport=80 & proto=tcp) >> {{firewall -> cache -> filter -> ids}}
"""

# By whose names the filter has seen connections to the server begin.
NAMES = """
table ip seen {
    set names { type ipv4_addr . inet_service; flags dynamic; size 4096; }
    chain forward {
        type filter hook forward priority 0
        ip daddr 10.9.4.2 tcp dport 80 tcp flags syn / syn,ack add @names { ip saddr . tcp sport }
    }
}
"""


class Proxied:
    """The chain, its web server, and where the proxy runs."""

    def __init__(self, chain: LiveChain, folder: Path) -> None:
        self.chain = chain
        cache = chain.hosts["cache"]
        self.proxy = Proxy(cache.namespace, folder, cache.control, LISTENS)
        self.server = web.Server()

    async def browser(
        self, tls: ssl.SSLContext | None = None, server: web.End = SERVER
    ) -> web.Browser:
        here = self.chain.client.socket(socket.SOCK_STREAM)
        await here.bind((self.chain.client.address, 0))
        return await web.Browser.open(here, server, tls)

    def lead_without_m2m(self) -> None:
        """As one would do without M2M: what goes to PLAIN is routed and redirected to the proxy."""
        cache, of_plain = self.chain.hosts["cache"], ("tcp", "dport", f"{PLAIN[1]}")
        router = self.chain.router
        router.run("ip", "rule", "add", "iif", "to-client", "ipproto", *of_plain, "lookup", "81")
        router.run("ip", "route", "add", "default", "via", cache.address, "table", "81")
        rule = "tcp", "--dport", f"{PLAIN[1]}", "-j", "REDIRECT", "--to-ports", f"{LISTENS}"
        cache.namespace.run("iptables", "-t", "nat", "-A", "PREROUTING", "-p", *rule)

    def behind(self) -> set[web.End]:
        """Who has begun a connection to the server, as the filter behind the proxy has seen it."""
        namespace = self.chain.hosts["filter"].namespace
        shown = namespace.run("nft", "list", "set", "ip", "seen", "names").stdout
        return {(address, int(port)) for address, port in re.findall(r"([\d.]+) \. (\d+)", shown)}

    def check(self, sessions: int) -> None:
        """Every connection to the server was one client's, under that client's name."""
        found = self.server.by_peer()
        assert {peer: who for peer, who in found.items() if who != {"{}:{}".format(*peer)}} == {}
        assert len(found) == sessions
        assert self.behind() == set(found)

    def begin_anew(self) -> None:
        """Forget what was seen."""
        self.server.asked.clear()
        self.chain.hosts["filter"].namespace.run("nft", "flush", "set", "ip", "seen", "names")

    async def until_empty(self) -> None:
        async with trio.open_nursery() as nursery:
            for host in self.chain.hosts.values():
                nursery.start_soon(host.until_empty)


@pytest.fixture
async def proxied(netns: NamespaceFactory) -> AsyncIterator[Proxied]:
    folder = Path(tempfile.mkdtemp(prefix="m2m-proxies-"))  # workers of Squid must get there
    options = ("--linger", "0.5", "--proxy-group", USER, "--sessions", "3000")
    try:
        async with live_chain(
            netns, folder, *options, more=("cache", "filter"), text=POLICY
        ) as chain:
            made = Proxied(chain, folder / "proxy")
            made.proxy.home.mkdir()
            chain.hosts["filter"].namespace.run("sh", "-c", f"nft -f - <<'END'{NAMES}END")
            made.lead_without_m2m()
            with await chain.listen(SERVER[1]) as listener, await chain.listen(PLAIN[1]) as plain:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(made.server.serve, listener)
                    nursery.start_soon(web.Server().serve, plain)
                    yield made
                    nursery.cancel_scope.cancel()
    finally:
        shutil.rmtree(folder)


class Visit:
    """What one client does: pages one by one and pipelined, on one connection, one of them from the
    cache if it was put there."""

    def __init__(
        self, proxied: Proxied, number: int, tls: ssl.SSLContext | None, server: web.End
    ) -> None:
        self._proxied = proxied
        self._number = number
        self._tls = tls
        self._server = server

    async def begin(self) -> None:
        self._browser = await self._proxied.browser(self._tls, self._server)
        first = f"/first{self._number}"
        assert (await self._browser.get(first)).body == first

    async def go_on(self) -> bool:
        """Whether there was one in the cache."""
        path, last = f"/kept{self._number % 5}", f"/last{self._number}"
        kept = await self._browser.get(path)
        assert kept.body == path
        await self._browser.ask("/more", last)
        assert [(await self._browser.reply()).body for _ in range(2)] == ["/more", last]
        return kept.hit

    async def end(self) -> None:
        await self._browser.close()


async def visits(
    proxied: Proxied, count: int, tls: ssl.SSLContext | None = None, server: web.End = SERVER
) -> int:
    """All are open at the same time, and then all go on at once; how many hits they had. They are
    set up some at a time: six agents share this machine."""
    all_visits = [Visit(proxied, number, tls, server) for number in range(count)]
    hits: list[bool] = []
    limit = trio.CapacityLimiter(AT_A_TIME)

    async def begin(visit: Visit) -> None:
        async with limit:
            await visit.begin()

    async def go_on(visit: Visit) -> None:
        hits.append(await visit.go_on())

    for what in (begin, go_on):
        async with trio.open_nursery() as nursery:
            for visit in all_visits:
                nursery.start_soon(what, visit)
    for visit in all_visits:
        await visit.end()
    return sum(hits)


async def keep(proxied: Proxied, server: web.End = SERVER) -> None:
    """Have the proxy keep what :class:`Visit` asks for."""
    first = await proxied.browser(server=server)
    for number in range(5):
        assert not (await first.get(f"/kept{number}")).hit
    await first.close()


async def test_debians_proxies_are_told_apart_each_in_its_own_way(proxied: Proxied) -> None:
    """Squid as a daemon with two workers, which share what they keep; in the foreground; HAProxy's
    two threads with an event loop each; a process, or a thread, for each connection."""
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    proxy = proxied.proxy
    with library_installed():
        async with proxy.squid(workers=2):
            await keep(proxied)
            await keep(proxied, PLAIN)
            hits = await visits(proxied, MANY)
            proxied.check(MANY + 1)
            without_m2m = await visits(proxied, MANY, server=PLAIN)
            assert min(hits, without_m2m) >= MANY - MISSES, (hits, without_m2m)
    ways = [
        (proxy.squid(), None),
        (proxy.haproxy(), None),
        (proxy.socat(SERVER), None),
        (proxy.stunnel(SERVER), anybody),
    ]
    if shutil.which("balance"):
        ways.append((proxy.balance(SERVER), None))
    for running, tls in ways:
        proxied.begin_anew()
        async with running:
            await visits(proxied, FEW, tls)
            proxied.check(FEW)
    await proxied.until_empty()
