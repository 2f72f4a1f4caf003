"""Flows of many client prefixes, and the one-bit rules by which routing can share them out.

The setting of the paper's Figure 1 (§2.1): each prefix has a weight, its part of the traffic.
Weights are what an operator knows when rules are made, from yesterday; the flows of today are
drawn by them. All is drawn from a seed: the same draw has the same flows anywhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec

PREFIXES = 32  # of 24 bits each, side by side
BITS = PREFIXES.bit_length() - 1
"""So many bits of an address tell its prefix; bit 0 is the least significant of them."""

NETWORK = "10.1.0.0/19"  # all prefixes
_HOSTS = 4  # clients of a prefix
_PORTS = range(20_000, 60_000)
SIZES = (24_000, 40_000)
"""Bytes of the smallest and the largest flow; all in between are as likely."""


class Weights(StrEnum):
    """How the weights of prefixes are distributed."""

    GAUSSIAN = "Gaussian"
    BIMODAL = "bimodal Gaussian"


class Flow(msgspec.Struct, frozen=True):
    """One connection of a client: it fetches so many bytes."""

    number: int  # within its draw
    address: str
    port: int
    size: int

    @property
    def prefix(self) -> int:
        """Which of the prefixes its client is in."""
        return int(self.address.split(".")[2])


class Draw(NamedTuple):
    """What an operator knows, and what comes."""

    weights: tuple[float, ...]  # of each prefix
    flows: tuple[Flow, ...]


_DRAWN: dict[Weights, Callable[[random.Random], float]] = {
    Weights.GAUSSIAN: lambda source: source.gauss(4, 1),
    Weights.BIMODAL: lambda source: source.gauss(source.choice((4, 16)), 1),
}
_LEAST = 0.1  # a weight is above zero


def draw(weights: Weights, seed: int, count: int) -> Draw:
    """*count* flows of clients whose prefixes have these *weights*."""
    source = random.Random(f"{weights} {seed}")
    drawn = tuple(max(_LEAST, _DRAWN[weights](source)) for _ in range(PREFIXES))
    prefixes = source.choices(range(PREFIXES), drawn, k=count)
    ports = source.sample(_PORTS, count)  # each another one: no two flows have one 5-tuple
    flows = tuple(
        Flow(
            number,
            f"10.1.{prefix}.{source.randint(1, _HOSTS)}",
            port,
            source.randint(*SIZES),
        )
        for number, (prefix, port) in enumerate(zip(prefixes, ports, strict=True))
    )
    return Draw(drawn, flows)


def most_significant() -> int:
    """The bit that cuts the network into two halves."""
    return BITS - 1


def best_bit(weights: Sequence[float]) -> int:
    """The one bit that shares *weights* out most evenly; of several the most significant."""
    half = sum(weights) / 2

    def off(bit: int) -> float:
        ones = sum(one for prefix, one in enumerate(weights) if prefix >> bit & 1)
        return abs(ones - half)

    return min(reversed(range(BITS)), key=off)


def mask(bit: int) -> str:
    """The address that has this *bit* of the prefix, and no other one."""
    return f"0.0.{1 << bit}.0"
