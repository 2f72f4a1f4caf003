"""Handovers of a UE between two cells: how long the application hears nothing (§4.2.3, §8).

The *interruption* of a handover is the largest gap between two records of a probe until the next
one, less the link's own outage (:mod:`m2m.lab.gaps`). The interface of one cell goes down, then
that of the other comes up: break before make.

Its peers, in a lab of the same shape without M2M and without middleboxes:

- the same outage without a move, by turns: what plain forwarding and the probes' own pace add,
- MPTCP under the same moves, its path manager told at once by the same process, either when the
  link is lost or just before, which lets it say goodbye by the old link,
- a plain TCP connection, which hears nothing until its address is back.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import trio

from m2m.errors import M2MError
from m2m.lab.bench import handover_figure
from m2m.lab.bench.report import Plan, Result, Samples, Say, percentile
from m2m.lab.gaps import silence
from m2m.lab.handover import CELLS, SERVER, UE, handover
from m2m.lab.lab import Lab, open_lab
from m2m.lab.moves import Endpoint, Listener, Moved, endpoint
from m2m.lab.mptcp import following
from m2m.lab.netns import LabError
from m2m.lab.probing import Probed, probing

_PACE = {1: 0.5, 100: 4.0, 1000: 4.0}  # ms between two records of a probe, by number of sessions
_PROBES = 20  # among many sessions; the others are all but idle
_SETTLE = 0.25  # s from one handover to the next, and up to twice that
_FORGOTTEN = 10.0  # s, at most, until sessions that were ended are
_TURNS = 4  # in how many parts a series and its peer's take turns
_SEED = 7
_AGENT = ("--linger", "1")  # sessions that are all but idle live longer than in the lab of `run`


class Series(NamedTuple):
    """All handovers of one kind with one number of sessions."""

    name: str  # "M2M, UDP, 100 sessions"
    found: tuple[Probed, ...]

    @property
    def handovers(self) -> list[tuple[Moved, list[float]]]:
        """Each with the interruptions of its probes, in milliseconds."""
        return [
            (moved, [one * 1e3 for one in row])
            for found in self.found
            for moved, row in zip(found.moves, found.added(), strict=True)
        ]

    @property
    def every(self) -> tuple[float, ...]:
        """Milliseconds of each probe in each handover."""
        return tuple(one for _, row in self.handovers for one in row)


async def run(plan: Plan, say: Say) -> list[Result]:
    """Milliseconds that a handover adds to the link's own outage, p50 and p99 over all probes."""
    moves = plan.pick(200, 5)
    numbers = plan.pick((1, 100, 1000), (1, 100))
    turns = plan.pick(_TURNS, 1)
    plain: dict[tuple[str, int], Series] = {}
    ours: dict[tuple[str, int], Series] = {}
    async with (
        _lab("benchhoplain") as without, _lab("benchho") as lab,
        _moving(without) as still, _moving(lab) as ue,
    ):  # fmt: skip
        await lab.start_agents()
        for proto, number in itertools.product(("udp", "tcp"), numbers):
            what = f"{proto.upper()}, {_many(number)}"
            moved: list[Probed] = []
            blinked: list[Probed] = []
            for turn in range(turns):
                say(f"{what} ({turn + 1})")
                drawn = moves // turns, _SEED + turn
                blinked.append(await _series(without, proto, number, drawn, still.blink))
                moved.append(await _series(lab, proto, number, drawn, ue.hand_over))
                await _forget(lab)
            ours[proto, number] = Series(f"M2M, {what}", tuple(moved))
            plain[proto, number] = Series(f"no move, {what}", tuple(blinked))
    async with _lab("benchhoplain") as lab:
        async with _moving(lab) as ue:
            say("plain TCP")
            dead = await _dead(lab, ue, plan.pick(30.0, 2.0))
        mptcp = [await _mptcp(lab, moves, say, warned=warned) for warned in (False, True)]
    results: list[Result] = []
    for key, series in ours.items():
        results += _rows(series, plain[key], "the same outage without a move, no M2M")
    for peer in mptcp:
        results += _rows(ours["tcp", 1], peer, peer.name)
    results.append(_beside_dead(ours["tcp", 1], dead))
    handover_figure.write(plan.figures, [*ours.values(), *plain.values(), *mptcp])
    return results


