"""``m2m-lab run process-move``: a process moves to another host with its live connections."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import msgspec
import trio
from rich.console import Console
from rich.text import Text

from m2m.agent.api import PathInfo
from m2m.agent.dialogue import HandOver, LeadHere, TakenItem, TakeOver
from m2m.cli.query import ask
from m2m.lab import demo_report, mobile_witness, mobility_report, state
from m2m.lab.demo_results import Check, Judged
from m2m.lab.hosts_of_process import (
    CORE,
    HERE,
    MOVABLE,
    OTHER,
    THERE,
    UE,
    hosts_of_process,
)
from m2m.lab.lab import Lab, open_lab
from m2m.lab.netns import LabError
from m2m.lab.pace import SLOWNESS
from m2m.lab.topology import Ready
from m2m.lab.traffic import bulk

_DRAWING = f"""
    [cyan]{UE}[/] ─── core ──┬── [cyan]{HERE}[/]
            │  │   └── [cyan]{THERE}[/]
            fw ids

  A server is at {HERE} with connections from {UE}, each with a checked
  transfer both ways. It is frozen, goes to {THERE} with them by TCP_REPAIR,
  and back. Another server's connection stays."""
_FLOWS = 4
_PAUSE = 0.5  # s between two moves: the transfers go on as if nothing had been
_LOOK = 0.02  # s between two looks at what other processes tell no event of
_PATIENCE = 20.0 * SLOWNESS  # s until sessions that are over are forgotten everywhere


class Moved(msgspec.Struct, frozen=True):
    """One move of the process."""

    source: str
    target: str
    sessions: int
    frozen: float  # s in which the process did nothing, of which the steps took:
    steps: dict[str, float]


class Report(Judged, msgspec.Struct):
    """What ``m2m-lab run process-move --json`` prints."""

    scenario: str = "process-move"
    moves: list[Moved] = []
    transfers: dict[str, bulk.Report] = {}
    checks: list[Check] = []


class _Process:
    """One that can be the server that moves."""

    def __init__(self, lab: Lab, host: str, number: int) -> None:
        self._lab = lab
        self.host = host
        self._name = f"movable{number}"
        self._orders = lab.directory / f"{self._name}.orders"

    async def start(self, *how: str) -> None:
        """``serve PORT`` or ``wait``."""
        module = [sys.executable, "-m", "m2m.lab.traffic.movable"]
        await self._lab.start(
            self.host, self._name, [*module, *how, "--orders", str(self._orders)],
            ready=Ready(log="listening"),
        )  # fmt: skip

    async def order(self, order: str) -> None:
        """Have it do something; returns when it is done. Raises :exc:`LabError`."""
        async with await trio.open_unix_socket(str(self._orders)) as stream:
            await stream.send_all(f"{order}\n".encode())
            answer = b"".join([part async for part in stream]).decode().strip()
        if answer.startswith(("failed", "no order")):
            raise LabError(f"{order} at {self.host}: {answer}")

    async def stop(self) -> None:
        await self._lab.stop(self.host, self._name)


