"""The hosts that a new session goes through, from the first one after this to where it ends."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping

from m2m.policy.choose import ChainError, resolve
from m2m.policy.gateways import between, gateway_of
from m2m.policy.rules import Kind, Policy, PolicySet
from m2m.protocol.flow import Address, Flow, format_address
from m2m.protocol.translation import Position
from m2m.protocol.wire import Hop

__all__ = ["chain_for", "end_of", "types_to_pass"]

_POSITIONS = {Kind.TAP: Position.TAP, Kind.INLINE: Position.INLINE}


def end_of(policy_set: PolicySet, flow: Flow) -> Address:
    """The host at which the session ends: its server, or the gateway that serves that."""
    gateway = gateway_of(policy_set, flow.dst)
    return flow.dst if gateway is None else gateway.address


def chain_for(
    policy_set: PolicySet,
    policy: Policy,
    flow: Flow,
    avoid: Container[Address],
    placed: Mapping[Address, int],
    gateway: Collection[Address],
) -> tuple[Hop, ...]:
    """The hops that *flow* is to pass under *policy*, its server or that one's gateway the last.

    *gateway*: the addresses of this host if it is one, else none. There are no hops where it is on
    the way already and has all that the chain asks for. *avoid* and *placed* are those of
    :func:`~m2m.policy.choose.resolve`. Raises :exc:`ChainError`.
    """
    end = end_of(policy_set, flow)
    chain = between(resolve(policy_set, policy, flow, avoid, placed), gateway, end)
    if end in gateway:
        if chain:
            names = " -> ".join(one.nf_type for one in chain)
            raise ChainError(
                f"{flow}: client and server are both behind the gateway {format_address(end)}, "
                f"which cannot be both ends of a chain through {names}: let it run them itself, or "
                "let two gateways serve them"
            )
        return ()
    hops = [Hop(one.address, _POSITIONS[one.kind], one.nf_type) for one in chain]
    return (*hops, Hop(end, Position.SERVER))


def types_to_pass(
    policy_set: PolicySet,
    policy: Policy,
    flow: Flow,
    avoid: Container[Address],
    placed: Mapping[Address, int],
    gateway: Collection[Address],
) -> tuple[str, ...]:
    """The NF types of *policy* for which the path of a live session has to have a host.

    Arguments and errors are those of :func:`chain_for`.
    """
    if not gateway and not policy_set.gateways:
        return policy.chain
    hops = chain_for(policy_set, policy, flow, avoid, placed, gateway)
    return tuple(hop.nf for hop in hops[:-1])
