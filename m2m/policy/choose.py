"""Which instances a session's chain goes through.

Nothing here depends on the process it runs in: two agents, or one before and after a restart,
choose alike for the same flow, loads, placements and hosts to avoid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from m2m.errors import M2MError
from m2m.policy.rules import Choose, Instance, Kind, NfType, Policy, PolicySet
from m2m.protocol.flow import Address, Flow, format_address, is_ipv4

__all__ = ["NONE_PLACED", "ChainError", "Resolved", "assign", "candidates", "resolve"]


NONE_PLACED: Mapping[Address, int] = {}


class ChainError(M2MError):
    """No instances make a chain for this session; the policy's ``fail`` decides over it."""


class Resolved(NamedTuple):
    """One middlebox of a chain: the NF type, how it runs there, and the instance chosen."""

    nf_type: str
    kind: Kind
    instance_name: str
    address: Address


def resolve(
    policy_set: PolicySet,
    policy: Policy,
    flow: Flow,
    avoid: Container[Address] = (),
    placed: Mapping[Address, int] = NONE_PLACED,
    taken: Container[Address] = (),
) -> tuple[Resolved, ...]:
    """The middleboxes that *flow* (client to server) passes under *policy*, client side first.

    Every NF type chooses in its own way (:class:`Choose`); *avoid* holds hosts that lately did
    not answer, which ``choose=agent`` takes only when nothing else is left; *placed* says how many
    sessions hosts have beyond the loads that they reported. No host comes twice, none is
    *taken*, or the session's own client or server (which may be a proxy, and then is the one), and
    all are of the session's address family: a later choice gives way to an earlier one, and an
    earlier one to the chain standing at all.

    An exempting policy has an empty chain. Raises :exc:`ChainError`.
    """
    types = {nf.name: nf for nf in policy_set.nfs}
    wanted: list[NfType] = []
    for name in policy.chain:
        if name not in types:
            raise ChainError(f"policy {policy.id} names NF type {name}, which nobody declared")
        wanted.append(types[name])
    options = [candidates(nf, flow, avoid, placed, taken) for nf in wanted]
    for nf, usable in zip(wanted, options, strict=True):
        if not usable:
            raise ChainError(f"{flow}: {_why_none(nf, flow, taken)}")
    chosen = assign(options)
    if chosen is None:
        names = " -> ".join(policy.chain)
        raise ChainError(
            f"{flow}: every way to choose instances for {names} visits one host twice; "
            "declare another instance on a host of its own"
        )
    return tuple(
        Resolved(nf.name, nf.kind, instance.name, instance.address)
        for nf, instance in zip(wanted, chosen, strict=True)
    )


def assign(options: Sequence[Sequence[Instance]]) -> list[Instance] | None:
    """One of each of *options*, all on different hosts; None when there is no such choice.

    Each list is in order of preference. The first list gets the best that leaves the others a
    choice, then the second, and so on.
    """
    if all(options):
        firsts = [preferred[0] for preferred in options]
        if len({one.address for one in firsts}) == len(firsts):
            return firsts  # as nearly always, and on the way of each set-up
    chosen: list[Instance] = []
    used: set[Address] = set()
    for position, preferred in enumerate(options):
        rest = [[one.address for one in later] for later in options[position + 1 :]]
        for instance in preferred:
            taken = used | {instance.address}
            if instance.address not in used and _can_serve(rest, taken):
                chosen.append(instance)
                used = taken
                break
        else:
            return None
    return chosen


def _can_serve(wishes: list[list[Address]], taken: set[Address]) -> bool:
    """Whether every wish can have a host of its own that is not *taken* (Kuhn's matching)."""
    owner: dict[Address, int] = {}

    def place(wish: int, seen: set[Address]) -> bool:
        for address in wishes[wish]:
            if address in taken or address in seen:
                continue
            seen.add(address)
            if address not in owner or place(owner[address], seen):
                owner[address] = wish
                return True
        return False

    return all(place(wish, set()) for wish in range(len(wishes)))


def candidates(
    nf: NfType,
    flow: Flow,
    avoid: Container[Address],
    placed: Mapping[Address, int],
    taken: Container[Address] = (),
) -> list[Instance]:
    """The instances of *nf* that can serve *flow*, the preferred one first (:func:`resolve`)."""
    usable = [
        instance
        for instance in nf.instances
        if is_ipv4(instance.address) == is_ipv4(flow.src)
        and instance.address not in (flow.src, flow.dst)
        and instance.address not in taken
    ]
    if nf.kind is Kind.PROXY and flow.dst not in taken:
        usable = [one for one in nf.instances if one.address == flow.dst] or usable
    if len(usable) < 2:
        return usable
    packed = flow.pack()
    usable.sort(key=lambda instance: _weight(nf, instance, packed), reverse=True)
    if nf.choose is Choose.LEAST_LOADED:
        # Stable: the hash breaks ties.
        usable.sort(key=lambda one: one.load + placed.get(one.address, 0))
    elif nf.choose is Choose.AGENT:
        usable.sort(key=lambda instance: instance.address in avoid)
    return usable


def _weight(nf: NfType, instance: Instance, packed_flow: bytes) -> bytes:
    """Rendezvous hashing: the largest weight wins, so that taking an instance out moves only
    the flows it had."""
    name = f"{nf.name}\0{instance.name}\0".encode()
    return hashlib.blake2b(name + instance.address + packed_flow, digest_size=8).digest()


def _why_none(nf: NfType, flow: Flow, taken: Container[Address]) -> str:
    family = "IPv4" if is_ipv4(flow.src) else "IPv6"
    same = [one for one in nf.instances if is_ipv4(one.address) == is_ipv4(flow.src)]
    if not same:
        return f"NF type {nf.name} has no {family} instance; declare one, or exempt {family}"
    if any(one.address in taken for one in same):
        return (
            f"NF type {nf.name} runs only on hosts that may be before the proxy; declare an "
            "instance on a host of its own"
        )
    ends = ", ".join(f"{one.name} at {format_address(one.address)}" for one in same)
    return (
        f"NF type {nf.name} runs only on the session's own client or server ({ends}); declare "
        "another instance, or exempt sessions of that host"
    )
