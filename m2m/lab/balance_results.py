"""What ``m2m-lab run balance`` finds: where the flows of each round went."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from operator import attrgetter

import msgspec

from m2m.lab.demo_results import Check, Judged
from m2m.lab.prefix_flows import Weights

__all__ = ["Load", "Report", "Round", "Way", "evenness"]


class Way(StrEnum):
    """How the instance of a flow is chosen."""

    HALVES = "most significant bit"
    BEST = "best single bit"
    HASH = "M2M, hash"
    LEAST = "M2M, least-loaded"

    @property
    def routed(self) -> bool:
        """By rules in the routers, without M2M."""
        return self in (Way.HALVES, Way.BEST)


class Load(msgspec.Struct, frozen=True):
    """What one instance had of a round, by its own counters."""

    flows: int
    bytes: int  # IP total length, both ways


class Round(msgspec.Struct, frozen=True):
    """One draw's flows, all sent in one way."""

    weights: Weights
    draw: int
    way: Way
    bit: int | None  # of the prefix, that routers split by
    rules: int  # in the routers, to choose instances
    loads: dict[str, Load]  # of each instance
    sent: int  # flows
    complete: int  # of them, those that fetched all their bytes, and the right ones
    whole: int  # those that one instance saw, from the first byte to the last, and no other one

    @property
    def byte_share(self) -> float:
        """The busier instance's share of the bytes."""
        return _busier([load.bytes for load in self.loads.values()])

    @property
    def flow_share(self) -> float:
        """The busier instance's share of the flows."""
        return _busier([load.flows for load in self.loads.values()])


def _busier(loads: Sequence[int]) -> float:
    return max(loads) / sum(loads) if any(loads) else 1.0


class Report(Judged, msgspec.Struct):
    """What ``m2m-lab run balance --json`` prints."""

    scenario: str = "balance"
    rounds: list[Round] = []
    checks: list[Check] = []

    def of(self, weights: Weights, way: Way) -> list[Round]:
        """The rounds of all draws."""
        return [one for one in self.rounds if (one.weights, one.way) == (weights, way)]


# Bytes in the worst draw would be a matter of chance: agents count sessions, whatever their size.
_COMPARED: tuple[tuple[str, str, Callable[[Round], float], Callable[[list[float]], float]], ...] = (
    ("bytes", "on average", attrgetter("byte_share"), statistics.fmean),
    ("flows", "on average", attrgetter("flow_share"), statistics.fmean),
    ("flows", "at worst", attrgetter("flow_share"), max),
)


def evenness(report: Report) -> Iterator[Check]:
    """Whether flows are shared out better one by one than by prefix."""
    for weights in Weights:
        for what, how, share, taken in _COMPARED:
            ours, halves, best = (
                taken([share(one) for one in report.of(weights, way)])
                for way in (Way.LEAST, Way.HALVES, Way.BEST)
            )
            yield Check(
                f"{weights}: {what} are shared out better than by prefix, {how}",
                ours < min(halves, best),
                f"busier instance {ours:.1%}; {Way.HALVES} {halves:.1%}, {Way.BEST} {best:.1%}",
            )
