"""What somebody wants changed in the chains of live sessions, in names of network functions."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from m2m.policy.rules import Asker, ChangeMode
from m2m.policy.syntax import Predicate

__all__ = ["ME", "Do", "Order", "Wish"]

ME = "\0me"
"""In a wish: the host that is asked. No network function can be called so."""


class Do(StrEnum):
    """What can be done to the chain of a live session."""

    INSERT = "insert"
    REMOVE = "remove"
    REPLACE = "replace"
    DRAIN = "drain"  # another instance takes the place of one


class Wish(NamedTuple):
    """A change that is wanted, whichever sessions it is wanted of.

    Names are those of NF types (``ids``), of instances (``ids/ids2``, ``ids2``), addresses of hosts
    that are on the path, and :data:`ME`. *after* and *before* are for insertions, one of them;
    they may also be ``client`` and ``server``.
    """

    do: Do
    old: tuple[str, ...] = ()  # what goes, in the chain's order
    new: tuple[str, ...] = ()  # what comes; of a type, an instance is chosen as its policy says
    after: str | None = None
    before: str | None = None


class Order(NamedTuple):
    """A wish, for which sessions, and who has it."""

    wish: Wish
    asker: Asker
    sessions: tuple[int, ...] = ()  # none: all at this host that the predicate matches
    predicate: Predicate | None = None
    mode: ChangeMode | None = None  # None: what each session's policy says
    nf: str | None = None  # only those to which this host is this NF type
    # Octets that the asker has added to a session's stream to the right, and to the left.
    added: tuple[int, int] | None = None
