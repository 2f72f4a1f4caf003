"""Who may move a session: its own end, in order, and nobody else. What is refused is counted."""

from __future__ import annotations

import random

import msgspec
import pytest

from m2m.identity import ANONYMOUS, Identity
from m2m.protocol.commands import Refuse, Send
from m2m.protocol.events import Received
from m2m.protocol.flow import Address, Flow, parse_address
from m2m.protocol.rebind import Bound, End, Leg, Rebind, Rebound, Result
from tests.support.simulation import PROMPT, Host, World

EVE_AT = parse_address("10.66.0.1")
EVE = Identity(b"eve has the domain's key as well")


class Stage:
    """A client, a hop and a server, with one session; messages to the hop are fed by hand."""

    def __init__(self) -> None:
        self.world = World(1, random.Random(1))
        self.client, self.hop, self.server = self.world.hosts
        self.world.open(0)
        self.world.run(1.0)
        (self.session,) = self.hop.node.sessions.values()
        assert self.session.left is not None
        self.leg: Flow = self.session.left

    def rebind(self, number: int, new: Address = EVE_AT, **changed: object) -> Rebind:
        """Not proved yet."""
        ports = self.leg.sport, self.leg.dport
        leg = Leg(self.session.id, End.CLIENT, self.leg.proto, number, ports, ports)
        mover, hop = self.leg.src, self.leg.dst
        message = Rebind(self.session.id, mover, new, hop, self.device(self.client), (leg,))
        return msgspec.structs.replace(message, **changed)

    def device(self, host: Host) -> bytes:
        return Identity(host.secret).device

    def proved(self, message: Rebind, by: Identity) -> Rebind:
        (leg,) = message.legs
        proof = by.prove(self.device(self.hop), leg.session, message.content(leg))
        return msgspec.structs.replace(message, legs=(leg._replace(proof=proof),))

    def answer(self, message: Rebind, peer: Address = EVE_AT) -> Result:
        """What the hop says to it."""
        said: list[Rebound] = []
        transmit = self.world.transmit

        def listen(sender: Host, to: Address, data: bytes) -> None:
            if to != peer:
                transmit(sender, to, data)

        carry_out = self.hop.carry_out

        def look(commands: list[object]) -> None:
            said.extend(
                one.message
                for one in commands
                if isinstance(one, Send) and isinstance(one.message, Rebound)
            )
            carry_out(commands)  # type: ignore[arg-type]

        self.world.transmit, self.hop.carry_out = listen, look  # type: ignore[assignment, method-assign]
        try:
            self.hop.feed(Received(peer, message, None, EVE.device))
        finally:
            self.world.transmit = transmit  # type: ignore[method-assign]
            self.hop.carry_out = carry_out  # type: ignore[method-assign]
        (answer,) = said
        (leg,) = answer.legs
        return leg.result

    def is_as_it_was(self) -> bool:
        entries = self.hop.kernel.entries
        names = {row.match for row in entries.values()} | {row.rewrite for row in entries.values()}
        return self.session.left == self.leg and not any(EVE_AT in name for name in names)


def test_the_end_itself_may() -> None:
    stage = Stage()
    message = stage.proved(stage.rebind(1), Identity(stage.client.secret))
    assert stage.answer(message) is Result.DONE
    assert stage.session.left is not None and stage.session.left.src == EVE_AT
    assert stage.hop.node.mobility.counts["rebound"] == 1


@pytest.mark.parametrize("by", ["nobody", "another host", "the hop itself", "the other end"])
def test_a_forged_move_changes_nothing(by: str) -> None:
    stage = Stage()
    message = stage.rebind(1)
    if by == "another host":
        message = stage.proved(msgspec.structs.replace(message, device=EVE.device), EVE)
    elif by == "the hop itself":
        message = stage.proved(message, Identity(stage.hop.secret))
    elif by == "the other end":
        message = stage.proved(message, Identity(stage.server.secret))
    assert stage.answer(message) is Result.UNPROVEN
    assert stage.is_as_it_was()
    assert stage.hop.node.mobility.counts == {"rebind unproven": 1}


