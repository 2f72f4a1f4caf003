"""What one host does to the packets of one session: the link between protocol and datapath.

A session passes a host at one :class:`Position`. Its *left* subsession leads towards the client,
its *right* one towards the server; both are written in the direction client to server. From
these :func:`entries_for` derives the translation entries, and :func:`view_of` is its inverse,
by which a restarted agent takes its sessions over from the kernel.

=========  ====================================  ====================================
position   packets towards the server            packets towards the client
=========  ====================================  ====================================
CLIENT     OUT local -> right, SEND              IN ~right -> ~local, DELIVER
TAP        IN left -> right, SEND                IN ~right -> ~left, SEND
INLINE     IN left -> super, DELIVER             IN ~right -> ~super, DELIVER
           OUT super -> right, SEND              OUT ~super -> ~left, SEND
SERVER     IN left -> super, DELIVER             OUT ~super -> ~left, SEND
PROXY      as SERVER; the first packet is marked
=========  ====================================  ====================================

(``~`` is the reverse flow.) TAP is horizontal NAT alone; DELIVER is vertical NAT on the way in.
A client's *local* flow is the supersession, but where a proxy goes on with a session that has come
to it (``docs/proxies.md``): there it is the flow of the proxy's own socket.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import NamedTuple

from m2m.protocol.flow import Address, Flow
from m2m.protocol.splice import Splice

MOVED = 0xFFFFFFFF
"""The generation of a row for a name of a leg that is not the leg's, or not yet (mobility)."""


class Hook(IntEnum):
    """Where a packet meets the datapath."""

    IN = 0  # entering the host from a network
    OUT = 1  # leaving the host, after its own stack


class Action(IntEnum):
    """What happens after the rewrite."""

    DELIVER = 0  # on to the host's own stack
    SEND = 1  # to the next hop
    PASS = 2  # nothing is rewritten: a flow whose policy failed open
    DROP = 3  # a flow whose policy failed closed


class Toward(IntEnum):
    """Which end of the session a packet travels to."""

    RIGHT = 0  # the server
    LEFT = 1  # the client


class Position(IntEnum):
    """What a host is in a session."""

    CLIENT = 0
    TAP = 1
    INLINE = 2
    SERVER = 3
    PROXY = 4  # in place of the server: a program here has connections of its own


def ends_at(position: Position) -> bool:
    """Whether a chain ends there: with its server, or a proxy in its place."""
    return position >= Position.SERVER


class NextHop(NamedTuple):
    """Where SEND sends: an interface and the neighbour to hand the packet to."""

    ifindex: int
    gateway: Address  # the neighbour on that link (the destination itself when on-link)
    mtu: int


class Entry(NamedTuple):
    """One row of the translation table. ``(hook, match)`` is its key.

    ``mss`` clamps the option in SYN segments (0: leave it): chains can have a smaller MTU than
    the direct path, and no router on the way can tell the sender, who sees other addresses.
    ``chain`` and ``generation`` name the policy and the policy set it came from. Of a row of the
    right leg, ``splice`` is what the hop adds to TCP's numbers (``docs/splicing.md``).
    """

    session: int  # 64 bits, chosen by the client at random; 0 for PASS and DROP
    hook: Hook
    match: Flow
    rewrite: Flow
    action: Action
    toward: Toward
    position: Position
    supersession: Flow  # in the direction client to server
    mss: int = 0
    chain: int = 0
    generation: int = 0
    hop: NextHop | None = None  # filled in by the shell for SEND
    splice: Splice | None = None

    @property
    def key(self) -> tuple[Hook, Flow]:
        return self.hook, self.match


class SessionView(NamedTuple):
    """A session as one host sees it."""

    session: int
    position: Position
    supersession: Flow
    left: Flow | None  # None at the client
    right: Flow | None  # None at the server
    mss: int = 0
    chain: int = 0
    generation: int = 0
    local: Flow | None = None  # of the socket here, where that is not the supersession
    splice: Splice | None = None  # of the right leg

    @property
    def here(self) -> Flow:
        """The session as this host's own stack sees it."""
        return self.supersession if self.local is None else self.local


