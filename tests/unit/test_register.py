"""The register: sessions found by what tells them apart, and the memory of those that ended."""

from __future__ import annotations

import pytest

from m2m.protocol.flow import Flow, Proto
from m2m.protocol.register import Register
from m2m.protocol.session import Session, State
from m2m.protocol.translation import Position

LEFT = Flow.of(Proto.TCP, "10.0.0.1", 61000, "10.0.1.2", 63263)
SUPER = Flow.of(Proto.TCP, "10.0.0.1", 40000, "10.0.9.9", 80)


def session(number: int, *, left: Flow | None = LEFT, supersession: Flow = SUPER) -> Session:
    position = Position.CLIENT if left is None else Position.SERVER
    return Session(number, position, State.ESTABLISHED, supersession, left, None, 0, 0)


def test_a_listed_session_is_found() -> None:
    register, one = Register(), session(1)
    register.list(one)
    assert register.get(1) is register.with_flow(SUPER) is one
    assert dict(register.by_id) == {1: one}
    with pytest.raises(TypeError):
        register.by_id[2] = one  # type: ignore[index]


def test_rivals_share_a_left_leg_or_a_supersession() -> None:
    register = Register()
    same_leg = session(1, supersession=SUPER._replace(sport=1))
    same_flow = session(2, left=LEFT._replace(sport=1))
    unrelated = session(3, left=LEFT._replace(sport=2), supersession=SUPER._replace(sport=2))
    client = session(4, left=None, supersession=SUPER._replace(sport=3))
    for other in (same_leg, same_flow, unrelated, client):
        register.list(other)
    assert register.rivals(session(5)) == {same_leg, same_flow}
    assert register.rivals(same_leg) == set()


def test_a_rival_of_both_kinds_is_one() -> None:
    register, old = Register(), session(1)
    register.list(old)
    assert register.rivals(session(2)) == {old}


def test_an_unlisted_session_keeps_its_id_only() -> None:
    register, old, new = Register(), session(1), session(2)
    register.list(old)
    register.unlist(old)
    assert register.get(1) is old
    register.list(new)
    register.unlist(old)  # again: what belongs to the new one stays
    assert register.with_flow(SUPER) is new
    assert register.rivals(old) == {new}


def test_a_forgotten_session_is_remembered_as_ended() -> None:
    register, old = Register(), session(1)
    register.list(old)
    register.unlist(old)
    assert not register.has_ended(1)
    register.forget(old)
    assert register.get(1) is None
    assert register.has_ended(1)


def test_the_memory_of_ended_sessions_is_bounded() -> None:
    register = Register()
    for number in range(5000):
        register.remember_ended(number)
        register.remember_ended(number)
    assert not register.has_ended(5000 - 4097)
    assert register.has_ended(5000 - 4096)
