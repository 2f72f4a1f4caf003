"""What ``m2m-lab run`` shows of endpoints that move, while everything they do goes on."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from ipaddress import IPv4Interface
from typing import NamedTuple

import msgspec
import trio
from rich.console import Console

from m2m.agent.api import PathInfo
from m2m.errors import M2MError
from m2m.lab import demo_report, mobile_trial, mobile_witness, mobility_report, state
from m2m.lab.demo_results import Check, Judged
from m2m.lab.handover import BULK, CONTROL, OTHER_UE, SERVER, UE, handover
from m2m.lab.lab import Lab, open_lab
from m2m.lab.mobile_loads import transfer
from m2m.lab.mobile_trial import Row, Trial
from m2m.lab.moves import Endpoint, Moved, endpoint
from m2m.lab.netns import LabError
from m2m.lab.pace import SLOWNESS
from m2m.lab.probing import probing
from m2m.lab.ssh import ssh_session
from m2m.lab.topology import Topology

_RATE = f"{1000 / SLOWNESS**2:g}mbit"  # of every link; all of them share a slow processor
_AGENT = ("--linger", "1", "--udp-idle", "10", "--setup-timeout", f"{SLOWNESS:g}")
_PAUSE = 0.4  # s between two moves: the loads go on as if nothing had been
_HASTE = 0.01  # s between two moves of which the second meets the first under way
_ECHO = 0.05 * SLOWNESS  # s between two lines of the SSH session
_GAP = 3.0  # s without any address
_PATIENCE = 20.0 * SLOWNESS  # s until sessions that are over are forgotten everywhere
_RECOVERY = 15.0 * SLOWNESS  # s for TCP to find out that its peer is back
_LINGER = 0.25  # s between two looks at what other processes tell no event of


class Report(Judged, msgspec.Struct):
    """What ``m2m-lab run --json`` prints."""

    scenario: str
    trials: list[Row] = []
    checks: list[Check] = []


Play = Callable[["Making"], Awaitable[None]]


class Making:
    """Moves that are being made under load: each is noted, and shown with the path after it."""

    def __init__(self, stage: Stage, show: mobility_report.LivePath) -> None:
        self.moves: list[Moved] = []
        self._stage = stage
        self._show = show

    async def note(self, moved: Moved, *, pause: float = _PAUSE) -> None:
        """Write *moved* down, look at the path, and wait *pause* seconds."""
        self.moves.append(moved)
        if pause >= _PAUSE:
            self._show.update(moved, await self._stage.path())
        await trio.sleep(pause)


class Stage:
    """Where a scenario plays: a lab, its endpoints, a terminal, a report."""

    def __init__(
        self, lab: Lab, ends: dict[str, Endpoint], report: Report, console: Console, moves: int
    ) -> None:
        self.lab = lab
        self.moves = moves
        self.ue, self.server = ends[UE], ends[SERVER]
        self.ends = ends
        self._report = report
        self._console = console
        self._first = lab.address(UE), lab.address(SERVER)

    def check(self, *found: Check) -> None:
        """Write down and show whether something held."""
        self._report.checks += found
        demo_report.checks(self._console, found)

    async def path(self) -> PathInfo | None:
        """The path of the transfer's session, as the UE's agent can tell it now."""
        sessions = await self.lab.sessions(UE)
        found = None
        for one in sessions:
            if one.supersession.dport == BULK:
                try:
                    path = await self.lab.path(UE, one.id)
                except M2MError:
                    continue  # that of an earlier trial, which has just been forgotten
                if path.complete:
                    return path
                found = path  # or it is being forgotten: not all its hosts know it any more
        return found

    async def trial(self, what: str, play: Play, *, lossless: bool = False) -> Trial:
        """Let *play* move the endpoints under load, and check what must hold after it.

        *lossless*: moves by which no datagram may be lost, twice or late.
        """
        demo_report.heading(self._console, what)
        lab = self.lab
        with mobility_report.live(self._console) as show:
            async with (
                ssh_session(lab) as ssh,
                transfer(lab) as sending,
                probing(lab, "udp") as udp,
                probing(lab, "tcp") as tcp,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(ssh.keep_echoing, _ECHO)
                await trio.sleep(_PAUSE)
                making = Making(self, show)
                await play(making)
                udp.moves += making.moves
                tcp.moves += making.moves
                before, waited = ssh.echoed.lines, trio.current_time() + _RECOVERY
                while ssh.echoed.lines < before + 2 and trio.current_time() < waited:  # noqa: ASYNC110
                    await trio.sleep(_LINGER)  # an echo tells that its TCP has recovered
                sockets = await mobile_witness.sockets(lab)
                path = await self.path()
                seen = await mobile_witness.firewall(lab)
                nursery.cancel_scope.cancel()
        trial = Trial(what, udp.found, tcp.found, sending.report, ssh.echoed, seen)
        self._report.trials.append(Row.of(trial))
        self.check(
            *mobile_trial.checks(trial, *self._first, lossless=lossless),
            mobile_witness.unchanged_sockets(sockets, *self._first),
            self._leads_here(path),
        )
        return trial

    def _leads_here(self, path: PathInfo | None) -> Check:
        """The path's ends have the addresses that the endpoints have now."""
        hops = path.hops if path is not None else ()
        ends = (str(self.ue.at.address.ip), str(self.server.at.address.ip))
        legs = [hop.right.src for hop in hops[:1] if hop.right is not None]
        legs += [hop.left.dst for hop in hops[-1:] if hop.left is not None]
        return Check(
            "the path begins and ends at the addresses that the endpoints have now",
            path is not None and path.complete and tuple(legs) == ends,
            f"{' and '.join(legs) or 'no path'}; they have {' and '.join(ends)}",
        )

    async def nothing_left(self) -> None:
        """Wait until all sessions are forgotten, and check that nothing else stays."""
        hosts = [host for host, _ in self.lab.topology.with_role()]

        async def look() -> list[mobile_witness.Left]:
            return [await mobile_witness.left(self.lab, host) for host in hosts]

        found = await look()
        with trio.move_on_after(_PATIENCE):
            while not mobile_witness.nothing_left(found).held:
                await trio.sleep(_LINGER)
                found = await look()
        self.check(mobile_witness.nothing_left(found))


