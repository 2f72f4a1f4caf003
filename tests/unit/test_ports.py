"""Port pairs: distinct while in use, reused late, and nothing kept of what is over."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from m2m.errors import ConfigError
from m2m.protocol.flow import Flow, Proto, parse_address
from m2m.protocol.ports import PortAllocator, PortsExhausted

A, B, C = (parse_address(f"10.0.0.{n}") for n in (1, 2, 3))


def allocator(first: int = 61000, last: int = 65535, seed: int = 1) -> PortAllocator:
    return PortAllocator(first, last, random.Random(seed))


def test_halves_are_disjoint_so_both_directions_are() -> None:
    ports = allocator()
    flows = [ports.allocate(Proto.TCP, A, B) for _ in range(10_000)]
    assert len(set(flows)) == 10_000
    assert all(61000 <= flow.sport <= 63267 < flow.dport <= 65535 for flow in flows)
    back = allocator(seed=2)
    theirs = {back.allocate(Proto.TCP, B, A).reverse() for _ in range(10_000)}
    assert theirs.isdisjoint(flows)


@given(st.integers(1, 60000), st.integers(1, 40), st.randoms(use_true_random=False))
def test_every_pair_of_a_range_is_used_before_any_is_used_twice(
    first: int, extra: int, rng: random.Random
) -> None:
    ports = PortAllocator(first, first + extra, rng)
    size = ((extra + 1) // 2) * (extra + 1 - (extra + 1) // 2)
    flows = [ports.allocate(Proto.TCP, A, B) for _ in range(size)]
    assert len(set(flows)) == size
    with pytest.raises(PortsExhausted, match=r"10\.0\.0\.1 to 10\.0\.0\.2"):
        ports.allocate(Proto.TCP, A, B)
    ports.release(flows[-1])
    assert ports.allocate(Proto.TCP, A, B) == flows[-1]


def test_another_neighbour_has_pairs_of_its_own() -> None:
    ports = allocator(61000, 61001)
    ports.allocate(Proto.TCP, A, B)
    assert ports.allocate(Proto.UDP, A, C) == Flow(Proto.UDP, A, 61000, C, 61001)
    with pytest.raises(PortsExhausted):
        ports.allocate(Proto.UDP, A, B)


def test_a_freed_pair_comes_back_last() -> None:
    ports = allocator(61000, 61019)  # 100 pairs
    freed = [ports.allocate(Proto.TCP, A, B) for _ in range(3)]
    for flow in freed:
        ports.release(flow)
    later = [ports.allocate(Proto.TCP, A, B) for _ in range(100)]
    assert later[97:] == freed


def test_adopted_pairs_are_not_given_out() -> None:
    before = allocator(61000, 61009)
    flows = [before.allocate(Proto.TCP, A, B) for _ in range(20)]
    after = allocator(61000, 61009, seed=9)
    for flow in flows:
        after.adopt(flow)
    assert after.in_use == 20
    fresh = {after.allocate(Proto.TCP, A, B) for _ in range(5)}
    assert fresh.isdisjoint(flows)
    for flow in flows:
        after.release(flow)
    assert after.in_use == 5


def test_a_pair_of_yesterdays_range_needs_no_place_in_todays() -> None:
    old = Flow(Proto.TCP, A, 50000, B, 55000)
    ports = allocator()
    ports.adopt(old)
    assert ports.in_use == 0
    ports.release(old)


def test_freeing_twice_is_an_error() -> None:
    ports = allocator()
    flow = ports.allocate(Proto.TCP, A, B)
    ports.release(flow)
    with pytest.raises(ValueError, match="not in use"):
        ports.release(flow)


@pytest.mark.parametrize(("first", "last"), [(0, 10), (5, 5), (10, 5), (1, 65536)])
def test_bad_ranges(first: int, last: int) -> None:
    with pytest.raises(ConfigError, match=f"{first}-{last}"):
        allocator(first, last)


def test_long_runs_of_old_sessions_are_jumped_over() -> None:
    """A cycle that comes round to 500 k sessions that still live looks at a few, not at all."""
    ports = allocator()
    probe = ports.allocate(Proto.TCP, A, B)
    pool = ports._pools[A, B]
    looked = 0

    class Counting(set[int]):
        def __contains__(self, item: object) -> bool:
            nonlocal looked
            looked += 1
            return super().__contains__(item)

    start = pool._next
    pool.used = Counting({*pool.used, *((start + n) % pool.size for n in range(500_000))})
    assert ports.allocate(Proto.TCP, A, B) != probe
    assert looked < 1000


def test_memory_is_held_for_pairs_in_use_only() -> None:
    ports = allocator()
    for flow in [ports.allocate(Proto.TCP, A, B) for _ in range(20_000)]:
        ports.release(flow)
    for _ in range(20_000):
        ports.release(ports.allocate(Proto.TCP, A, B))
    pool = ports._pools[A, B]
    assert ports.in_use == 0
    assert len(pool._quarantine) == len(pool._kept) == 1024
    assert sys.getsizeof(pool.used) == sys.getsizeof(set())


class Allocations(RuleBasedStateMachine):
    """Whatever the order of taking and freeing, a pair is never in two hands."""

    def __init__(self) -> None:
        super().__init__()
        self.ports = allocator(100, 107)  # 16 pairs
        self.held: list[Flow] = []

    @rule()
    def allocate(self) -> None:
        try:
            flow = self.ports.allocate(Proto.TCP, A, B)
        except PortsExhausted:
            assert len(self.held) == 16
        else:
            assert flow not in self.held
            self.held.append(flow)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.ports.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @invariant()
    def counted(self) -> None:
        assert self.ports.in_use == len(self.held)


TestAllocations = Allocations.TestCase
