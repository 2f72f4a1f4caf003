"""``m2m-lab run gateway``: chains between hosts of which only some have an agent (§8)."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

import msgspec
import trio
from rich.console import Console
from rich.text import Text

from m2m.agent.api import HopReport, PathInfo
from m2m.agent.plan import describe
from m2m.lab import demo_report, mobility_report, state
from m2m.lab.demo_results import Check, Judged
from m2m.lab.gateways import (
    CHAIN,
    CORE,
    EDGE,
    FAR,
    FIREWALL,
    NEAR,
    OLD,
    OPEN,
    PAGE,
    PHONE,
    SERVER,
    UE,
    WEB,
    gateways,
)  # fmt: skip
from m2m.lab.lab import Lab, open_lab
from m2m.lab.pace import SLOWNESS

_DRAWING = f"""
    [cyan]{PHONE}[/] ── {NEAR} ─┐             ┌─ {FAR} ── [cyan]{WEB}[/]
                    ├─── core ────┤
             [cyan]{UE}[/] ────┘   │   │     ├─ [cyan]{SERVER}[/]
                        [cyan]fw  ids[/]    └─ [cyan]{OLD}[/]

  {PHONE}, {WEB} and {OLD} have no agent; {NEAR} serves {PHONE}, {FAR} serves {WEB}.
  {UE} and {SERVER} have agents of their own. A page has {PAGE:,} bytes."""
_PATIENCE = 10.0 * SLOWNESS  # s
_LOOK = 0.02  # s between two looks for a session


class Fetch(msgspec.Struct, frozen=True):
    """One page, from where to where, and what was seen of its session."""

    client: str
    server: str
    port: int
    path: str  # as the agents tell; empty: the session had none
    seconds: float
    bytes: int


class Report(Judged, msgspec.Struct):
    """What ``m2m-lab run gateway --json`` prints."""

    scenario: str = "gateway"
    fetches: list[Fetch] = []
    checks: list[Check] = []


_Look = Callable[[], Awaitable[str]]


class _Case(NamedTuple):
    what: str
    client: str
    server: str
    port: int
    asked: str  # the host whose agent tells of the session
    path: str


_CASES = (
    _Case("A gateway for the client", PHONE, SERVER, CHAIN, NEAR, "gw-a -> fw -> ids -> srv"),
    _Case("A gateway for the server", UE, WEB, CHAIN, UE, "ue -> fw -> ids -> gw-b"),
    _Case("Gateways for both", PHONE, WEB, CHAIN, NEAR, "gw-a -> fw -> ids -> gw-b"),
    _Case(
        "Only between middleboxes: the first and the last NF are at the gateways",
        PHONE, WEB, EDGE, NEAR, "gw-a -> ids -> gw-b",
    ),
)  # fmt: skip


class _Stage:
    def __init__(self, lab: Lab, console: Console, report: Report) -> None:
        self._lab = lab
        self._console = console
        self._report = report

    def check(self, *found: Check) -> None:
        self._report.checks += found
        demo_report.checks(self._console, found)

    async def served(self, case: _Case) -> None:
        """Fetch a page by a chain, and look for what must be true of it."""
        demo_report.heading(self._console, case.what)
        before = {host: await self._seen(host) for host in (FIREWALL, CORE)}
        with mobility_report.live(self._console) as show:
            fetch, ends = await self._fetch(
                case.client, case.server, case.port, partial(self._look, case, show)
            )
        self.check(
            Check(
                f"{case.client} gets the whole page from {case.server}",
                fetch.bytes == PAGE,
                f"{fetch.bytes:,} bytes in {fetch.seconds:.2f} s",
            ),
            Check(f"The path is {case.path}", fetch.path == case.path, fetch.path or "none"),
        )
        after = {host: await self._seen(host) for host in before}
        sees = [FIREWALL] if case.port == CHAIN else [NEAR, FAR]
        for host in sees:
            found = ends in await self._flows(host)
            self.check(Check(f"{host} sees the session's own 5-tuple", found, " > ".join(ends)))
        self.check(
            Check(
                "No packet crosses the core with it: they go from host to host",
                after[CORE] == before[CORE],
                f"{after[CORE] - before[CORE]} packets",
            )
        )

    async def unserved(self) -> None:
        """A server without agent and gateway."""
        demo_report.heading(self._console, f"Nobody stands for {OLD}: fail= decides")
        # No longer than until that is decided: agents ask a silent one again after ten seconds,
        # whatever machine they are on.
        closed, _ = await self._fetch(UE, OLD, CHAIN, patience=2)
        again, _ = await self._fetch(UE, OLD, OPEN)
        counted = (await self._lab.stats(UE)).setups.get("no agent", 0)
        self.check(
            Check("fail=closed: nothing is fetched", closed.bytes == 0, f"{closed.bytes} bytes"),
            Check(
                "fail=open: it goes straight, and does not wait for that agent again",
                again.bytes == PAGE and again.seconds < 1.5 * SLOWNESS,
                f"{again.bytes:,} bytes in {again.seconds:.2f} s",
            ),
            Check("Both are counted", counted >= 2, f"m2mctl stats: no agent {counted}"),
        )

    async def nothing_left(self) -> None:
        """All sessions end, and nobody keeps anything of them."""
        left = await self._lab.sessions_left(_PATIENCE)
        demo_report.heading(self._console, "Afterwards")
        self.check(Check("No host keeps a session", left == 0, f"{left} sessions"))

    async def _fetch(
        self, client: str, server: str, port: int, look: _Look | None = None, *, patience: int = 20
    ) -> tuple[Fetch, tuple[str, str]]:
        """The page, and the ends of its session. *look* shows and tells its path: while the page
        is fetched, and when it is there."""
        lab = self._lab
        url, limit = f"http://{lab.address(server)}:{port}/page", f"{patience * SLOWNESS:g}"
        says = (
            "%{size_download} %{time_total} %{local_ip}:%{local_port} %{remote_ip}:%{remote_port}"
        )
        async with trio.open_nursery() as nursery:
            if look is not None:
                nursery.start_soon(_again_and_again, look)
            done = await lab.run(
                client, "curl", "-s", "--max-time", limit, "-o", "/dev/null", "-w", says,
                url, check=False,
            )  # fmt: skip
            nursery.cancel_scope.cancel()
        size, seconds, here, there = done.out.split()
        path = "" if look is None else await look()  # the session lingers after its last packet
        fetch = Fetch(client, server, port, path, float(seconds), int(size))
        self._report.fetches.append(fetch)
        return fetch, (here, there)

    async def _look(self, case: _Case, show: mobility_report.LivePath) -> str:
        """Show the path of the case's session, as the agent asked tells it now; in short, too."""
        path = await self._path(case)
        title = f"  {case.client} fetches a page from {case.server}\n"
        show.show(mobility_report.with_path(Text(title), path))
        if path is None:
            return ""
        prefix = f"{self._lab.name}-"
        return describe([_named(hop, prefix) for hop in path.hops])

    async def _path(self, case: _Case) -> PathInfo | None:
        lab = self._lab
        ends = lab.address(case.client), lab.address(case.server), case.port
        for one in await lab.sessions(case.asked):
            flow = one.supersession
            if (flow.src, flow.dst, flow.dport) == ends:
                return await lab.path(case.asked, one.id)
        return None

    async def _seen(self, host: str) -> int:
        """Packets that *host* forwarded with a session's own addresses."""
        counter = await self._listed(host, "counter", "known")
        return int(counter["packets"])

    async def _flows(self, host: str) -> set[tuple[str, str]]:
        """The sessions among them: both ends, as ADDRESS:PORT."""
        found = await self._listed(host, "set", "flows")
        flows = (item["concat"] for item in found.get("elem", ()))
        return {(f"{flow[0]}:{flow[1]}", f"{flow[2]}:{flow[3]}") for flow in flows}

    async def _listed(self, host: str, kind: str, name: str) -> dict[str, Any]:
        done = await self._lab.run(host, "nft", "--json", "list", kind, "ip", "seen", name)
        items = msgspec.json.decode(done.out)["nftables"]
        found: dict[str, Any] = next(item[kind] for item in items if kind in item)
        return found