def _many(number: int) -> str:
    return "1 session" if number == 1 else f"{number:,} sessions"


@asynccontextmanager
async def _lab(name: str) -> AsyncIterator[Lab]:
    """Without agents as yet: they are to see the endpoints where those begin."""
    async with open_lab(handover(name=name, agent=_AGENT), agents=False) as lab:
        yield lab


@asynccontextmanager
async def _moving(lab: Lab, listener: Listener | None = None) -> AsyncIterator[Endpoint]:
    async with endpoint(lab, UE, listener) as ue, endpoint(lab, SERVER):
        yield ue


async def _series(
    lab: Lab,
    proto: str,
    number: int,
    drawn: tuple[int, int],
    move: Callable[[], Awaitable[Moved]],
) -> Probed:
    """Moves under *number* sessions; *drawn*: how many, and what their moments are drawn from."""
    moves, seed = drawn
    draw = random.Random(seed)
    watched = min(number, _PROBES)
    async with probing(
        lab, proto, sessions=number, watched=watched, interval=_PACE[number], seed=_SEED
    ) as probes:
        for _ in range(moves):
            await trio.sleep(_SETTLE * (1 + draw.random()))
            probes.moves.append(await move())
        await trio.sleep(_SETTLE)
    if probes.found.ended:
        raise LabError(f"{proto} sessions ended under moves: {probes.found.ended[0]}")
    return probes.found


async def _forget(lab: Lab) -> None:
    """Sessions of an earlier series would move too, and UDP's live until they have been idle."""
    for session in await lab.sessions(UE):
        with suppress(M2MError):  # it has ended by itself meanwhile
            await lab.end(UE, session.id)
    with trio.fail_after(_FORGOTTEN):
        while await lab.sessions(UE):  # noqa: ASYNC110  (other processes tell of no event)
            await trio.sleep(_SETTLE)


async def _mptcp(lab: Lab, moves: int, say: Say, *, warned: bool) -> Series:
    name = f"MPTCP, told {'before the loss' if warned else 'of the loss'}"
    say(name)
    async with following(lab, CELLS, warned=warned) as listener, _moving(lab, listener) as ue:
        listener("usable", ue.at)
        found = await _series(lab, "mptcp", 1, (moves, _SEED), ue.hand_over)
        listener("lost", ue.at)
    return Series(name, (found,))


async def _dead(lab: Lab, ue: Endpoint, seconds: float) -> float:
    """Seconds in which a plain TCP connection heard nothing after one handover; then it is back."""
    async with probing(lab, "tcp") as probes:
        await trio.sleep(_SETTLE)
        probes.moves.append(await ue.hand_over())
        await trio.sleep(seconds)
    end = probes.found.down.end
    (stream,) = probes.found.down.probes
    still = silence(stream.arrivals, probes.moves[0], end)
    await ue.hand_over()
    if still is None:
        raise LabError("a plain TCP connection survived the loss of its address; is M2M running?")
    return still


def _rows(series: Series, peer: Series, peer_name: str) -> list[Result]:
    samples = Samples(series.every, peer.every)
    if not samples.ours or not samples.peer:
        raise LabError(f"{series.name}: no probe was heard before a handover")
    rows = []
    for label, rank in (("p50", 0.5), ("p99", 0.99)):
        ours, theirs = percentile(samples.ours, rank), percentile(samples.peer, rank)
        rows.append(
            Result(
                name=f"handover, {series.name}, {label}",
                unit="ms",
                ours=ours,
                peer=theirs,
                peer_name=peer_name,
                ratio=ours / theirs if theirs else 0.0,
                samples=samples,
            )
        )
    return rows


def _beside_dead(series: Series, seconds: float) -> Result:
    ours = percentile(series.every, 0.99)
    return Result(
        name=f"handover, {series.name}, p99",
        unit="ms",
        ours=ours,
        peer=seconds * 1e3,
        peer_name=f"plain TCP: silent all the {seconds:.0f} s that it was watched",
        ratio=ours / (seconds * 1e3),
        samples=Samples(series.every, (seconds * 1e3,)),
    )
