"""``m2m-lab run proxy-removal``: Squid takes itself out of downloads that it may not keep.

::

    client ─── core ─── srv
              / │ \\
            fw  │  control
              cache

The client's sessions to the server's port go through a firewall at ``fw`` and Squid at ``cache``;
those to another port through the firewall alone. The same downloads are made in three ways: Squid
leaves each after a while, stays, or is not there at all. ``cache`` is beside the way: what it still
sees of a session, its link tells.

The first and the last are compared by turns of some milliseconds, both being open at once: from
one server, to one client, both on one processor, so that it is the work that is compared, and not
how it happens to be spread, or where either's memory lies.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import msgspec
import trio
from rich.console import Console
from rich.padding import Padding

from m2m.lab import demo_report, removal_figure, state
from m2m.lab.demo_results import Check
from m2m.lab.lab import Lab, open_lab
from m2m.lab.pace import SLOWNESS
from m2m.lab.programs import tool
from m2m.lab.removal_results import Moment, Report, Trial, Way, around, checks, checks_of_whole
from m2m.lab.topology import Command, Host, Link, PolicyServer, Ready, Role, Topology, checked
from m2m.lab.traffic.downloads import BIN, Loaded, Part

CLIENT, FIREWALL, CACHE, SERVER = "client", "fw", "cache", "srv"
CORE, CONTROL = "core", "control"
_PORT, _STRAIGHT = 80, 81
_LISTENS = 3129
_USER = "proxy"  # Debian's, of Squid
_EMULATED = SLOWNESS > 1  # there all takes long, and counted instructions need no repetitions
_BUNDLES = (1,) if _EMULATED else (1, 8)  # downloads at once
_TRIALS = 1 if _EMULATED else 3  # in which Squid leaves
_SECONDS = 10.0 if _EMULATED else 6.0  # of a trial
_COMPARED = 30.0 if _EMULATED else 60.0  # s that two ways are compared
_BEFORE = 2.0  # s, about, that downloads go through Squid before it leaves
_ENDLESS = 1 << 40  # octets: more than any trial loads
_WHOLE = int(1e9 / SLOWNESS**2)  # octets of a download that comes to its end,
_SOON = 1_000_000  # and those after which Squid leaves it
_IN_TIME = 60.0  # s
_LOOK = 0.1  # s
_PATIENCE = 30.0 * SLOWNESS  # s
_FIGURES = Path("bench-results")
_HERTZ = 100  # of the times in /proc (USER_HZ)

_SQUID = """\
http_port {port} intercept
http_port 127.0.0.1:{other}
visible_hostname cache
cache_effective_user {user}
pid_filename none
cache_log stdio:/dev/null
access_log none
cache_mem 16 MB
http_access allow all
pinger_enable off
shutdown_lifetime 0 seconds
"""
_LEFT = re.compile(r'timestamp=(\S+) .*event="a proxy has left"')


def lab_of_removal(name: str = "removal") -> Topology:
    """The lab, without Squid."""
    hosts = {
        CLIENT: Host(role=Role.CLIENT),
        FIREWALL: Host(role=Role.MIDDLEBOX),
        CACHE: Host(role=Role.MIDDLEBOX, agent=["--proxy-group", _USER]),
        SERVER: Host(role=Role.SERVER, run=[_downloads()]),
        CORE: Host(),
        CONTROL: Host(),
    }
    links = [
        Link((host, CORE), (f"10.0.{number}.2/24", f"10.0.{number}.1/24"))
        for number, host in enumerate(filter(CORE.__ne__, hosts), start=1)
    ]
    policy = f"""\
nf firewall inline {{ {FIREWALL} = 10.0.2.2 }}
nf cache proxy port={_LISTENS} {{ {CACHE} = 10.0.3.2 }}
match(srcip=10.0.1.0/24 & dstport={_PORT} & proto=tcp) >> {{firewall -> cache}} \
    allow={{operator, nf, policy}}