@pytest.mark.parametrize("what", ["new", "old", "hop", "device", "number", "ports", "end"])
def test_no_part_of_a_proved_move_can_be_changed(what: str) -> None:
    stage = Stage()
    message = stage.proved(stage.rebind(2), Identity(stage.client.secret))
    (leg,) = message.legs
    if what in ("new", "old", "hop"):
        message = msgspec.structs.replace(message, **{what: parse_address("10.66.0.2")})
    elif what == "device":
        message = msgspec.structs.replace(message, device=EVE.device)
    else:
        leg = {
            "number": leg._replace(number=3),
            "ports": leg._replace(ports=(leg.ports[0], leg.ports[1] + 1)),
            "end": leg._replace(end=End.SERVER),
        }[what]
        message = msgspec.structs.replace(message, legs=(leg,))
    assert stage.answer(message) is Result.UNPROVEN
    assert stage.is_as_it_was()


def test_an_old_move_changes_nothing_and_the_last_is_answered_again() -> None:
    stage = Stage()
    client = Identity(stage.client.secret)
    there, elsewhere = parse_address("10.9.1.1"), parse_address("10.9.2.1")
    first = stage.proved(stage.rebind(1, there), client)
    second = stage.proved(stage.rebind(2, elsewhere, old=there), client)
    assert stage.answer(first, there) is Result.DONE
    assert stage.answer(second, elsewhere) is Result.DONE
    left, rows = stage.session.left, dict(stage.hop.kernel.entries)
    assert stage.answer(first, there) is Result.OLD
    assert stage.answer(second, elsewhere) is Result.DONE  # its answer was lost
    assert stage.answer(stage.proved(stage.rebind(2), client)) is Result.OLD  # to elsewhere
    assert stage.session.left == left
    assert stage.hop.kernel.entries == rows
    counts = stage.hop.node.mobility.counts
    assert (counts["rebind old"], counts["rebound"]) == (2, 2)


def test_a_move_of_another_session_proves_nothing_for_this_one() -> None:
    stage = Stage()
    message = stage.proved(stage.rebind(1), Identity(stage.client.secret))
    (leg,) = message.legs
    other = leg._replace(session=leg.session + 1)
    assert stage.answer(
        msgspec.structs.replace(message, session=other.session, legs=(other,))
    ) is Result.UNKNOWN  # fmt: skip
    assert stage.is_as_it_was()


def test_who_claims_to_be_the_end_by_a_set_up_does_not_become_it() -> None:
    """A SYN of the same session from another device, in the name of the same address."""
    stage = Stage()
    (at_client,) = stage.client.node.sessions.values()
    before = stage.session.client
    stage.client.secret = b"another device, another 32 bytes"
    stage.client.kill_agent()
    stage.client.kernel = stage.world.make_kernel(stage.client)
    stage.client.start()
    flow = at_client.supersession
    stage.client.open(flow, stage.world.chain(), False)  # of the same flow, by other ports
    stage.world.run(0.5)
    assert stage.session.client == before != ANONYMOUS
    assert stage.hop.node.sessions[stage.session.id] is stage.session
    *_, verdict = stage.client.verdicts
    assert isinstance(verdict, Refuse) and "another device" in verdict.why


def test_an_answer_that_is_not_the_hops_confirms_nothing() -> None:
    stage = Stage()
    world, client = stage.world, stage.client
    held: list[tuple[Host, Address, bytes]] = []
    world.transmit = lambda *what: held.append(what)  # type: ignore[method-assign, assignment]
    world.move(client, "10.9.1.1")
    (session,) = client.node.sessions.values()
    assert session.right == stage.leg
    bare = Rebound(session.id, client.home, stage.leg.dst, ())
    ports = stage.leg.sport, stage.leg.dport
    done = Bound(session.id, End.CLIENT, 1, Result.DONE, ports, b"x" * 16)
    forged = msgspec.structs.replace(bare, legs=(done,))
    client.feed(Received(stage.leg.dst, forged, None, EVE.device))
    assert session.right == stage.leg
    assert client.node.mobility.counts["unproven answer"] == 1
    del world.transmit  # type: ignore[method-assign]
    world.fate = lambda: PROMPT
    world.run(1.0)
    assert session.right is not None and session.right.src == client.home