def entries_for(
    view: SessionView, hop_to: Callable[[Address], NextHop | None] | None = None
) -> tuple[Entry, ...]:
    """The entries a host needs for a session: two, or four at an inline middlebox.

    *hop_to* finds the way to a neighbour, for SEND; without it the entries have no hop.
    """
    entries: tuple[Entry, ...] = ()
    if view.left is not None:
        entries = leg_entries(view, left=True)
    if view.right is not None and view.position is not Position.TAP:
        received, sent = leg_entries(view, left=False)
        entries += (sent, received)
    if hop_to is None:
        return entries
    return tuple(
        entry._replace(hop=hop_to(entry.rewrite.dst)) if entry.action is Action.SEND else entry
        for entry in entries
    )


def leg_entries(view: SessionView, *, left: bool) -> tuple[Entry, Entry]:
    """The entries of the left leg, or else of the right one: what receives by it, what sends by it.

    At a tap the entry that receives by one leg is the one that sends by the other.
    """
    return received_entry(view, left=left), sent_entry(view, left=left)


def received_entry(view: SessionView, *, left: bool) -> Entry:
    """What receives by the left leg, or else by the right one."""
    session, position, sup, left_leg, right_leg, mss, chain, generation, _, splice = view
    if left:
        match, onward, toward = left_leg, right_leg, Toward.RIGHT
        restored = sup
    else:
        assert right_leg is not None
        match, onward, toward = right_leg.reverse(), _reverse(left_leg), Toward.LEFT
        restored = view.here.reverse()
    assert match is not None
    action = Action.DELIVER
    if position is Position.TAP:
        assert onward is not None
        restored, action = onward, Action.SEND
    if left and position is not Position.TAP:
        splice = None
    return Entry(
        session, Hook.IN, match, restored, action, toward, position, sup, mss, chain, generation,
        splice=splice,
    )  # fmt: skip


def sent_entry(view: SessionView, *, left: bool) -> Entry:
    """What sends by the left leg, or else by the right one."""
    session, position, sup, left_leg, right_leg, mss, chain, generation, _, splice = view
    if left:
        assert left_leg is not None
        onward, toward = left_leg.reverse(), Toward.LEFT
    else:
        assert right_leg is not None
        onward, toward = right_leg, Toward.RIGHT
    if position is Position.TAP:
        other = _reverse(right_leg) if left else left_leg
        assert other is not None
        hook, match = Hook.IN, other
    else:
        hook, match = Hook.OUT, view.here.reverse() if left else view.here
        if left:
            splice = None
    return Entry(
        session, hook, match, onward, Action.SEND, toward, position, sup, mss, chain, generation,
        splice=splice,
    )  # fmt: skip


def _reverse(leg: Flow | None) -> Flow | None:
    return None if leg is None else leg.reverse()


def spare_entries(view: SessionView, spare: SessionView) -> tuple[Entry, ...]:
    """What accepts the packets of a second leg: the entry of *spare* that *view* has not.

    *spare* is *view* with the other left or right leg.
    """
    if view.left == spare.left and view.right == spare.right:
        return ()
    return (received_entry(spare, left=view.left != spare.left),)


def redirected_entry(view: SessionView, spare: SessionView) -> Entry:
    """The one entry of *view* that sends elsewhere when *spare* takes its place, as it then is."""
    return sent_entry(spare, left=view.left != spare.left)


def receiver(view: SessionView, toward: Toward) -> tuple[Hook, Flow]:
    """The key of the entry that sees the packets coming from a neighbour, travelling *toward*."""
    leg = view.left if toward is Toward.RIGHT else view.right
    assert leg is not None
    return Hook.IN, leg if toward is Toward.RIGHT else leg.reverse()


def sender(view: SessionView, toward: Toward) -> tuple[Hook, Flow]:
    """The key of the entry that sends packets *toward* a neighbour: at a tap, it is the one that
    receives them."""
    if view.position is Position.TAP:
        return receiver(view, toward)
    flow = view.here
    return Hook.OUT, flow if toward is Toward.RIGHT else flow.reverse()


def view_of(entries: Iterable[Entry]) -> SessionView:
    """Rebuild the session from its entries, the inverse of :func:`entries_for`.

    Raises :class:`ValueError` when *entries* are not the complete entries of one session.
    """
    view, spare = view_and_spare(entries)
    if spare is not None:
        raise ValueError(f"session {view.session:016x}: there is a second leg, {spare}")
    return view


