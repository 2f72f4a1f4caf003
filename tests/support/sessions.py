"""Sessions as they pass the host of :mod:`tests.support.rig`, and policies about them."""

from __future__ import annotations

from m2m.policy.rules import Choose, Fail, FlatRule, Instance, Kind, NfType, Policy, PolicySet
from m2m.protocol.flow import Flow
from m2m.protocol.translation import (
    Action,
    Entry,
    Position,
    SessionView,
    ends_at,
    entries_for,
)
from tests.support.rig import CLIENT, HOST_LEFT, HOST_RIGHT, LEFT, RIGHT, SERVER, Rig

LOWEST, HIGHEST = b"\0" * 16, b"\xff" * 16


def session(position: Position, proto: int = 6, number: int = 1) -> SessionView:
    """Session *number* where the host is at *position*. Client and server are the host itself,
    or far away behind its neighbours."""
    client = HOST_RIGHT if position is Position.CLIENT else CLIENT
    server = HOST_LEFT if ends_at(position) else SERVER
    left = Flow(proto, LEFT, 61000 + number, HOST_LEFT, 64000 + number)
    right = Flow(proto, HOST_RIGHT, 62000 + number, RIGHT, 65000 + number)
    return SessionView(
        session=0xA000_0000_0000_0000 + number,
        position=position,
        supersession=Flow(proto, client, 40000 + number, server, 80),
        left=None if position is Position.CLIENT else left,
        right=None if ends_at(position) else right,
        mss=1400,
        chain=3,
        generation=7,
    )


def going_on(proto: int = 6, number: int = 1) -> SessionView:
    """The half by which a proxy on the host goes on with session *number*."""
    local = Flow(proto, HOST_LEFT, 45000 + number, SERVER, 80)
    return session(Position.CLIENT, proto, number)._replace(
        supersession=session(Position.TAP, proto, number).supersession, local=local
    )


def entries(rig: Rig, view: SessionView) -> tuple[Entry, ...]:
    """The entries of a session, next hops filled in as an agent's shell would."""

    def with_hop(entry: Entry) -> Entry:
        if entry.action is not Action.SEND:
            return entry
        return entry._replace(hop=rig.to_left if entry.rewrite.dst == LEFT else rig.to_right)

    return tuple(with_hop(entry) for entry in entries_for(view))


def opening(proto: int = 6, number: int = 1, dport: int = 80) -> Flow:
    """A flow that begins at the host and leads to a server on its right."""
    return Flow(proto, HOST_RIGHT, 41000 + number, SERVER, dport)


def policy_set(*dports: int, fail: Fail = Fail.CLOSED, generation: int = 1) -> PolicySet:
    """One policy for each destination port, all with the same chain."""
    return PolicySet(
        generation=generation,
        policies=tuple(
            Policy(id=i, text=f"dstport={port}", line=i + 1, chain=("ids",), fail=fail)
            for i, port in enumerate(dports)
        ),
        rules=tuple(
            FlatRule(i, LOWEST, HIGHEST, LOWEST, HIGHEST, 0, 65535, port, port, 0, 255)
            for i, port in enumerate(dports)
        ),
        nfs=(NfType("ids", Kind.TAP, Choose.HASH, (Instance("ids1", RIGHT),)),),
    )
