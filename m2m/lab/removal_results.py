"""What ``m2m-lab run proxy-removal`` finds: goodput and the proxy's work over time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from m2m.lab.demo_results import Check, Judged
from m2m.lab.pace import SLOWNESS
from m2m.lab.traffic.downloads import Turn

__all__ = ["Moment", "Report", "Trial", "Way", "checks", "checks_of_whole"]

_STALL = 0.05 * SLOWNESS  # s
_AROUND = 0.25  # s before and after the removal in which a gap counts as one of it
_SHARE = 0.97  # of the goodput without a proxy
_SILENT = 20.0  # packets a second: what hosts say to each other now and then


class Way(StrEnum):
    """How the downloads go."""

    REMOVED = "Squid leaves"
    THROUGH = "through Squid"
    DIRECT = "without Squid"


class Moment(msgspec.Struct, frozen=True):
    """The proxy's host, once in a while."""

    at: float  # s since the beginning of the downloads
    cpu: float  # s that Squid has used so far
    packets: int  # that its host has sent and received


class Trial(msgspec.Struct):
    """Some downloads, all at once, in one way."""

    way: Way
    number: int  # from 0
    flows: int
    bin: float  # s
    bytes: list[int]  # that came, bin by bin
    moments: list[Moment]
    right: int  # flows whose bytes were the right ones
    left: list[float]  # when Squid left each, s
    longest: float  # s in which nothing came for one of the flows, around its removal; or at all
    rest: int = 0  # sessions of the proxy's host afterwards
    turns: list[Turn] = []  # if it took turns with another

    @property
    def first(self) -> float:
        """When the first was left."""
        return min(self.left, default=0.0)

    @property
    def last(self) -> float:
        return max(self.left, default=0.0)

    @property
    def end(self) -> float:
        return len(self.bytes) * self.bin

    def goodput(self, begin: float, end: float) -> float:
        """Octets a second between two times."""
        first, last = int(begin / self.bin) + 1, int(end / self.bin)
        found = self.bytes[first:last]
        return statistics.fmean(found) / self.bin if found else 0.0

    def throughout(self) -> float:
        return self.goodput(0.1, self.end - self.bin)

    def rates(self, begin: float) -> list[float]:
        """Octets a second in each of its turns after *begin*, s, if it took turns with another."""
        return [one.octets / one.seconds for one in self.turns if one.at > begin]

    def cpu(self, begin: float, end: float) -> float:
        """Squid's share of a processor between two times."""
        inside = [one for one in self.moments if begin <= one.at <= end]
        if len(inside) < 2:
            return 0.0
        return (inside[-1].cpu - inside[0].cpu) / (inside[-1].at - inside[0].at)

    def packets(self, begin: float, end: float) -> float:
        """Of the proxy's host, a second."""
        inside = [one for one in self.moments if begin <= one.at <= end]
        if len(inside) < 2:
            return 0.0
        return (inside[-1].packets - inside[0].packets) / (inside[-1].at - inside[0].at)


class Share(msgspec.Struct, frozen=True):
    """One goodput as a share of another, of pairs that were measured one after the other."""

    goodput: float  # octets a second, on average
    beside: float
    error: float  # standard, of the share
    pairs: int

    @property
    def share(self) -> float:
        return self.goodput / self.beside

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> Share:
        """A quotient of sums, since one of a pair may be next to nothing; its standard error:
        Cochran, Sampling Techniques, 3rd edition, 2.11."""
        if len(pairs) < 2:
            return cls(0.0, 1.0, 1.0, len(pairs))
        goodput, beside = (statistics.fmean(found) for found in zip(*pairs, strict=True))
        many, share = len(pairs), goodput / beside
        spread = sum((one - share * other) ** 2 for one, other in pairs) / (many - 1)
        return cls(goodput, beside, (spread / many) ** 0.5 / beside, many)


class Report(Judged, msgspec.Struct):
    """What ``m2m-lab run proxy-removal --json`` prints."""

    scenario: str = "proxy-removal"
    whole: Trial | None = None  # a download that came to its end
    trials: list[Trial] = []
    compared: list[Trial] = []  # pairs that took turns: Squid leaves, and is not there at all
    checks: list[Check] = []

    def of(self, way: Way, flows: int) -> list[Trial]:
        """The trials of so many flows."""
        return [one for one in self.trials if (one.way, one.flows) == (way, flows)]

    def pair(self, flows: int) -> tuple[Trial, Trial]:
        """Those of so many flows that took turns: Squid leaves, and is not there at all."""
        removed, direct = (trial for trial in self.compared if trial.flows == flows)
        return removed, direct


def around(gaps: dict[int, float], left: float, size: float) -> float:
    """The longest of the *gaps*, by bins of *size*, that ended shortly before or after *left*."""
    near = [
        gap for number, gap in gaps.items() if left - _AROUND <= number * size <= left + _AROUND
    ]
    return max(near, default=0.0)


def checks_of_whole(trial: Trial, size: int) -> list[Check]:
    """What must hold of one download of *size* octets."""
    came = sum(trial.bytes)
    return [
        Check(
            "All of it has come, and each byte is the right one",
            came == size and trial.right == 1,
            f"{came:,} bytes in {trial.end:.1f} s",
        ),
        *_checks_of_leaving([trial], [trial], _STALL),
    ]


def checks(report: Report, flows: int) -> list[Check]:
    """What must hold of so many flows."""
    removed, direct = report.of(Way.REMOVED, flows), report.of(Way.DIRECT, flows)
    compared, beside = report.pair(flows)
    all_removed = [*removed, compared]
    right = sum(one.right for one in all_removed)
    by_itself = max(one.longest for one in direct)
    begin = compared.last + _AROUND
    share = Share.of(list(zip(compared.rates(begin), beside.rates(begin), strict=False)))
    return [
        Check(
            "All bytes are the right ones",
            right == flows * len(all_removed),
            f"{right} of {flows * len(all_removed)} flows,"
            f" {sum(sum(one.bytes) for one in all_removed) / 1e9:.2f} GB",
        ),
        *_checks_of_leaving(removed, all_removed, max(_STALL, by_itself)),
        Check(
            f"Afterwards goodput is at least {_SHARE:.0%} of that without a proxy",
            share.share >= _SHARE,
            f"{share.goodput * 8e-9:.3f} Gbit/s beside {share.beside * 8e-9:.3f}:"
            f" {share.share:.1%}, standard error {share.error:.1%} ({share.pairs:,} turns)",
        ),
    ]


def _checks_of_leaving(steady: list[Trial], trials: list[Trial], most: float) -> list[Check]:
    """All *trials* were left; the *steady* ones were read all the time, so that a gap of more than
    *most* seconds was not the reader's."""
    wanted = sum(one.flows for one in trials)
    left, rest = sum(len(one.left) for one in trials), sum(one.rest for one in trials)
    busy = min(one.packets(0.0, one.first) for one in steady)
    silent = max(one.packets(one.last + 4 * _AROUND, one.end) for one in trials)
    longest = max(one.longest for one in steady)
    return [
        Check(
            "Squid has left every session, and its host all chains",
            left == wanted and rest == 0,
            f"{left} of {wanted}; {rest} sessions at its host",
        ),
        Check(
            "Its host's packet counters stop",
            silent < _SILENT,
            f"{busy:,.0f} packets a second before, " * (busy > 0) + f"{silent:,.0f} a second after",
        ),
        Check(
            f"No download stalls for more than {most * 1e3:.0f} ms when its session is left",
            longest <= most,
            f"at most {longest * 1e3:.1f} ms without a byte" if longest else "never for 10 ms",
        ),
    ]