def view_and_spare(entries: Iterable[Entry]) -> tuple[SessionView, Flow | None]:
    """Rebuild the session from its entries and those of a second left or right leg, if any.

    The leg by which packets are sent is the session's, the other one the spare. Raises
    :class:`ValueError` when *entries* are not the complete entries of one session.
    """
    rows = {entry.key: entry for entry in entries}
    if not rows:
        raise ValueError("no entries")
    first = next(iter(rows.values()))
    lefts: list[Flow | None] = []
    rights: list[Flow | None] = []
    for entry in rows.values():
        if entry.hook is Hook.IN and entry.toward is Toward.RIGHT:
            lefts.append(entry.match)
        elif entry.hook is Hook.IN and entry.toward is Toward.LEFT:
            rights.append(entry.match.reverse())
    name = f"session {first.session:016x}"
    local = next((row.match for row in rows.values() if _is_clients(row)), first.supersession)
    if (bool(lefts), bool(rights)) != _SIDES.get(first.position, (True, True)):
        raise ValueError(f"{name}: a {first.position.name} lacks an entry")
    if len(lefts) > 2 or len(rights) > 2 or len(lefts) + len(rights) > 3:
        raise ValueError(f"{name}: entries of more than one spare leg")
    for left, right in itertools.product(lefts or [None], rights or [None]):
        view = SessionView(
            first.session, first.position, first.supersession, left, right,
            first.mss, first.chain, first.generation,
            None if local == first.supersession else local, splice_of_leg(rows.values(), right),
        )  # fmt: skip
        others = [one for one in (*lefts, *rights) if one not in (left, right)]
        expected = {entry.key: entry.rewrite for entry in entries_for(view)}
        for spare in others:
            beside = view._replace(left=spare) if spare in lefts else view._replace(right=spare)
            expected |= {entry.key: entry.rewrite for entry in spare_entries(view, beside)}
        if expected == {key: entry.rewrite for key, entry in rows.items()}:
            return view, others[0] if others else None
    raise ValueError(f"{name}: entries do not belong together")


def splice_of_leg(entries: Iterable[Entry], right: Flow | None) -> Splice | None:
    """The splice of this right leg, as one of a session's entries has it."""
    if right is None:
        return None
    key = Hook.IN, right.reverse()
    return next((entry.splice for entry in entries if entry.key == key), None)


_SIDES = {
    Position.CLIENT: (False, True),
    Position.SERVER: (True, False),
    Position.PROXY: (True, False),
}  # which have a left leg, and a right one; others have both


def _is_clients(entry: Entry) -> bool:
    """Whether it takes the packets of a socket of the client's."""
    return entry.position is Position.CLIENT and entry.hook is Hook.OUT


def without_moved(entries: Iterable[Entry]) -> tuple[list[Entry], tuple[Entry, ...]]:
    """The entries of a session, apart from those that accept packets by an old or a proposed name
    of one of its legs (``docs/mobility.md``).

    Such a name is marked :data:`MOVED`, or has the far end or the ports of a leg that is in use on
    the same side: the second leg of a change leads to another host, by other ports.
    """
    rows = list(entries)
    used = {row.rewrite for row in rows if row.action is Action.SEND and row.generation != MOVED}
    kept: list[Entry] = []
    moved: list[Entry] = []
    in_use: dict[Toward, set[object]] = {Toward.RIGHT: set(), Toward.LEFT: set()}
    for row in rows:
        if row.hook is Hook.IN and row.match.reverse() in used:
            in_use[row.toward] |= {row.match.src, (row.match.sport, row.match.dport)}
    for row in rows:
        flow, known = row.match, in_use[row.toward]
        stray = row.hook is Hook.IN and flow.reverse() not in used
        ports = (flow.sport, flow.dport)
        if stray and (row.generation == MOVED or flow.src in known or ports in known):
            moved.append(row)
        else:
            kept.append(row)
    generation = min((row.generation for row in kept), default=0)
    return [row._replace(generation=generation) for row in kept], tuple(moved)
