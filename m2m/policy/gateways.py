"""Gateways: who stands for hosts that have no agent, and what that does to a chain.

A chain to a server behind a gateway ends at the gateway. Packets pass the network functions of a
gateway as it forwards them: where it has the first or the last one of a chain, that one is in the
way already, and the chain needs no leg to it.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import msgspec

from m2m.policy.choose import Resolved
from m2m.policy.rules import FlatRule, Gateway, Network, PolicySet
from m2m.protocol.flow import Address

__all__ = ["between", "gateway_of", "of_served_clients", "served_by"]


def gateway_of(policy_set: PolicySet, host: Address) -> Gateway | None:
    """The gateway that serves *host*; None: the host has an agent, or nobody serves it."""
    for gateway in policy_set.gateways:
        if any(host in network for network in gateway.serves):
            return gateway
    return None


def served_by(policy_set: PolicySet, addresses: Container[Address]) -> tuple[Network, ...]:
    """The networks that the gateway at one of *addresses* serves."""
    return tuple(
        network
        for gateway in policy_set.gateways
        if gateway.address in addresses
        for network in gateway.serves
    )


def of_served_clients(policy_set: PolicySet, addresses: Container[Address]) -> PolicySet:
    """*policy_set* with rules only for sessions that begin in a network which the gateway at one
    of *addresses* serves: all that it may hold of what it forwards."""
    networks = served_by(policy_set, addresses)
    rules = tuple(
        msgspec.structs.replace(
            rule, src_lo=max(rule.src_lo, network.lo), src_hi=min(rule.src_hi, network.hi)
        )
        for rule in policy_set.rules
        for network in networks
        if _meet(rule, network)
    )
    return msgspec.structs.replace(policy_set, rules=rules)


def between(
    chain: Sequence[Resolved], first: Container[Address], last: Address
) -> tuple[Resolved, ...]:
    """What of *chain* is not in the way already, from a host with the addresses *first* to the one
    at *last*."""
    start, end = 0, len(chain)
    while start < end and chain[start].address in first:
        start += 1
    while end > start and chain[end - 1].address == last:
        end -= 1
    return tuple(chain[start:end])


def _meet(rule: FlatRule, network: Network) -> bool:
    return rule.src_lo <= network.hi and network.lo <= rule.src_hi