match(srcip=10.0.1.0/24 & dstport={_STRAIGHT} & proto=tcp) >> {{firewall}}
"""
    topology = Topology(name, hosts=hosts, links=links, policy=PolicyServer(CONTROL, text=policy))
    return checked(topology, "m2m.lab.removal")


def _downloads() -> Command:
    ports = [f"{port}" for port in (_PORT, _STRAIGHT)]
    serve = [sys.executable, "-m", "m2m.lab.traffic.downloads", "serve", *ports]
    return Command("downloads", serve, Ready(port=_STRAIGHT))


class _Stage:
    def __init__(self, lab: Lab, console: Console, report: Report) -> None:
        self._lab = lab
        self._console = console
        self._report = report
        self._moments: list[Moment] = []
        self._squids = 0

    def check(self, *found: Check) -> None:
        self._report.checks += found
        demo_report.checks(self._console, found)

    async def whole(self, size: int = _WHOLE) -> None:
        """One download, from the first octet to the last, that Squid leaves soon."""
        demo_report.heading(self._console, f"{size / 1e9:.3g} GB, left after {_SOON / 1e6:g} MB")
        (self._report.whole,) = await self._trial(
            [Way.REMOVED], 0, 1, _IN_TIME, after=_SOON, size=size
        )
        self.check(*checks_of_whole(self._report.whole, size))

    async def bundle(self, flows: int, trials: int = _TRIALS, compared: float = _COMPARED) -> None:
        """So many downloads, in each of the three ways, and for so long by turns."""
        demo_report.heading(self._console, f"{flows} download{'s' * (flows > 1)} at once")
        (through,) = await self._trial([Way.THROUGH], 0, flows)
        self._report.trials.append(through)
        self._report.trials += await self._trial([Way.DIRECT], 0, flows)
        after = int(through.throughout() / flows * _BEFORE)
        for number in range(trials):
            self._report.trials += await self._trial([Way.REMOVED], number, flows, after=after)
        with self._one_processor() as on:
            self._report.compared += await self._trial(
                [Way.REMOVED, Way.DIRECT], 0, flows, compared, after=after, on=on
            )
        self._table(flows)
        self.check(*checks(self._report, flows))

    async def _trial(
        self, ways: list[Way], number: int, flows: int, seconds: float = _SECONDS, *,
        after: int = 0, size: int = _ENDLESS, on: Sequence[str] = (),
    ) -> list[Trial]:  # fmt: skip
        """Of several ways, each has so many downloads, and they take turns."""
        lab = self._lab
        name = f"squid{self._squids}"
        proxied = ways != [Way.DIRECT]
        if proxied:
            await self._start_squid(name, after)
        with self._console.status(f"{', '.join(ways)}, {number + 1} …"):
            ports = [f"{_STRAIGHT if way is Way.DIRECT else _PORT}" for way in ways]
            self._moments = []
            skipped = len(_departures(lab))
            async with trio.open_nursery() as nursery:
                if proxied:
                    nursery.start_soon(self._look, lab.pid(CACHE, name))
                done = await lab.run(
                    CLIENT, *on, sys.executable, "-m", "m2m.lab.traffic.downloads", "load",
                    lab.address(SERVER), f"{flows}", f"{size}", f"{seconds:g}", *ports,
                    timeout=seconds + _PATIENCE,
                )  # fmt: skip
                nursery.cancel_scope.cancel()
        loaded = msgspec.json.decode(done.out, type=Loaded)
        departures = [when - loaded.began for when in _departures(lab)[skipped:]]
        rest = await self._rest()
        found = []
        for way, part in zip(ways, loaded.parts, strict=True):
            left = departures if way is Way.REMOVED else []
            moments = [] if way is Way.DIRECT else self._moments
            found.append(Trial(
                way, number, flows, BIN, part.bins,
                [msgspec.structs.replace(one, at=one.at - loaded.began) for one in moments],
                sum(one.right for one in part.flows), left, _longest(part, left), rest, part.turns,
            ))  # fmt: skip
        if proxied:
            await lab.stop(CACHE, name)
        return found

    @contextmanager
    def _one_processor(self) -> Iterator[list[str]]:
        """Have the server keep to one; what a client's command begins with, to keep to it, too."""
        server = self._lab.pid(SERVER, "downloads")
        every = os.sched_getaffinity(0)
        os.sched_setaffinity(server, {max(every)})
        try:
            yield ["taskset", "--cpu-list", f"{max(every)}"]
        finally:
            os.sched_setaffinity(server, every)

    async def _start_squid(self, name: str, after: int) -> None:
        lab = self._lab
        self._squids += 1
        conf = lab.directory / "squid.conf"
        settings = {"port": _LISTENS, "other": _LISTENS + 1, "user": _USER}
        conf.write_text(_SQUID.format(**settings))
        leave = ["--leave", f"{after}"] if after else []
        command = [
            tool("m2m-nf"), "run", *leave, "--", "squid", "-N", "-n", f"lab{self._squids}",
            "-f", str(conf),
        ]  # fmt: skip
        await lab.start(CACHE, name, command, ready=Ready(port=_LISTENS))

    async def _look(self, pid: int) -> None:
        """See what Squid uses and its host's link carries, once in a while."""
        while True:
            self._moments.append(_moment(pid))
            await trio.sleep(_LOOK)

    async def _rest(self) -> int:
        """How many sessions the proxy's host keeps when the client's are over."""
        left = -1
        with trio.move_on_after(_PATIENCE):
            while left:
                left = len(await self._lab.sessions(CACHE))
                await trio.sleep(_LOOK)
        return left

    def _table(self, flows: int) -> None:
        """Medians of all trials."""
        rows = demo_report.plain_table("", ">goodput", ">Squid's processor", ">packets at its host")
        begin = 0.1
        for name, way, span in (
            ("Squid leaves: before", Way.REMOVED, lambda one: (begin, one.first)),
            ("              after", Way.REMOVED, lambda one: (one.last + 1.0, one.end - BIN)),
            (Way.THROUGH, Way.THROUGH, lambda one: (begin, one.end - BIN)),
            (Way.DIRECT, Way.DIRECT, lambda one: (begin, one.end - BIN)),
        ):
            trials = self._report.of(way, flows)
            goodput = statistics.median(one.goodput(*span(one)) for one in trials)
            cpu = statistics.median(one.cpu(*span(one)) for one in trials)
            packets = statistics.median(one.packets(*span(one)) for one in trials)
            seen = way is not Way.DIRECT
            rows.add_row(
                name,
                f"{goodput * 8e-9:.2f} Gbit/s",
                f"{cpu:.0%}" * seen,
                f"{packets:,.0f}/s" * seen,
            )
        self._console.print(Padding(rows, (0, 0, 0, 2)))


