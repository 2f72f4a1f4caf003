"""What spin is asked about the two models, and what it must find.

``algorithm1.pml`` is the paper's algorithm as printed: every variant fails, and shows why a rule
of docs/reconfiguration.md is there. ``reconfiguration.pml`` is these rules, mended where spin found
a gap: they hold, and each broken one fails. docs/model.md tells the traces.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tests.support.promela import Found, check

__all__ = ["BROKEN", "HOLDING", "PRINTED", "Variant"]

HERE = Path(__file__).parent
PRINTED_MODEL = HERE / "algorithm1.pml"
MENDED_MODEL = HERE / "reconfiguration.pml"


class Variant(NamedTuple):
    """One question to spin."""

    name: str
    about: str
    model: Path
    defines: dict[str, object]
    fails_with: str | None = None  # part of the assertion that must fail; None: all must hold
    near: bool = True  # a shortest counterexample is found before memory and patience are gone

    def check(self) -> Found:
        return check(self.model, self.defines, shortest=self.fails_with is not None and self.near)

    def objection(self, found: Found) -> str | None:
        """Why *found* is not what was to be found, or None."""
        if self.fails_with is None:
            return found.failure and f"does not hold: {found.failure}"
        if found.failure is None:
            return "holds, but must not"
        if self.fails_with not in found.failure:
            return f"fails with {found.failure}, not with {self.fails_with}"
        return None


def _printed(
    name: str, about: str, fails_with: str, first: str, second: str, **more: object
) -> Variant:
    """*first* and *second*: what is wanted, and where."""
    what, where = first.split()
    what_2, where_2 = second.split()
    wanted = {"FIRST": what, "FIRST_AT": where, "SECOND": what_2, "SECOND_AT": where_2}
    return Variant(name, about, PRINTED_MODEL, wanted | more, fails_with)


def _two(first: str, second: str = "NONE NONE NONE", **more: object) -> dict[str, object]:
    """Two changes: who asks, who goes, who comes."""
    names = ("ASKER_1", "OLD_1", "NEW_1", "ASKER_2", "OLD_2", "NEW_2")
    return dict(zip(names, (*first.split(), *second.split()), strict=True)) | more


def _broken(
    name: str, about: str, fails_with: str, macro: str, defines: dict[str, object],
    *, near: bool = True,
) -> Variant:  # fmt: skip
    broken: dict[str, object] = {f"BROKEN_{macro}": 1}
    return Variant(name, about, MENDED_MODEL, defines | broken, fails_with, near)


REMOVE_A, REMOVE_B = "A A NONE", "B B NONE"
REPLACE_A, REPLACE_B = "A A N", "B B M"
RIGHTWARD = "accepts[to[right[at]]]"  # check_path: packets to the server
LEFTWARD = "accepts[from[left[at]]]"
ANSWERED = "fate[c]=="  # judge: no request is lost

PRINTED = [
    _printed("count", "one insertion; the new box counts down twice", "pending[me]>0",
             "insert A", "unused B"),
    _printed("loss", "one insertion, one message lost", "pending[h]==0",
             "insert A", "unused B", MENDED_COUNT=1, LOSSES=1),
    _printed("overlap", "UPDATE-SYN is always accepted", "busy[0]!=3",
             "removal A", "insert B", MENDED_COUNT=1, NO_OVERLAP=1),
    _printed("cut", "a late request reaches a box that has left", "left[right[at]]==at",
             "removal A", "removal B"),
    _printed("bypass", "a late request reaches who is no neighbour any more", "seen>>4",
             "insert A", "removal B", MENDED_COUNT=1),
    _printed("both refused", "mended by refusing UPDATE-SYN where pending > 0", "fate[0]==",
             "removal A", "removal B", REFUSE_BUSY=1),
]  # fmt: skip

HOLDING = [
    Variant("contention", "any two changes on three legs; nothing is lost, nobody gives up",
            MENDED_MODEL, {"PATIENT": 1, "ANY": 1}),
    Variant("contention, long", "the same on four legs", MENDED_MODEL,
            {"PATIENT": 1, "ANY": 1, "LONG": 1}),
    Variant("faults", "one replacement; one message lost, one doubled, one agent restarted",
            MENDED_MODEL, _two(REPLACE_A, LOSSES=1, DUPS=1, CRASHES=1)),
    Variant("losses", "three of one replacement's messages lost, two sent again too early",
            MENDED_MODEL, _two(REPLACE_A, LOSSES=3, REPEATS=2)),
    Variant("time", "two neighbours replaced, anybody's time runs out at any time",
            MENDED_MODEL, _two(REPLACE_A, REPLACE_B)),
    Variant("loss, two", "an insertion and a replacement; one message lost",
            MENDED_MODEL, _two("C NONE N", "A A M", LOSSES=1)),
    Variant("double, two", "two neighbours removed; one message doubled",
            MENDED_MODEL, _two(REMOVE_A, REMOVE_B, DUPS=1)),
    Variant("crash, two", "two neighbours removed; one agent restarted",
            MENDED_MODEL, _two(REMOVE_A, REMOVE_B, CRASHES=1)),
]  # fmt: skip

BROKEN = [
    _broken("unlocked", "R answers UPDATE-SYN alone; the old run is not locked", "old_box[c]",
            "NO_LOCK", _two(REPLACE_A, REPLACE_B)),
    _broken("close early", "the old leg is closed at SYNACK (paper)", LEFTWARD,
            "CLOSE_EARLY", _two(REPLACE_A)),
    _broken("switch early", "R switches at UPDATE-SYN (paper)", LEFTWARD,
            "SWITCH_EARLY", _two(REMOVE_A)),
    _broken("time ends all", "L forgets the old leg after finish_limit", LEFTWARD,
            "LIMIT", _two(REPLACE_A)),
    _broken("impatient leaving", "a host leaves after finish_limit", LEFTWARD,
            "LEAVING_LIMIT", _two(REPLACE_A)),
    _broken("knows too much", "a restarted host answers before it was told", RIGHTWARD,
            "ADOPTED_ANSWERS", _two(REMOVE_A, CRASHES=1)),
    _broken("late lock", "a restarted host takes any LOCK", RIGHTWARD,
            "ADOPTED_LOCKS", _two(REMOVE_A, REMOVE_B, CRASHES=1)),
    _broken("late answer", "a requester believes whom it does not ask any more", ANSWERED,
            "ANY_ANSWER", _two(REMOVE_A, REMOVE_B, DUPS=1), near=False),
    _broken("silence", "nobody asks; only L repeats", "lock[i]==0",
            "NO_ASKING", _two(REPLACE_A, LOSSES=1)),
    _broken("ring", "UPDATE-SYN waits where a box is on the path", "lock[i]==0",
            "SYN_WAITS", _two(REMOVE_A, "B NONE A", PATIENT=1)),
]  # fmt: skip
