"""What of a policy set concerns one host, and which instances the loads favour."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from m2m.policy.messages import Role
from m2m.policy.rules import Choose, Instance, NfType, PolicySet
from m2m.protocol.flow import Address

__all__ = ["AWAY_LOAD", "favoured", "instances_at", "subset", "with_loads"]

AWAY_LOAD = 1e9
"""The load of an instance from whose host no agent reports: it is chosen last."""


def subset(policy_set: PolicySet, role: Role, addresses: Collection[Address]) -> PolicySet:
    """What an agent with *role* at *addresses* needs to know; policies keep their ids.

    A client: the rows that can match a session it opens, their policies, the NF types those
    name, and all gateways, one of which may serve the server. The others: everything. Any session
    may come to pass them, and they may be asked to change its chain: they have to know who may ask
    for that, and where other instances are.
    """
    if role is Role.CLIENT:
        rules = tuple(
            rule
            for rule in policy_set.rules
            if any(rule.src_lo <= address <= rule.src_hi for address in addresses)
        )
        wanted = {rule.policy for rule in rules}
        policies = tuple(policy for policy in policy_set.policies if policy.id in wanted)
        named = {name for policy in policies for name in policy.chain}
        nfs = tuple(nf for nf in policy_set.nfs if nf.name in named)
        return PolicySet(policy_set.generation, policies, rules, nfs, policy_set.gateways)
    return policy_set


def with_loads(policy_set: PolicySet, loads: Mapping[Address, float]) -> PolicySet:
    """*policy_set* with the load of every instance whose type chooses by it.

    *loads* has those hosts that report; the others' instances get :data:`AWAY_LOAD`.
    """
    nfs = tuple(
        nf
        if nf.choose is not Choose.LEAST_LOADED
        else msgspec.structs.replace(
            nf,
            instances=tuple(
                msgspec.structs.replace(one, load=loads.get(one.address, AWAY_LOAD))
                for one in nf.instances
            ),
        )
        for nf in policy_set.nfs
    )
    return msgspec.structs.replace(policy_set, nfs=nfs)


def favoured(policy_set: PolicySet) -> frozenset[tuple[str, str]]:
    """The least loaded instances of each type that chooses by load, as (type, instance)."""
    return frozenset(
        (nf.name, one.name)
        for nf in policy_set.nfs
        if nf.choose is Choose.LEAST_LOADED
        for one in _lightest(nf)
    )


def instances_at(policy_set: PolicySet, addresses: Collection[Address]) -> tuple[str, ...]:
    """The NF instances at *addresses*, as ``type/name``."""
    return tuple(
        f"{nf.name}/{one.name}"
        for nf in policy_set.nfs
        for one in nf.instances
        if one.address in addresses
    )


def _lightest(nf: NfType) -> Iterable[Instance]:
    least = min(one.load for one in nf.instances)
    return (one for one in nf.instances if one.load == least)