async def _again_and_again(look: _Look) -> None:
    while True:
        await look()
        await trio.sleep(_LOOK)


def _named(hop: HopReport, prefix: str) -> HopReport:
    """With names as the lab has them."""
    nf = hop.nf.partition("/")[2] if hop.nf else None
    return msgspec.structs.replace(hop, host=hop.host.removeprefix(prefix), nf=nf)


async def run(*, keep: bool, as_json: bool) -> int:
    """Play it; 0 when every check held, else 1. Raises :exc:`LabError`."""
    console = Console(stderr=as_json, highlight=False)
    console.width = min(console.width, demo_report.WIDTH)
    topology = gateways(name="gateway", setup_timeout=2 * SLOWNESS)
    report = Report()
    state.check_possible(topology.name)
    console.print("\n[bold]M2M gateway[/]: chains for hosts that have no agent")
    console.print(_DRAWING)
    async with open_lab(topology) as lab:
        stage = _Stage(lab, console, report)
        for case in _CASES:
            await stage.served(case)
        await stage.unserved()
        await stage.nothing_left()
        if keep:
            lab.detach()
    failed = sum(not check.held for check in report.checks)
    verdict = "[green]all held[/]" if report.held else f"[bold red]{failed} failed[/]"
    console.print(f"\n{len(report.checks)} checks, {verdict}")
    if keep:
        console.print(f"\nThe lab is still up. End it: m2m-lab down {topology.name}")
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
    return 0 if report.held else 1
