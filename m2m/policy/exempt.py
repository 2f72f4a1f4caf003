"""M2M's own traffic never waits for a chain that only it can set up.

A broad policy such as ``match(any) >> {proxy}`` holds whatever leaves the client: without an
exemption also the SYN message by which the chain would be set up.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from m2m.policy.rules import Fail, FlatRule, Policy, PolicySet

__all__ = ["Service", "exempting"]

_LOWEST, _HIGHEST = bytes(16), b"\xff" * 16


class Service(NamedTuple):
    """Traffic of M2M itself, to a port on any host; from the same port, if *symmetric*.

    With *last* it is a range of ports, from *port* on.
    """

    proto: int
    port: int
    symmetric: bool
    last: int | None = None


def exempting(policy: PolicySet, services: Iterable[Service]) -> PolicySet:
    """*policy* with rules in front that let *services* go straight."""
    own = Policy(
        id=max((one.id for one in policy.policies), default=-1) + 1,
        text="M2M's own traffic",
        line=0,
        chain=(),
        fail=Fail.OPEN,
    )
    rows = tuple(
        FlatRule(
            policy=own.id,
            src_lo=_LOWEST, src_hi=_HIGHEST, dst_lo=_LOWEST, dst_hi=_HIGHEST,
            sport_lo=service.port if service.symmetric else 0,
            sport_hi=(service.last or service.port) if service.symmetric else 65535,
            dport_lo=service.port, dport_hi=service.last or service.port,
            proto_lo=service.proto, proto_hi=service.proto,
        )
        for service in services
    )  # fmt: skip
    if not policy.rules or not rows:
        return policy
    return msgspec.structs.replace(
        policy, policies=(*policy.policies, own), rules=(*rows, *policy.rules)
    )