def _moment(pid: int) -> Moment:
    """Squid's, by its process, and its host's."""
    packets = 0
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]:
        link, counters = line.split(":")
        if link.strip() == CORE:
            fields = counters.split()
            packets += int(fields[1]) + int(fields[9])
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Moment(time.time(), (int(stat[11]) + int(stat[12])) / _HERTZ, packets)


def _departures(lab: Lab) -> list[float]:
    """When Squid has left a session, s since 1970, by the agent's log."""
    log = lab.log(CACHE, "agent").read_text()
    return [datetime.fromisoformat(when).timestamp() for when in _LEFT.findall(log)]


def _longest(part: Part, left: list[float]) -> float:
    if not left:
        return max((one.gap for one in part.flows), default=0.0)
    return max(around(one.gaps, when, BIN) for one in part.flows for when in left)


async def run(
    *,
    keep: bool,
    as_json: bool,
    figures: Path = _FIGURES,
    whole: int = _WHOLE,
    bundles: tuple[int, ...] = _BUNDLES,
    trials: int = _TRIALS,
    compared: float = _COMPARED,
) -> int:
    """Play it; 0 when every check held, else 1. Raises :exc:`LabError`."""
    console = Console(stderr=as_json, highlight=False)
    console.width = min(console.width, demo_report.WIDTH)
    topology = lab_of_removal()
    report = Report()
    state.check_possible(topology.name)
    console.print("\n[bold]M2M proxy-removal[/]: a cache leaves downloads that it may not keep")
    if shutil.which("squid") is None:
        console.print("squid is missing: apt-get install squid")
        return 1
    async with open_lab(topology) as lab:
        stage = _Stage(lab, console, report)
        await stage.whole(whole)
        for flows in bundles:
            await stage.bundle(flows, trials, compared)
        if keep:
            lab.detach()
    removal_figure.write(figures, report)
    console.print(f"\nIn {figures}: proxy-removal.png shows it, proxy-removal.csv has every bin.")
    if keep:
        console.print(f"The lab is still up. End it: m2m-lab down {topology.name}")
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
    return 0 if report.held else 1
