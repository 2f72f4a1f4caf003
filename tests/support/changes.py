"""Hosts, legs and messages of one change, as the machines of each host meet them.

The firewall between client and IDS is replaced by another: L is the client, R the IDS. Every host
has few ports, so all legs are known beforehand.
"""

from __future__ import annotations

from m2m.protocol.commands import Command
from m2m.protocol.events import Adopted, ChangeWanted, Received, Route
from m2m.protocol.flow import Address, Flow, Proto, parse_address
from m2m.protocol.translation import (
    Position,
    SessionView,
    redirected_entry,
    spare_entries,
)
from m2m.protocol.update import Lock, Mode, Step, UpdateAck, UpdateSyn
from m2m.protocol.wire import Hop
from tests.support.play import ID, Play

CLIENT, FW, IDS, SERVER, NEW = (
    parse_address(text) for text in ("10.0.0.1", "10.0.1.2", "10.0.2.2", "10.0.9.9", "10.0.7.2")
)
SUPER = Flow(Proto.TCP, CLIENT, 40000, SERVER, 80)
CHANGE = 0xC4A


def leg(src: Address, dst: Address) -> Flow:
    return Flow(Proto.TCP, src, 61000, dst, 61001)


OLD_LEFT, OLD_RIGHT, ONWARD = leg(CLIENT, FW), leg(FW, IDS), leg(IDS, SERVER)
NEW_LEFT, NEW_RIGHT = leg(CLIENT, NEW), leg(NEW, IDS)

AT_CLIENT = SessionView(ID, Position.CLIENT, SUPER, None, OLD_LEFT, 0, 3, 7)
AT_FW = SessionView(ID, Position.INLINE, SUPER, OLD_LEFT, OLD_RIGHT, 0, 3, 7)
AT_IDS = SessionView(ID, Position.TAP, SUPER, OLD_RIGHT, ONWARD, 0, 3, 7)
AT_NEW = SessionView(ID, Position.INLINE, SUPER, NEW_LEFT, NEW_RIGHT, 0, 3, 7)

HOP = Hop(NEW, Position.INLINE, "firewall")
STEP = Step(FW, NEW)


CLIENT_AFTER = AT_CLIENT._replace(right=NEW_LEFT)
IDS_AFTER = AT_IDS._replace(left=NEW_RIGHT)
AT_CLIENT_TOO = spare_entries(AT_CLIENT, CLIENT_AFTER)
AT_IDS_TOO = spare_entries(AT_IDS, IDS_AFTER)
TURN_RIGHT = redirected_entry(AT_CLIENT, CLIENT_AFTER)
TURN_LEFT = redirected_entry(AT_IDS, IDS_AFTER)


def wanted(mode: Mode = Mode.LF) -> ChangeWanted:
    return ChangeWanted(ID, CHANGE, mode, (STEP,), IDS, (HOP,), Route(CLIENT, 1500))


def syn(mode: Mode = Mode.LF) -> UpdateSyn:
    """As L sends it."""
    return UpdateSyn(ID, NEW_LEFT, CHANGE, mode, CLIENT, SUPER, (HOP,), IDS, 1500, 3, 7)


def syn_to_r(mode: Mode = Mode.LF) -> UpdateSyn:
    """As the new hop passes it on."""
    return UpdateSyn(ID, NEW_RIGHT, CHANGE, mode, CLIENT, SUPER, (), IDS, 1400, 3, 7)


def lock(mode: Mode = Mode.LF) -> Lock:
    return Lock(ID, OLD_LEFT, CHANGE, mode, CLIENT, (STEP,), IDS)


def lock_to_r(mode: Mode = Mode.LF) -> Lock:
    return Lock(ID, OLD_RIGHT, CHANGE, mode, CLIENT, (), IDS)


def standing(view: SessionView) -> Play:
    """A host that has taken the session over and knows that it stands."""
    play = Play()
    play >> Adopted(view)
    play.todo.clear()
    if view.left is not None:
        play >> Received(view.left.src, UpdateAck(ID, view.left, 0, 0))
        play.todo.clear()
    session = play.node.sessions[ID]
    session.sent_left = session.sent_right = 0
    session.more_left = session.more_right = False
    return play


def skip(play: Play) -> list[Command]:
    """What is done next, whatever it is."""
    done, play.todo = play.todo, []
    return done