class _Stage:
    def __init__(self, lab: Lab, console: Console, report: Report) -> None:
        self.lab = lab
        self._console = console
        self._report = report
        self._process = _Process(lab, HERE, 0)

    def check(self, *found: Check) -> None:
        self._report.checks += found
        demo_report.checks(self._console, found)

    async def play(self, moves: int) -> None:
        """The process goes to the other host and back, *moves* times in all."""
        lab, process = self.lab, self._process
        server = [sys.executable, "-m", "m2m.lab.traffic.bulk", "serve", str(OTHER)]
        await lab.start(HERE, "other", server, ready=Ready(log="listening"))
        await process.start("serve", str(MOVABLE))
        refusals = {host: await self._refusals(host) for host in (HERE, THERE, UE)}
        async with self._transfer(MOVABLE, _FLOWS), self._transfer(OTHER, 1):
            ids = await self._ids(HERE, MOVABLE, _FLOWS)
            staying = await self._ids(HERE, OTHER, 1)
            with mobility_report.live(self._console) as show:
                for number in range(moves):
                    await trio.sleep(_PAUSE)
                    moved = await self._move(ids)
                    self._report.moves.append(moved)
                    path = await lab.path(UE, ids[0])
                    title = (
                        f"  {number + 1}. {moved.source} to {moved.target}: {moved.sessions}"
                        f" sessions, frozen for {moved.frozen * 1e3:.0f} ms\n"
                    )
                    show.show(mobility_report.with_path(Text(title), path))
                    await self._look(ids, staying, path)
            await trio.sleep(_PAUSE)
        refused = {host: await self._refusals(host) - refusals[host] for host in refusals}
        self._check_transfers()
        await self._check_witnesses(refused)
        await self._process.stop()
        await lab.stop(HERE, "other")

    async def _move(self, ids: list[str]) -> Moved:
        lab, process = self.lab, self._process
        source, target = process.host, THERE if process.host == HERE else HERE
        number = len(self._report.moves)
        heir = _Process(lab, target, number + 1)
        await heir.start("wait")
        deeds, image = (str(lab.directory / f"{what}{number}") for what in ("deeds", "image"))
        steps: dict[str, float] = {}
        began = before = monotonic()

        def step(what: str) -> None:
            nonlocal before
            now = monotonic()
            steps[what], before = now - before, now

        await process.order("freeze")
        step("freeze")
        await self._ask(source, HandOver(tuple(ids), deeds))
        step("hand over")
        await process.order(f"take-out {image}")
        step("take out")
        await self._ask(target, TakeOver(deeds))
        step("take over")
        await heir.order(f"put-in {image}")
        step("put in")
        await self._ask(target, LeadHere())
        step("lead here")
        await heir.order("thaw")
        step("thaw")
        frozen = monotonic() - began
        self._process = heir
        await process.stop()
        return Moved(source, target, len(ids), frozen, steps)

    async def _ask(self, host: str, request: HandOver | TakeOver | LeadHere) -> None:
        """As ``m2mctl`` does, but for the time that its interpreter takes to start."""
        items = await trio.to_thread.run_sync(list, ask(self.lab.control_socket(host), request))
        refused = [item for item in items if isinstance(item, TakenItem) and item.taken.refused]
        if refused:
            raise LabError(f"{host} does not take over: {refused}")

    # -- what must hold -----------------------------------------------------------------

    async def _look(self, ids: list[str], staying: list[str], path: PathInfo) -> None:
        """After a move: who has what."""
        at = self._process.host
        former = HERE if at == THERE else THERE
        own = self.lab.address(HERE)
        with_socket = {host: await self._sockets(host) for host in (HERE, THERE)}
        there = {host: await self._sessions(host) for host in (HERE, THERE)}
        leg = path.hops[-1].left if path.hops else None
        kept = await self._kept(THERE)
        if at == HERE:  # the agent lets it go a second after the last of its sessions has left
            with trio.move_on_after(_PATIENCE):
                while own in kept:
                    await trio.sleep(_LOOK)
                    kept = await self._kept(THERE)
        left = set(ids) & set(there[former])
        ends = leg.destination if leg is not None else "nowhere"
        self.check(
            Check(
                f"the sockets are at {at}, and nowhere else",
                with_socket == {at: _FLOWS, former: 0},
                ", ".join(f"{host}: {count}" for host, count in with_socket.items()),
            ),
            Check(
                f"the sessions are at {at}, and nothing of them is left at {former}",
                set(ids) <= set(there[at]) and not left,
                f"{len(set(ids) & set(there[at]))} and {len(left)} sessions",
            ),
            Check(
                f"their last leg leads to {at}'s own address",
                path.complete and leg is not None and leg.dst == self.lab.address(at),
                ends,
            ),
            Check(
                f"the other process's session has stayed at {HERE}",
                set(staying) <= set(there[HERE]) and not set(staying) & set(there[THERE]),
                f"{len(set(staying) & set(there[HERE]))} at {HERE}",
            ),
            Check(
                f"{THERE} has the sessions' own address as long as it has the sessions",
                (own in kept) == (at == THERE),
                f"it keeps {', '.join(kept) or 'none'}",
            ),
        )

    def _check_transfers(self) -> None:
        for what, port in (("moves", MOVABLE), ("stays", OTHER)):
            report = self._report.transfers[str(port)]
            ways = [way for way in (report.up, report.down) if way is not None]
            wrong = sum(way.wrong for way in ways)
            self.check(
                Check(
                    f"every byte to and from the process that {what} is right",
                    len(ways) == 2 and all(way.bytes for way in ways) and not wrong,
                    " and ".join(f"{way.bytes / 1e6:,.0f} MB" for way in ways)
                    + f", {wrong} wrong; nothing came for "
                    + f"{max(way.stall for way in ways) * 1e3:.0f} ms at most",
                    "I4",
                )
            )

    async def _check_witnesses(self, refused: dict[str, int]) -> None:
        lab = self.lab
        seen = await mobile_witness.firewall(lab)
        bare = await lab.run(CORE, "nft", "-j", "list", "counter", "ip", "bare", "past")
        (counted,) = (
            one["counter"]["packets"]
            for one in msgspec.json.decode(bare.out)["nftables"]
            if "counter" in one
        )
        self.check(
            mobile_witness.one_tuple(seen, lab.address(UE), lab.address(HERE)),
            Check("no packet went past the chain", not counted, f"{counted} packets", "I2"),
            Check(
                "no host's kernel has refused a packet",
                not any(refused.values()),
                ", ".join(f"{host}: {count} RST" for host, count in refused.items()),
            ),
        )

    async def nothing_left(self) -> None:
        """Wait until all sessions are forgotten, and check that nothing else stays."""
        hosts = [host for host, _ in self.lab.topology.with_role()]

        async def look() -> Check:
            left = [await mobile_witness.left(self.lab, host) for host in hosts]
            return mobile_witness.nothing_left(left)

        found = await look()
        with trio.move_on_after(_PATIENCE):
            while not found.held:
                await trio.sleep(_LOOK)
                found = await look()
        kept = await self._kept(THERE)
        self.check(found, Check(f"{THERE} keeps no address", not kept, ", ".join(kept) or "none"))

    # -- looking ------------------------------------------------------------------------

    @asynccontextmanager
    async def _transfer(self, port: int, flows: int) -> AsyncIterator[None]:
        """Checked transfers both ways in the block; they are reported after it."""
        lab, name = self.lab, f"send{port}"
        send = [sys.executable, "-m", "m2m.lab.traffic.bulk", "send", lab.address(HERE), str(port)]
        await lab.start(
            UE, name, [*send, "--ways", "both", "--flows", str(flows)], ready=Ready(log="sending")
        )
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await lab.stop(UE, name)
        said = lab.log(UE, name).read_text().splitlines()
        try:
            self._report.transfers[str(port)] = msgspec.json.decode(said[-1], type=bulk.Report)
        except msgspec.DecodeError as error:
            raise LabError(f"the transfer ended without a report: {said[-1]}") from error

    async def _ids(self, host: str, port: int, count: int) -> list[str]:
        """The ids of the sessions to *port*, once there are as many as that."""
        with trio.fail_after(_PATIENCE):
            while True:
                found = [
                    one.id for one in await self.lab.sessions(host)
                    if one.supersession.dport == port and one.state == "established"
                ]  # fmt: skip
                if len(found) == count:
                    return found
                await trio.sleep(_LOOK)

    async def _sessions(self, host: str) -> list[str]:
        return [one.id for one in await self.lab.sessions(host)]

    async def _sockets(self, host: str) -> int:
        """Connections of the process's port that the kernel of *host* has."""
        said = await self.lab.run(host, "ss", "-Htn4", "sport", "=", f":{MOVABLE}")
        return len(said.out.splitlines())

    async def _kept(self, host: str) -> list[str]:
        """The addresses that the agent keeps local."""
        said = await self.lab.run(host, "ip", "-j", "route", "show", "table", "local")
        return [
            one["dst"] for one in msgspec.json.decode(said.out) if one.get("metric") == 19762
        ]  # fmt: skip

    async def _refusals(self, host: str) -> int:
        """RST that TCP of *host* has sent."""
        said = await self.lab.run(host, "cat", "/proc/net/snmp")
        names, values = (line.split() for line in said.out.splitlines() if line.startswith("Tcp:"))
        return int(values[names.index("OutRsts")])


