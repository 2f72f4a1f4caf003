"""The counterexamples of spin, as scenes for the Python code (see docs/model.md).

The chain is 0 (client), 1, 2, 3 (server); 4 and 5 are spares. The session talks all the time.

=========  ====================================================================================
Ask        at ``at`` s, host ``host`` asks to be replaced by ``new`` ((): to be taken out)
Lead       at ``at`` s, host ``host`` is told to lead: ``old`` goes, ``new`` comes, before ``right``
Fault      what of ``message`` (a class of m2m.protocol.update) leaves ``sender`` for
           ``receiver`` from ``since`` to ``until`` s is lost; with ``late``, comes later by that
Restart    from ``at`` to ``until`` s, host ``host`` has no agent; its kernel goes on
=========  ====================================================================================

A scene ends well when everybody who asked has been answered, the path is one of ``paths``, whole
and agreed on, nobody is in a change, and no packet was lost (``tests/model/test_scenarios.py``).
``variant`` names what of :mod:`tests.model.variants` it replays.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from m2m.protocol.update import Lock, UpdateAck, UpdateFin, UpdateSynAck

__all__ = ["SCENARIOS", "Ask", "Fault", "Lead", "Restart", "Scenario"]

EVER = float("inf")


class Ask(NamedTuple):
    at: float
    host: int
    new: tuple[int, ...] = ()


class Lead(NamedTuple):
    at: float
    host: int
    old: tuple[int, ...]
    right: int
    new: tuple[int, ...] = ()


class Fault(NamedTuple):
    message: type
    sender: int
    receiver: int
    since: float = 0.0
    until: float = EVER
    late: float | None = None


class Restart(NamedTuple):
    host: int
    at: float
    until: float


Wish: TypeAlias = Ask | Lead
Trouble: TypeAlias = Fault | Restart


class Scenario(NamedTuple):
    variant: str
    wishes: tuple[Wish, ...]
    trouble: tuple[Trouble, ...]
    paths: tuple[tuple[int, ...], ...]


SCENARIOS = [
    # 2's request is on its way to 1 while 1 leaves.
    Scenario("cut", (Ask(0, 1), Ask(0.003, 2)), (), ((0, 3),)),
    Scenario("cut", (Ask(0, 1), Ask(0.004, 2)), (), ((0, 3),)),
    # 2 asks 1, which is not its neighbour any more.
    Scenario("bypass", (Lead(0, 1, (), 2, (4,)), Ask(0.001, 2)), (), ((0, 1, 4, 3),)),
    Scenario("bypass", (Lead(0, 1, (), 2, (4,)), Ask(0.003, 2)), (), ((0, 1, 4, 3),)),
    # Two that would refuse each other in step.
    Scenario("both refused", (Ask(0, 1), Ask(0, 2)), (), ((0, 3),)),
    Scenario("both refused", (Ask(0, 1), Ask(0, 2)), (Fault(Lock, 0, 1, until=0.1, late=0.05),),
             ((0, 3),)),
    # 1 is to go, and is wanted on the other side of 2.
    Scenario("ring", (Ask(0, 1), Lead(0, 2, (), 3, (1,))), (), ((0, 2, 3), (0, 2, 1, 3))),
    Scenario("ring", (Ask(0, 1), Lead(0.001, 2, (), 3, (1,))), (), ((0, 2, 3), (0, 2, 1, 3))),
    # Nobody tells the new hop that it is in, nor 3 that it can switch: they ask.
    Scenario("silence", (Lead(0, 1, (2,), 3, (4,)),), (Fault(UpdateAck, 1, 4, until=0.2),),
             ((0, 1, 4, 3),)),
    Scenario("silence", (Lead(0, 1, (2,), 3, (4,)),),
             (Fault(UpdateAck, 1, 4, until=2), Fault(UpdateFin, 1, 2, until=2)), ((0, 1, 4, 3),)),
    # All stands, but 1 does not hear of it and undoes; 3 must not have switched.
    Scenario("switch early", (Lead(0, 1, (2,), 3, (4,)),), (Fault(UpdateSynAck, 3, 1),),
             ((0, 1, 2, 3),)),
    # The old hop's agent dies when it is decided, and is asked by 3 before it is told.
    Scenario("knows too much", (Lead(0, 1, (2,), 3),),
             (Fault(UpdateFin, 1, 2, until=1), Fault(UpdateAck, 1, 3, until=1),
              Restart(2, 0.02, 0.1)), ((0, 1, 3),)),
    # A LOCK of a change that is over is late for a restarted host: it is of the host's last epoch.
    Scenario("late lock", (Lead(0, 0, (1,), 2), Lead(1.05, 1, (2,), 3)),
             (Fault(Lock, 1, 2, until=0.01, late=1.2), Fault(Lock, 1, 2, 0.01, 1.04),
              Fault(UpdateFin, 1, 2, 1.04, 3), Fault(UpdateAck, 1, 3, 1.04, 3),
              Restart(2, 1.1, 1.15)), ((0, 1, 3),)),
    # 3 has no agent for longer than finish_limit, and sends leftward by the old leg.
    Scenario("time ends all", (Lead(0, 1, (2,), 3, (4,)),),
             (Fault(UpdateAck, 4, 3, until=0.1), Fault(UpdateFin, 1, 2, until=0.1),
              Restart(3, 0.02, 8)), ((0, 1, 4, 3),)),
    # As before, but 2 has been told to leave; 3 still sends by it.
    Scenario("impatient leaving", (Lead(0, 1, (2,), 3, (4,)),),
             (Fault(UpdateAck, 4, 3, until=0.1), Fault(UpdateFin, 2, 3, until=0.1),
              Restart(3, 0.02, 8)), ((0, 1, 4, 3),)),
]  # fmt: skip
