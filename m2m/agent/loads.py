"""How loaded hosts are, as far as this agent can tell: what they report, and what it knows itself.

A report is seconds old, each host's so many as it happens, and in that time a burst of sessions can
begin or end. Of its own sessions an agent knows better. So it takes from a report only what this
says beyond them: what *other* agents have there. Since nobody knows the moment that a report tells
of, it is compared with whatever number of own sessions the host has had within the time it may have
taken; what one of them explains is no session of others.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from typing import NamedTuple

import trio

from m2m.policy.rules import Choose, NfType
from m2m.protocol.flow import Address, Flow
from m2m.protocol.update import Step
from m2m.protocol.wire import Hop

__all__ = ["Loads"]

_WINDOW = 5  # s that a report can be old: one comes each 2 s, and at most one each second is pushed


class _Range(NamedTuple):
    """Between which numbers of own sessions a host was within one second."""

    second: int
    least: int
    most: int


class Loads:
    """What is to be added to the loads in force; :attr:`placed` has it by host.

    ``load + placed`` is the number of sessions that a host should have now.
    """

    def __init__(self) -> None:
        self.placed: Counter[Address] = Counter()
        self._given: dict[Flow, tuple[Address, ...]] = {}  # where sessions are that began here
        self._own: Counter[Address] = Counter()  # how many of them are there
        self._lately: defaultdict[Address, deque[_Range]] = defaultdict(deque)

    def begins(self, flow: Flow, hops: Iterable[Hop]) -> None:
        """A session that begins here has been given these middleboxes."""
        self.ends(flow)  # an earlier one of this name
        self._given[flow] = tuple(hop.address for hop in hops)
        self._count(self._given[flow], 1)

    def ends(self, flow: Flow) -> None:
        """A session that began here, if it did, is over, or has not come about."""
        self._count(self._given.pop(flow, ()), -1)

    def moves(self, come: Iterable[Hop], go: Iterable[Step]) -> None:
        """A session, whoever's, is led to other hosts. Reports tell how many are there then."""
        self.placed.update(hop.address for hop in come)
        self.placed.subtract(step.address for step in go)

    def reported(self, nfs: Iterable[NfType]) -> None:
        """The loads in force are these from now on; types that choose by them have them."""
        self.placed.clear()
        told = [nf for nf in nfs if nf.choose is Choose.LEAST_LOADED]
        loads = {one.address: int(one.load) for nf in told for one in nf.instances}
        for host, load in loads.items():
            own = self._own[host]
            numbers = self._lately_own(host)
            explained = min(max(load, min(numbers)), max(numbers))
            if own != explained:
                self.placed[host] = own - explained

    def _count(self, hosts: Iterable[Address], change: int) -> None:
        second = int(trio.current_time())
        for host in hosts:
            before = self._own[host]
            after = self._own[host] = before + change
            self.placed[host] += change
            lately = self._lately[host]
            least, most = min(before, after), max(before, after)
            if lately and lately[-1].second == second:
                last = lately.pop()
                least, most = min(least, last.least), max(most, last.most)
            lately.append(_Range(second, least, most))
            while lately[0].second < second - _WINDOW:
                lately.popleft()

    def _lately_own(self, host: Address) -> list[int]:
        """The least and the largest number of own sessions of *host* in each second of the window,
        and the number of now."""
        since = int(trio.current_time()) - _WINDOW
        ranges = [one for one in self._lately.get(host, ()) if one.second >= since]
        return [self._own[host], *(number for one in ranges for number in one[1:])]
