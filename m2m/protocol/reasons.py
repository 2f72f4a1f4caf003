"""Why sessions end, in words and in messages."""

from __future__ import annotations

from typing import NamedTuple

from m2m.protocol.flow import Address, Flow, format_address
from m2m.protocol.session import Ending, Session
from m2m.protocol.wire import Ack, Cause, Fin, Hop, Message, Rst, SynAck

__all__ = [
    "LEFT_KNOWS", "RIGHT_KNOWS", "SPARE_KNOWS", "Why", "describe_hop", "hop_gone",
    "hop_silent", "install_failed", "notice", "own_address", "replaced", "told", "unknown",
]  # fmt: skip


class Why(NamedTuple):
    """Why a session ends, and which neighbours know already."""

    cause: Cause | None  # None: it is simply over
    text: str
    blame: Address | None = None  # the host at fault, when known
    left_knows: bool = False
    right_knows: bool = False
    spare_knows: bool = False


LEFT_KNOWS = Why(None, "", left_knows=True)
RIGHT_KNOWS = Why(None, "", right_knows=True)
SPARE_KNOWS = Why(None, "", spare_knows=True)


def told(message: Fin | Rst, *, by_left: bool) -> Why:
    """A neighbour says so."""
    if isinstance(message, Rst):
        return Why(message.cause, message.text, message.blame, by_left, not by_left)
    return Why(None, "closed by the other side", None, by_left, not by_left)


def replaced(flow: Flow) -> Why:
    """Another session has taken its place."""
    return Why(Cause.REPLACED, f"{flow} was opened anew")


def install_failed(session: Session, why: str) -> Why:
    """This host's datapath refuses."""
    own = own_address(session)
    text = f"{format_address(own)} cannot take the session: {why}"
    return Why(Cause.INSTALL_FAILED, text, own)


def hop_silent(session: Session) -> Why:
    """It has waited too long in its state, and for whom."""
    if session.opening is not None:
        silent = session.opening.syn.chain[0]
        return Why(Cause.TIMEOUT, f"{describe_hop(silent)} does not answer", silent.address)
    waits_for = session.left.src if session.left is not None else None
    name = "the next host" if waits_for is None else format_address(waits_for)
    return Why(Cause.TIMEOUT, f"{name} does not confirm the session", waits_for)


def hop_gone(leg: Flow, *, by_left: bool) -> Why:
    """This host has moved, and the neighbour by *leg* does not know the session."""
    peer = leg.src if by_left else leg.dst
    text = f"{format_address(peer)} has no such session any more"
    return Why(Cause.UNKNOWN_SESSION, text, peer, by_left, not by_left)


def unknown(message: Ack | SynAck) -> Rst:
    """The answer to a message about a session that is not here."""
    leg = message.subsession
    own = leg.dst if isinstance(message, Ack) else leg.src
    text = f"{format_address(own)} has no such session"
    return Rst(message.session, leg, Cause.UNKNOWN_SESSION, text, own)


def notice(session: int, leg: Flow, ending: Ending) -> Message:
    """What a neighbour is told about the end of a session."""
    if ending.cause is None:
        return Fin(session, leg)
    return Rst(session, leg, ending.cause, ending.text, ending.blame)


def describe_hop(hop: Hop) -> str:
    """The host of a chain as an error names it."""
    return f"{hop.nf or 'server'} at {format_address(hop.address)}"


def own_address(session: Session) -> Address:
    """The address by which the neighbours know this host."""
    if session.left is not None:
        return session.left.dst
    assert session.right is not None
    return session.right.src
