"""The demo: a firewall and an IDS between a client and a web server, shown and checked.

Everything that is claimed is looked at from outside M2M: by tcpdump on every link, by the
firewall's own counters, by the kernel's list of sockets. ``m2mctl`` only tells the path.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import trio
from rich.console import Console

from m2m.agent.api import SessionInfo
from m2m.lab import capture, demo_evidence, demo_report, programs, state
from m2m.lab.capture import Connection, LinkCapture
from m2m.lab.demo_evidence import Chain
from m2m.lab.demo_results import Check, Compared, NfSeen, Report
from m2m.lab.lab import Lab, open_lab
from m2m.lab.netns import LabError
from m2m.lab.pace import SLOWNESS
from m2m.lab.topology import Nginx, load
from m2m.protocol.flow import Proto

FILE = Path(__file__).with_name("demo.toml")
CHAIN = ("client", "firewall", "ids", "server")

_WEB, _STRAIGHT, _DETOURED_WEB, _FORBIDDEN = 80, 8000, 8080, 8081
_IPERF3, _DETOURED_IPERF3 = 5201, 5202
_ROUNDS = max(1, round(5 / SLOWNESS))
_CONNECTS = round(100 / SLOWNESS)


async def run(*, keep: bool, as_json: bool) -> int:
    """Play the demo; 0 when every check held, else 1. With *keep* the lab stays up."""
    console = Console(stderr=as_json, highlight=False)
    console.width = min(console.width, demo_report.WIDTH)
    topology = load(FILE)
    report = Report()
    state.check_possible(topology.name)  # before anything is drawn
    demo_report.opening(console, topology)
    async with open_lab(topology) as lab:
        demo = Demo(lab, report)
        for title, step in demo.steps():
            demo_report.heading(console, title)
            done = len(report.checks)
            with console.status("…"):
                show = await step()
            if show is not None:
                show(console, report)
            demo_report.checks(console, report.checks[done:])
        if keep:
            lab.detach()
    demo_report.summary(console, report, kept=topology.name if keep else None)
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
    return 0 if report.held else 1


_Show = Callable[[Console, Report], None]


class Demo:
    """The steps of the demo; each fills in its part of the report."""

    def __init__(self, lab: Lab, report: Report) -> None:
        self.lab = lab
        self.report = report
        self.compared: list[Check] = []
        self.chain_hosts = Chain({host: lab.address(host) for host in CHAIN})
        # All but the agents' connections to the policy server, which is no part of the chain.
        self.watched = f"(tcp or udp) and not host {lab.address('control')}"
        self.links = [link for host in CHAIN for link in lab.topology.links_of(host)]

    def steps(self) -> list[tuple[str, Callable[[], Awaitable[_Show | None]]]]:
        """Title and action of each step, in order."""
        return [
            ("The policy, as the client's agent has it", self.policy),
            ("curl and iperf3 through the chain", self.chain),
            ("A live session, seen from all sides", self.live),
            ("A connection that the firewall refuses", self.refused),
            ("A connection that no policy matches", self.unmatched),
            ("Throughput, beside plain forwarding through the same hosts", self.throughput),
            ("Set-up time, beside a plain connect through the same hosts", self.setup),
            ("The end of the sessions", self.end),
        ]

    def check(self, what: str, held: bool, seen: str, promise: str = "") -> None:
        """Write down whether something held."""
        self.report.checks.append(Check(what, held, seen, promise))

    # -- steps ------------------------------------------------------------------------------

    async def policy(self) -> _Show:
        """Wait until the policy server has pushed to every agent what it needs."""

        async def arrived() -> bool:
            found = [await self.lab.policy(host) for host in CHAIN]
            self.report.policy = found[0]
            current = all(one.connected and one.generation for one in found)
            return current and found[0].rules > 0

        held = await _within(60, arrived)
        rules = self.report.policy.rules if self.report.policy else 0
        self.check(
            "the policy server has pushed to every agent what it needs",
            held,
            f"{rules} rules to the client",
        )
        return demo_report.policy

    async def chain(self) -> _Show:
        """Use the chain with tcpdump on every link, and compare what everyone saw."""
        lab = self.lab
        async with capture.on_links(lab, self.links, self.watched) as captures:
            transfers = await self._fetch_pages()
            await self._iperf3(_IPERF3, "-t", "1", "-b", "300M")
            # The last packets may still be on their way into tcpdump's files.
            await _within(2, lambda: self._compare(captures, transfers))
        self.report.checks += self.compared
        return demo_report.chain

    async def live(self) -> _Show:
        """Ask the agent and both kernels about iperf3's session while it runs."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._iperf3, _IPERF3, "-t", "50", "-b", "300M")  # until we are done
            live: SessionInfo | None = None

            async def carries_data() -> bool:
                nonlocal live
                mine = [
                    session
                    for session in await self._sessions("client")
                    if session.supersession.dport == _IPERF3
                    and session.to_server is not None
                    and session.to_server.bytes > 1_000_000
                    and not session.to_server.fin  # one that has ended lingers for a second
                ]
                live = mine[0] if mine else None
                return live is not None

            if not await _within(20, carries_data) or live is None:
                raise LabError("the client's agent tells of no session of iperf3")
            path = await self.lab.path("client", live.id)
            hosts = tuple(hop.host.removeprefix(f"{self.lab.name}-") for hop in path.hops)
            self.report.path = path
            self.check(
                "a live session of iperf3 goes through the chain",
                path.complete and hosts == CHAIN,
                " -> ".join(hosts),
            )
            client, server = live.supersession.source, live.supersession.destination
            for host, ends in (("client", (client, server)), ("server", (server, client))):
                shown = await self.lab.run(host, "ss", "-tnH", "state", "established")
                # A socket that serves IPv6 as well shows the same address as [::ffff:10.0.4.2].
                plain = re.sub(r"\[::ffff:([0-9.]+)\]", r"\1", shown.out)
                rows = [line.split()[2:4] for line in plain.splitlines()]
                there = list(ends) in rows
                self.report.sockets[host] = " ".join(ends) if there else shown.out
                self.check(
                    f"ss on the {host} shows the supersession",
                    there,
                    self.report.sockets[host],
                    "I3",
                )
            nursery.cancel_scope.cancel()
        return demo_report.live

    async def refused(self) -> None:
        """A port that nginx serves, the policy matches and the firewall rejects."""
        lab, url = self.lab, f"http://{self.lab.address('server')}:{_FORBIDDEN}/"
        there = await lab.run("server", "curl", "-sS", url)
        tried = await lab.run("client", "curl", "-sS", "--max-time", "5", url, check=False)
        counted = (await self._counters())["refused"]
        self.check(
            "nginx serves the port",
            bool(there.out),
            f"the server's own curl of port {_FORBIDDEN} gets {len(there.out)} bytes",
        )
        self.check(
            "the client's connection through the chain is refused",
            tried.status == 7,
            tried.err.strip() or f"curl ended with status {tried.status}",
        )
        self.check(
            "it was the firewall, by the application's own port",
            counted > 0,
            f"nftables: tcp dport {_FORBIDDEN} reject: {counted} packets",
            "I3",
        )

    async def unmatched(self) -> None:
        """A port that no policy names goes straight, as if there were no M2M."""
        lab, server = self.lab, self.lab.address("server")
        async with capture.on_links(lab, self.links, self.watched) as captures:
            page = await lab.run("client", "curl", "-sS", f"http://{server}:{_STRAIGHT}/")
            by_end = {self._far_end(c): c for c in captures}

            def straight(end: str) -> list[Connection]:
                found = capture.connections(by_end[end].packets())
                return [c for c in found if c.flow.dport == _STRAIGHT]

            async def complete() -> bool:
                one, other = straight("client"), straight("server")
                return bool(one) and one == other

            same = await _within(2, complete)
            elsewhere = {
                end: sum(packet.flow.proto == Proto.TCP for packet in by_end[end].packets())
                for end in ("firewall", "ids")
            }
        flows = [str(connection.flow) for connection in straight("client")]
        sessions = [s for s in await self._sessions("client") if s.supersession.dport == _STRAIGHT]
        self.check("it is served", page.out == self._page("index.html"), page.out.strip())
        self.check(
            "its packets are the same on the client's and on the server's link",
            same,
            ", ".join(flows),
            "I7",
        )
        self.check(
            "neither middlebox nor agent knows of it",
            not sessions and not any(elsewhere.values()),
            ", ".join(f"{n} packets at {host}" for host, n in elsewhere.items())
            + f", {len(sessions)} sessions",
            "I7",
        )

    async def throughput(self) -> _Show:
        """Short runs of iperf3, the chain and plain forwarding by turns."""
        samples: dict[int, list[float]] = {_IPERF3: [], _DETOURED_IPERF3: []}
        for i in range(_ROUNDS):
            # Who goes first changes, so that a drift of the machine favours nobody.
            for port in sorted(samples, reverse=i % 2 == 1):
                done = await self._iperf3(port, "-t", "1")
                rate = done["end"]["sum_received"]["bits_per_second"]
                samples[port].append(rate / 1e9)
        self.report.throughput = Compared("Gbit/s", samples[_IPERF3], samples[_DETOURED_IPERF3])
        return demo_report.throughput

    async def setup(self) -> _Show:
        """connect() by turns to a port that goes through the chain and one that is detoured."""
        probe = await self.lab.run(
            "client", sys.executable, "-m", "m2m.lab.probe",
            self.lab.address("server"), str(_CONNECTS), str(_WEB), str(_DETOURED_WEB),
        )  # fmt: skip
        times = msgspec.json.decode(probe.out, type=dict[int, list[float]])
        self.report.setup = Compared("µs", times[_WEB], times[_DETOURED_WEB])
        return demo_report.setup

    async def end(self) -> None:
        """All connections are closed: no agent may know a session any more."""
        counts: dict[str, int] = {}

        async def none() -> bool:
            for host in CHAIN:
                counts[host] = len(await self._sessions(host))
            return not any(counts.values())

        self.check(
            "every session is gone from every host",
            await _within(60, none),
            ", ".join(f"{host} {count}" for host, count in counts.items()),
            "I9",
        )

    # -- parts of the chain step --------------------------------------------------------------

    async def _fetch_pages(self) -> list[dict[str, Any]]:
        """Fetch all pages over one connection and compare them with what nginx was given."""
        names = list(self._pages())
        files = [self.lab.directory / f"got-{i}" for i in range(len(names))]
        argv = ["curl", "-sS", "--max-time", "20", "-w", "%{json}\n"]
        for name, file in zip(names, files, strict=True):
            argv += ["-o", str(file), f"http://{self.lab.address('server')}:{_WEB}/{name}"]
        done = await self.lab.run("client", *argv)
        transfers = [msgspec.json.decode(line) for line in done.out.splitlines()]
        same = [f.read_text() == self._page(n) for n, f in zip(names, files, strict=True)]
        sizes = " and ".join(f"{t['size_download']:,} bytes" for t in transfers)
        self.check("curl gets the server's pages, unchanged", all(same), sizes)
        return transfers

    async def _compare(
        self, captures: Sequence[LinkCapture], transfers: Sequence[Mapping[str, Any]]
    ) -> bool:
        """Compare what tcpdump, firewall and IDS saw; whether it fits together by now."""
        seen = {self._far_end(c): c.packets() for c in captures}
        counters = await self._counters()
        found = capture.connections(seen["client"])
        if not found:
            raise LabError("tcpdump on the client's link saw no connection of curl")
        first, *others = found  # curl's, then those of iperf3
        tapped = [p for file in self._ids_files() for p in capture.read(file)]
        ids, ids_check = demo_evidence.tap_saw(self.chain_hosts, tapped, first)
        client, server = self.lab.address("client"), self.lab.address("server")
        firewall = NfSeen(
            nf="firewall",
            kind="inline",
            packets=counters["web"],
            flows=[f"{client} > {server}:{_WEB} tcp", f"{server}:{_WEB} > {client} tcp"],
            sees="supersession",
        )
        self.report.links = self.chain_hosts.links(seen)
        self.report.nfs = [firewall, ids]
        self.compared = [
            self.chain_hosts.neighbours_only(seen),
            self.chain_hosts.sizes_unchanged(seen),
            demo_evidence.no_byte_added(
                first,
                sum(transfer["size_request"] for transfer in transfers),
                sum(t["size_header"] + t["size_download"] for t in transfers),
            ),
            demo_evidence.offloads_used(seen, max(link.mtu for link in self.links)),
            demo_evidence.firewall_matched(counters, first, others),
            ids_check,
        ]
        return all(check.held for check in self.compared)

    def _ids_files(self) -> list[Path]:
        """What the IDS's own tcpdump writes."""
        return sorted(self.lab.home("ids", "tcpdump").glob("seen.pcap*"))

    # -- helpers ------------------------------------------------------------------------------

    def _pages(self) -> dict[str, str | int]:
        programs_there = self.lab.topology.hosts["server"].run
        return next(item.pages for item in programs_there if isinstance(item, Nginx))

    def _page(self, name: str) -> str:
        content = self._pages()[name]
        return content if isinstance(content, str) else programs.filler(content).decode()

    def _far_end(self, seen: LinkCapture) -> str:
        """The host of the chain on a captured link."""
        return seen.link.other(seen.host)

    async def _sessions(self, host: str) -> list[SessionInfo]:
        return await self.lab.sessions(host)

    async def _iperf3(self, port: int, *options: str) -> Any:
        server = self.lab.address("server")
        done = await self.lab.run("client", "iperf3", "-J", "-c", server, "-p", str(port), *options)
        return msgspec.json.decode(done.out)

    async def _counters(self) -> dict[str, int]:
        """Packets of the firewall's named counters."""
        listed = await self.lab.run("firewall", "nft", "list", "counters")
        found = re.findall(r"counter (\w+) \{\s*packets (\d+)", listed.out)
        return {name: int(packets) for name, packets in found}


async def _within(seconds: float, condition: Callable[[], Awaitable[bool]]) -> bool:
    """Whether *condition* comes true within *seconds*."""
    with trio.move_on_after(seconds):
        while not await condition():  # noqa: ASYNC110  (other processes tell of no event)
            await trio.sleep(0.05)
        return True
    return False
