"""The parts of a chain that has proxies: each ends at one of them, the last one at the server.

No host can be in two of them, since it would see one supersession twice. Parts are set up at
different times and by different hosts, so none chooses a host that runs an NF type of an earlier
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from m2m.policy.rules import Kind, NfType, Policy, PolicySet
from m2m.protocol.flow import Address

__all__ = ["Part", "parts_of", "taken_before"]


class Part(NamedTuple):
    """NF types that one half passes, its proxy the last, and the hosts that earlier parts may
    have."""

    types: tuple[str, ...]
    taken: frozenset[Address]


def parts_of(policy_set: PolicySet, policy: Policy) -> tuple[Part, ...]:
    """The parts of the chain of *policy*, at least one."""
    named = {nf.name: nf for nf in policy_set.nfs}
    if not named.keys() >= set(policy.chain):  # nobody can choose for it
        return (Part(policy.chain, frozenset()),)
    chain = [named[name] for name in policy.chain]
    taken = taken_before(chain)
    parts: list[Part] = []
    start = 0
    for place, nf in enumerate(chain, 1):
        if nf.kind is Kind.PROXY:
            parts.append(Part(tuple(one.name for one in chain[start:place]), taken[start]))
            start = place
    return (*parts, Part(tuple(one.name for one in chain[start:]), taken[start]))


def taken_before(chain: Sequence[NfType]) -> list[frozenset[Address]]:
    """For each place of *chain*, and the one behind it, the hosts that parts before it may have."""
    found: list[frozenset[Address]] = []
    taken: frozenset[Address] = frozenset()
    part: set[Address] = set()
    for nf in chain:
        found.append(taken)
        part.update(one.address for one in nf.instances)
        if nf.kind is Kind.PROXY:
            taken, part = taken | part, set()
    return [*found, taken]
