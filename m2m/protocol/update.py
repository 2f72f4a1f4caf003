"""The messages by which the chain of a live session is changed.

``docs/reconfiguration.md`` says who sends which and when, :mod:`m2m.protocol.update_wire` makes
them bytes. *change* names the change; 0 stands for "whichever it was" where a restarted host may
speak.
Those with a *subsession* go from neighbour to neighbour; the others straight to whom they concern.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, TypeAlias

import msgspec

from m2m.identity import ANONYMOUS
from m2m.protocol.codec import Cause, Hop, Malformed, WireError
from m2m.protocol.flow import Address, Flow
from m2m.protocol.splice import Splice

MAX_RUN: Final = 8  # hosts that one change takes out or puts in
MAX_PART: Final = 960  # bytes of NF state in one message
MAX_PARTS: Final = 64


class Mode(IntEnum):
    """What a change promises to the packets (§5)."""

    LF = 0  # none is lost, and at the ends none overtakes another but for want of time or room
    OP = 1  # nor overtaken anywhere, and NF state moves
    SS_OP = 2  # and the byte stream is parted at one place per direction (TCP)


class Progress(IntEnum):
    """How far the heir is with a part of an NF's state."""

    RECEIVED = 0
    IMPORTED = 1  # all of it
    FAILED = 2


class Step(msgspec.Struct, frozen=True, gc=False):
    """One host of the old run, and which new host takes its NF's state over (None: nobody)."""

    address: Address
    heir: Address | None = None


class UpdateSyn(msgspec.Struct, frozen=True):
    """Join the session by this leg. ``hops[0]`` is the receiver; without hops it is R."""

    session: int
    subsession: Flow
    change: int
    mode: Mode
    leader: Address  # L, for direct answers
    supersession: Flow
    hops: tuple[Hop, ...]
    right: Address
    mtu: int  # smallest of the new path so far
    policy: int
    generation: int
    client: bytes = ANONYMOUS  # devices of both ends
    server: bytes = ANONYMOUS


class UpdateSynAck(msgspec.Struct, frozen=True):
    """R: locked and made, all the way."""

    session: int
    change: int
    mtu: int
    splice: Splice | None = None  # of the old path


class UpdateAck(msgspec.Struct, frozen=True):
    """This leg is in. *hops*: how many more hosts are to be told."""

    session: int
    subsession: Flow
    change: int
    hops: int


class UpdateFin(msgspec.Struct, frozen=True):
    """This leg is out for ever; *count* wire packets went right by it (None: not known)."""

    session: int
    subsession: Flow
    change: int
    count: int | None


class UpdateFinAck(msgspec.Struct, frozen=True):
    """It is empty and gone from here to R; *count* packets went left. R had held *held*."""

    session: int
    subsession: Flow
    change: int
    count: int | None
    held: int


class UpdateAsk(msgspec.Struct, frozen=True):
    """Is this leg in?"""

    session: int
    subsession: Flow
    change: int


class UpdateReject(msgspec.Struct, frozen=True):
    """To L: this change cannot be; undo it."""

    session: int
    change: int
    cause: Cause
    text: str
    blame: Address | None = None


class Lock(msgspec.Struct, frozen=True):
    """Take part in this change and in no other. ``steps[0]`` is the receiver; without it is R."""

    session: int
    subsession: Flow
    change: int
    mode: Mode
    leader: Address
    steps: tuple[Step, ...]
    right: Address
    splice: Splice | None = None  # of the old path, up to here


class UpdateSub(msgspec.Struct, frozen=True):
    """L to R: hold what is beyond your substream."""

    session: int
    change: int


class UpdateSubAck(msgspec.Struct, frozen=True):
    """R to L: all of my substream has been acknowledged."""

    session: int
    change: int


class UpdateDrain(msgspec.Struct, frozen=True):
    """Nothing goes right by this leg for now; *count* packets did."""

    session: int
    subsession: Flow
    change: int
    count: int | None


class UpdateDrained(msgspec.Struct, frozen=True):
    """Nor left; *count* packets did, and NF state to the right of here has moved."""

    session: int
    subsession: Flow
    change: int
    count: int | None


class UpdateEmpty(msgspec.Struct, frozen=True):
    """lf: nothing more comes here by the old path. What is kept back for this leg may follow."""

    session: int
    subsession: Flow
    change: int


class StatePart(msgspec.Struct, frozen=True):
    """A part of an NF's state, from the old host to its heir."""

    session: int
    change: int
    part: int
    parts: int
    data: bytes


class StateAck(msgspec.Struct, frozen=True):
    """The heir has this part; with IMPORTED or FAILED, the verdict on the whole."""

    session: int
    change: int
    part: int
    progress: Progress


class Request(msgspec.Struct, frozen=True):
    """To L: please replace *steps*, which end at *right*, by *hops*. *added* is what a function
    there has made of numbers, and makes of them until its host is out."""

    session: int
    change: int
    mode: Mode
    steps: tuple[Step, ...]
    right: Address
    hops: tuple[Hop, ...]
    added: Splice | None = None


class Approve(msgspec.Struct, frozen=True):
    """It is under way, or waits for its turn."""

    session: int
    change: int


class Reject(msgspec.Struct, frozen=True):
    """It was refused or undone."""

    session: int
    change: int
    cause: Cause
    text: str
    blame: Address | None = None


class Done(msgspec.Struct, frozen=True):
    """The session goes by the new path. *held*: packets that waited, at both ends. *gone*: nothing
    of the old path is left; else R has not been heard of yet."""

    session: int
    change: int
    held: int
    gone: bool


class Join(msgspec.Struct, frozen=True):
    """This session is *name* from now on, and on the other side of here ends at *device*."""

    session: int
    subsession: Flow
    change: int
    name: int
    device: bytes
    mtu: int  # smallest of both halves; 0xFFFF: not known


class Joined(msgspec.Struct, frozen=True):
    """All from here to the end that JOIN goes to know."""

    session: int
    subsession: Flow
    change: int


Update: TypeAlias = (
    UpdateSyn | UpdateSynAck | UpdateAck | UpdateFin | UpdateFinAck | UpdateAsk | UpdateReject
    | Lock | UpdateSub | UpdateSubAck | UpdateDrain | UpdateDrained | UpdateEmpty | StatePart
    | StateAck | Request | Approve | Reject | Done | Join | Joined
)  # fmt: skip


def parts_of(state: bytes) -> tuple[bytes, ...]:
    """*state* cut into what messages can carry. Raises :exc:`WireError` if it is too long."""
    cut = tuple(state[at : at + MAX_PART] for at in range(0, len(state), MAX_PART)) or (b"",)
    if len(cut) > MAX_PARTS:
        limit = MAX_PART * MAX_PARTS
        text = f"a network function's state has {len(state)} bytes, at most {limit}"
        raise WireError(Malformed.OVERSIZED, text)
    return cut
