"""Which pair of ports names a subsession between two hosts (§4.1).

The left host of a leg allocates. Source ports come from the lower half of the range and
destination ports from the upper one, so a pair that a host allocates towards a neighbour can
never be taken for the reverse of one the neighbour allocated towards it. A range of 4536 ports
holds five million pairs per pair of addresses; of 65536, a billion.

Pairs are handed out in one long cycle that starts anywhere, so that a pair is used again as late
as possible: packets of a finished session can be in the network still. Where the cycle is short
(a small range, or one almost full) the pairs freed last are kept back behind all others.
"""

from __future__ import annotations

import random
from collections import deque

from m2m.errors import ConfigError, M2MError
from m2m.protocol.flow import Address, Flow, format_address

__all__ = ["PortAllocator", "PortsExhausted"]

_QUARANTINE = 1024  # freed pairs kept back, per pair of hosts
_RUN = 64  # taken pairs in a row before the cycle goes on somewhere else
_JUMPS = 32  # times it does so before every pair is tried in turn


class PortsExhausted(M2MError):
    """Every pair of ports between two hosts is in use."""


class PortAllocator:
    """The pairs this host uses towards its right neighbours.

    Memory is held for pairs in use, and for at most 1024 freed ones per pair of addresses.
    """

    def __init__(self, first: int, last: int, rng: random.Random) -> None:
        """Allocate from ports *first* to *last*. Raises :exc:`ConfigError` if that is no range."""
        if not 1 <= first < last <= 65535:
            raise ConfigError(
                f"ports {first}-{last}: give a range of at least two ports between 1 and 65535"
            )
        self.first = first
        self.last = last
        self._sources = (last - first + 1) // 2
        self._destinations = last - first + 1 - self._sources
        self._rng = rng
        self._pools: dict[tuple[Address, Address], _Pool] = {}

    @property
    def in_use(self) -> int:
        """Pairs in use, towards all hosts together."""
        return sum(len(pool.used) for pool in self._pools.values())

    def allocate(self, proto: int, local: Address, peer: Address) -> Flow:
        """A subsession from *local* to *peer* that no other one here equals.

        Raises :exc:`PortsExhausted` when there is none left.
        """
        pool = self._pool(local, peer)
        index = pool.take(self._rng)
        if index is None:
            raise PortsExhausted(
                f"all {pool.size} port pairs from {format_address(local)} to "
                f"{format_address(peer)} are in use: widen --ports {self.first}-{self.last}"
            )
        # Both ports change from one pair to the next: that spreads flows over receive queues.
        cycle, place = divmod(index, self._sources)
        sport = self.first + place
        dport = self.first + self._sources + (cycle + place) % self._destinations
        return Flow(proto, local, sport, peer, dport)

    def claim(self, flow: Flow) -> bool:
        """Take the pair of this very subsession, unless it is in use or was lately; whether it is
        taken now."""
        index = self._index(flow)
        return index is not None and self._pool(flow.src, flow.dst).claim(index)

    def adopt(self, flow: Flow) -> None:
        """Mark the pair of a subsession as in use that was set up before this agent started."""
        index = self._index(flow)
        if index is not None:
            self._pool(flow.src, flow.dst).adopt(index)

    def release(self, flow: Flow) -> None:
        """Free the pair of a subsession allocated or adopted here. Raises :exc:`ValueError` when
        it is not in use: freeing one twice would hand it to two sessions."""
        index = self._index(flow)
        if index is not None:
            self._pool(flow.src, flow.dst).free(index, flow)

    def _pool(self, local: Address, peer: Address) -> _Pool:
        pool = self._pools.get((local, peer))
        if pool is None:
            size = self._sources * self._destinations
            pool = self._pools[local, peer] = _Pool(size, self._rng.randrange(size))
        return pool

    def _index(self, flow: Flow) -> int | None:
        """The place of a pair in the cycle; None when it is of another range than today's."""
        place = flow.sport - self.first
        offset = flow.dport - self.first - self._sources
        if not (0 <= place < self._sources and 0 <= offset < self._destinations):
            return None
        return (offset - place) % self._destinations * self._sources + place


class _Pool:
    """The pairs between two addresses, by their place in the cycle."""

    __slots__ = ("_kept", "_next", "_quarantine", "size", "used")

    def __init__(self, size: int, start: int) -> None:
        self.size = size
        self.used: set[int] = set()
        self._next = start
        self._quarantine: deque[int] = deque()
        self._kept: set[int] = set()  # what is in the quarantine, for look-up

    def take(self, rng: random.Random) -> int | None:
        if len(self.used) == self.size:
            return None
        if len(self.used) + len(self._kept) >= self.size:
            index = self._quarantine.popleft()
            self._kept.remove(index)
        else:
            index = self._search(rng)
        self.used.add(index)
        return index

    def claim(self, index: int) -> bool:
        if index in self.used or index in self._kept:
            return False
        self.used.add(index)
        return True

    def adopt(self, index: int) -> None:
        self.used.add(index)
        if index in self._kept:
            self._kept.remove(index)
            self._quarantine.remove(index)

    def free(self, index: int, flow: Flow) -> None:
        if index not in self.used:
            raise ValueError(f"the ports of {flow} are not in use")
        self.used.remove(index)
        if not self.used:
            self.used.clear()  # gives the memory of a busy day back, which removing does not
        self._quarantine.append(index)
        self._kept.add(index)
        if len(self._quarantine) > _QUARANTINE:
            self._kept.remove(self._quarantine.popleft())

    def _search(self, rng: random.Random) -> int:
        """The next pair of the cycle that is neither used nor kept back; there is one."""
        for _ in range(_JUMPS):
            for _ in range(_RUN):
                index = self._next
                self._next = (index + 1) % self.size
                if index not in self.used and index not in self._kept:
                    return index
            self._next = rng.randrange(self.size)  # not through a million old sessions one by one
        while self._next in self.used or self._next in self._kept:
            self._next = (self._next + 1) % self.size
        return self._next
