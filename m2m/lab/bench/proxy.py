"""What stitching costs a proxy: requests through HAProxy, each on a connection of its own.

In two labs a client asks a web server, and HAProxy on the host between them connects to where its
clients meant to go. In the plain lab there is no M2M, and a rule of nftables redirects; a second
HAProxy there has the preload library, but no agent answers it. In the steered lab the client's
session comes by a chain, and the library has the agent set the rest up before HAProxy's SYN leaves.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import msgspec

from m2m.lab.bench.report import Plan, Result, Samples, Say, percentile
from m2m.lab.lab import Lab, open_lab
from m2m.lab.programs import tool
from m2m.lab.topology import Nft, Nginx, PolicyServer, Ready, Topology, chain
from nf_adapters.sockets.library import BUILT

_PORT, _ALONE = 80, 81  # of the server: for all, and for the library without an agent
_LISTENS = {_PORT: 3129, _ALONE: 3130}
_PROXY = "mb1"
_PAUSE = 0.02  # s between two requests: agents are busy for a while with the ends of the former

_POLICY = """\
nf cache proxy port=3129 { mb1 = 10.0.1.2 }
match(srcip=10.0.1.0/24 & dstport=80 & proto=tcp) >> {cache} fail=closed
"""
_REDIRECT = """\
table ip redirected {
    chain prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        iifname "client" tcp dport 80 redirect to :3129
        iifname "client" tcp dport 81 redirect to :3130
    }
}
"""
_HAPROXY = """\
global
    nbthread 1
defaults
    mode http
    timeout connect 10s
    timeout client 10s
    timeout server 10s
frontend web
    bind 0.0.0.0:{listens}
    default_backend meant
backend meant
    server meant 0.0.0.0:0
"""


class _Labs(NamedTuple):
    steered: Lab
    plain: Lab


async def run(plan: Plan, say: Say) -> list[Result]:
    """Microseconds of a request, the library's share, and what a chain adds."""
    rounds, requests = plan.pick((10, 50), (4, 50))
    through: list[float] = []
    direct: list[float] = []
    alone: list[float] = []
    async with _labs() as (steered, plain):
        await _ask(steered, 20, _PORT)  # routes, neighbours and challenges of the first contact
        await _ask(plain, 20, _PORT, _ALONE)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            through += (await _ask(steered, requests, _PORT))[_PORT]
            both = await _ask(plain, requests, _PORT, _ALONE)
            direct += both[_PORT]
            alone += both[_ALONE]
    rows = []
    for what, ours in (("library, no agent", alone), ("library, in a chain", through)):
        for label, rank in (("p50", 0.50), ("p99", 0.99)):
            mine, peer = percentile(ours, rank), percentile(direct, rank)
            rows.append(
                Result(
                    name=f"a request through a proxy, {what}, {label}",
                    unit="µs",
                    ours=mine,
                    peer=peer,
                    peer_name="the proxy without library and M2M",
                    ratio=mine / peer,
                    samples=Samples(tuple(ours), tuple(direct)),
                )
            )
    return rows


def _topology(name: str, *, steered: bool) -> Topology:
    line = chain(1, ports=(_PORT,), name=name)
    hosts = dict(line.hosts)
    pages = Nginx(ports=[_PORT, _ALONE], pages={"index.html": "x"})
    hosts["server"] = msgspec.structs.replace(hosts["server"], run=[pages])
    if not steered:
        hosts[_PROXY] = msgspec.structs.replace(hosts[_PROXY], run=[Nft(_REDIRECT)])
    policy = PolicyServer("client", text=_POLICY)
    return msgspec.structs.replace(line, hosts=hosts, policy=policy)


@asynccontextmanager
async def _labs() -> AsyncIterator[_Labs]:
    async with (
        open_lab(_topology("benchplain", steered=False), agents=False) as plain,
        open_lab(_topology("benchm2m", steered=True)) as steered,
    ):
        nobody = plain.directory / "nobody.proxy"
        library = ["env", f"LD_PRELOAD={BUILT}", f"M2M_SOCKETS={nobody}"]
        await _start(plain, _PORT, [])
        await _start(plain, _ALONE, library)
        await _start(steered, _PORT, [tool("m2m-nf"), "run", "--"])
        yield _Labs(steered, plain)


async def _start(lab: Lab, port: int, leading: list[str]) -> None:
    listens = _LISTENS[port]
    conf = lab.directory / f"haproxy-{port}.conf"
    conf.write_text(_HAPROXY.format(listens=listens))
    command = [*leading, "haproxy", "-db", "-f", str(conf)]
    await lab.start(_PROXY, f"haproxy-{port}", command, ready=Ready(port=listens))


async def _ask(lab: Lab, count: int, *ports: int) -> dict[int, list[float]]:
    """Microseconds of each request, by the server's port; the ports take turns."""
    done = await lab.run(
        "client", sys.executable, "-m", "m2m.lab.probe", "--ask", "--pause", str(_PAUSE),
        lab.address("server"), str(count), *map(str, ports),
    )  # fmt: skip
    return msgspec.json.decode(done.out, type=dict[int, list[float]])