async def _handover(stage: Stage) -> None:
    """Every kind of move of a UE."""

    async def breaking(making: Making) -> None:
        for _ in range(stage.moves):
            await making.note(await stage.ue.hand_over())

    async def preferring(making: Making) -> None:
        for _ in range(4):
            former = stage.ue.at
            await making.note(await stage.ue.prefer())
            await trio.sleep(2 * _PAUSE)
            await stage.ue.leave(former)

    async def readdressing(making: Making) -> None:
        first = stage.ue.at.address
        for other in (IPv4Interface(f"{first.ip + 5}/{first.network.prefixlen}"), first):
            await making.note(await stage.ue.readdress(other))

    await stage.trial(f"Interface A down, B up, and back: {stage.moves} moves", breaking)
    await stage.trial("Both up, and the other one preferred: make before break", preferring,
                      lossless=True)  # fmt: skip
    await stage.trial("Another address on the same interface, and back", readdressing)


async def _ping_pong(stage: Stage) -> None:
    """Moves that meet the move before, still under way."""

    async def hasty(making: Making) -> None:
        for _ in range(max(1, stage.moves // 4)):
            for _ in range(3):
                await making.note(await stage.ue.hand_over(), pause=_HASTE)
            await making.note(await stage.ue.hand_over())

    await stage.trial("Four moves at a time, 10 ms apart", hasty)


async def _outage(stage: Stage) -> None:
    """No address at all, and another UE that takes the former one."""
    other = stage.ends[OTHER_UE]

    async def gap(making: Making) -> None:
        await making.note(await stage.ue.outage(_GAP))
        await making.note(await stage.ue.outage(_GAP))

    async def taken(making: Making) -> None:
        former = stage.ue.at
        moved = await stage.ue.hand_over()
        await other.take(former.address, former.router)
        await making.note(moved)
        reached = await stage.lab.run(
            OTHER_UE, sys.executable, "-m", "m2m.lab.reach", str(former.address.ip),
            stage.lab.address(CONTROL), "9", check=False,
        )  # fmt: skip
        stage.check(
            Check("another UE has the former address, and is heard by it",
                  not reached.status, (reached.out + reached.err).strip())
        )  # fmt: skip

    await stage.trial(f"{_GAP:g} s without any address, then the other cell", gap)
    await stage.trial("The former address is another UE's at once", taken)


async def _server_move(stage: Stage) -> None:
    """The server's host moves to another subnet and back."""

    async def moving(making: Making) -> None:
        for _ in range(stage.moves):
            await making.note(await stage.server.hand_over())

    async def by_turns(making: Making) -> None:
        for _ in range(max(1, stage.moves // 2)):
            await making.note(await stage.server.hand_over())
            await making.note(await stage.ue.hand_over())

    await stage.trial(f"The server to the other rack, and back: {stage.moves} moves", moving)
    await stage.trial("Server and UE by turns", by_turns)


class Scenario(NamedTuple):
    """What ``m2m-lab run NAME`` plays, and where."""

    about: str
    play: Callable[[Stage], Awaitable[None]]
    topology: Callable[[], Topology]


_lab = partial(handover, rate=_RATE, agent=_AGENT)
SCENARIOS = {
    "handover": Scenario("a UE goes from cell to cell, in every way", _handover, _lab),
    "ping-pong": Scenario("a UE that moves again before it has moved", _ping_pong, _lab),
    "outage": Scenario(
        "seconds without an address, which then is another's", _outage,
        partial(_lab, other_ue=True),
    ),
    "server-move": Scenario("the server goes to another rack", _server_move, _lab),
}  # fmt: skip


@asynccontextmanager
async def staged(
    topology: Topology, report: Report, console: Console, moves: int
) -> AsyncIterator[Stage]:
    """A lab with its endpoints at their first places, and agents that have seen them there."""
    async with open_lab(topology, agents=False) as lab, AsyncExitStack() as stack:
        movers = [host for host in (UE, SERVER, OTHER_UE) if host in topology.hosts]
        ends = {host: await stack.enter_async_context(endpoint(lab, host)) for host in movers}
        await lab.start_agents()
        yield Stage(lab, ends, report, console, moves)


async def run(name: str, *, keep: bool, as_json: bool, moves: int = 10) -> int:
    """Play a scenario of *moves* moves; 0 when every check held, else 1.

    With *keep* the lab stays up. Raises :exc:`LabError`.
    """
    if moves < 1:
        raise LabError(f"--moves {moves}: a scenario has one move at least")
    scenario = SCENARIOS[name]
    console = Console(stderr=as_json, highlight=False)
    console.width = min(console.width, demo_report.WIDTH)
    topology = scenario.topology()
    report = Report(name)
    state.check_possible(topology.name)  # before anything is drawn
    mobility_report.opening(console, name, scenario.about, topology)
    async with staged(topology, report, console, moves) as stage:
        await scenario.play(stage)
        await stage.nothing_left()
        if keep:
            stage.lab.detach()
    mobility_report.summary(console, report)
    if keep:
        console.print(f"\nThe lab is still up. End it: m2m-lab down {topology.name}")
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
    return 0 if report.held else 1