async def run(*, keep: bool, as_json: bool, moves: int = 10) -> int:
    """Play it with *moves* moves; 0 when every check held, else 1. Raises :exc:`LabError`."""
    if moves < 1:
        raise LabError(f"--moves {moves}: a scenario has one move at least")
    console = Console(stderr=as_json, highlight=False)
    console.width = min(console.width, demo_report.WIDTH)
    topology = hosts_of_process()
    report = Report()
    state.check_possible(topology.name)  # before anything is drawn
    console.print("\n[bold]M2M process-move[/]: one process goes to another host")
    console.print(_DRAWING)
    demo_report.heading(console, f"The process to the other host and back: {moves} moves")
    async with open_lab(topology) as lab:
        stage = _Stage(lab, console, report)
        await stage.play(moves)
        await stage.nothing_left()
        if keep:
            lab.detach()
    _summary(console, report)
    if keep:
        console.print(f"\nThe lab is still up. End it: m2m-lab down {topology.name}")
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
    return 0 if report.held else 1


def _summary(console: Console, report: Report) -> None:
    """How long each step took, and whether everything held."""
    demo_report.heading(console, "What it took")
    table = demo_report.plain_table("ms, median of all moves", ">ms")
    for what in report.moves[0].steps:
        times = sorted(moved.steps[what] for moved in report.moves)
        table.add_row(what, f"{times[len(times) // 2] * 1e3:.1f}")
    frozen = sorted(moved.frozen for moved in report.moves)
    table.add_row("frozen in all", f"{frozen[len(frozen) // 2] * 1e3:.1f}")
    console.print(table)
    failed = [check for check in report.checks if not check.held]
    if failed:
        console.print(f"\n[bold red]{len(failed)} of {len(report.checks)} checks failed:[/]")
        demo_report.checks(console, failed)
    else:
        console.print(f"\n[bold green]All {len(report.checks)} checks held.[/]")
