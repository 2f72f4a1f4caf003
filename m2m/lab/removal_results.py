"""What ``m2m-lab run proxy-removal`` finds: goodput and the proxy's work over time."""

from __future__ import annotations

import statistics
from enum import StrEnum

import msgspec

from m2m.lab.demo_results import Check, Judged

__all__ = ["Moment", "Report", "Trial", "Way", "checks"]

_STALL = 0.05  # s
_AROUND = 0.25  # s before and after the removal in which a gap counts as one of it
_SHARE = 0.97  # of the goodput without a proxy
_SILENT = 0.01  # of the packets before, what hosts say to each other now and then


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
    turn: int  # from 0: the ways take turns, since a machine is not as fast at all times
    flows: int
    bin: float  # s
    bytes: list[int]  # that came, bin by bin
    moments: list[Moment]
    right: int  # flows whose bytes were the right ones
    whole: int  # that came whole
    left: list[float]  # when Squid left each, s
    longest: float  # s in which nothing came for one of the flows, around its removal; or at all
    rest: int = 0  # sessions of the proxy's host afterwards

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

    def before(self) -> float:
        return self.goodput(0.1, self.first)

    def throughout(self) -> float:
        return self.goodput(0.1, self.end - self.bin)

    def after(self) -> float:
        """From when all have left."""
        return self.goodput(self.last + _AROUND, self.end - self.bin)

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


class Report(Judged, msgspec.Struct):
    """What ``m2m-lab run proxy-removal --json`` prints."""

    scenario: str = "proxy-removal"
    trials: list[Trial] = []
    checks: list[Check] = []

    def of(self, way: Way, flows: int) -> list[Trial]:
        """The trials of so many flows, turn by turn."""
        return [one for one in self.trials if (one.way, one.flows) == (way, flows)]


def around(gaps: dict[int, float], left: float, size: float) -> float:
    """The longest of the *gaps*, by bins of *size*, that ended shortly before or after *left*."""
    near = [
        gap for number, gap in gaps.items() if left - _AROUND <= number * size <= left + _AROUND
    ]
    return max(near, default=0.0)


def checks(report: Report, flows: int) -> list[Check]:
    """What must hold of so many flows: of every turn, but for goodput, which is a median."""
    removed, direct = report.of(Way.REMOVED, flows), report.of(Way.DIRECT, flows)
    wanted = flows * len(removed)
    right, left = sum(one.right for one in removed), sum(len(one.left) for one in removed)
    rest = sum(one.rest for one in removed)
    busy = min(one.packets(0.0, one.first) for one in removed)
    silent = max(one.packets(one.last + 4 * _AROUND, one.end) for one in removed)
    longest, by_itself = (max(one.longest for one in trials) for trials in (removed, direct))
    shares = [
        with_removal.after() / without.throughout()
        for with_removal, without in zip(removed, direct, strict=True)
    ]
    after = statistics.median(one.after() for one in removed)
    without = statistics.median(one.throughout() for one in direct)
    share = statistics.median(shares)
    return [
        Check(
            "All bytes are the right ones",
            right == wanted,
            f"{right} of {wanted} flows, {sum(sum(one.bytes) for one in removed) / 1e9:.2f} GB",
        ),
        Check(
            "Squid has left every session, and its host all chains",
            left == wanted and rest == 0,
            f"{left} of {wanted}; {rest} sessions at its host",
        ),
        Check(
            "Its host's packet counters stop",
            silent < _SILENT * busy,
            f"{busy:,.0f} packets a second before, {silent:,.0f} after",
        ),
        Check(
            f"No download stalls for more than {_STALL * 1e3:.0f} ms when its session is left,"
            " or than one does by itself",
            longest <= max(_STALL, by_itself),
            f"at most {longest * 1e3:.1f} ms without a byte; without a proxy"
            f" {by_itself * 1e3:.1f} ms at times",
        ),
        Check(
            f"Afterwards goodput is at least {_SHARE:.0%} of that without a proxy",
            share >= _SHARE,
            f"{after * 8e-9:.2f} Gbit/s, without a proxy {without * 8e-9:.2f}; by turns"
            f" {share:.1%} ({', '.join(f'{one:.0%}' for one in sorted(shares))})",
        ),
    ]
