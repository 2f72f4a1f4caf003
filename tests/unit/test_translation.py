"""Entries from a session and back, with and without a second leg."""

from __future__ import annotations

import pytest

from m2m.protocol.translation import (
    Hook,
    Position,
    SessionView,
    Toward,
    entries_for,
    receiver,
    redirected_entry,
    sender,
    spare_entries,
    view_and_spare,
    view_of,
)
from tests.support.changes import (
    AT_CLIENT,
    AT_FW,
    AT_IDS,
    CLIENT_AFTER,
    IDS_AFTER,
    NEW_LEFT,
    NEW_RIGHT,
    OLD_LEFT,
    OLD_RIGHT,
    ONWARD,
    SUPER,
)

FW_AFTER = AT_FW._replace(right=ONWARD)
BOTH = [(AT_CLIENT, CLIENT_AFTER, NEW_LEFT), (AT_IDS, IDS_AFTER, NEW_RIGHT),
        (AT_CLIENT._replace(local=ONWARD), CLIENT_AFTER._replace(local=ONWARD), NEW_LEFT),
        (AT_FW, FW_AFTER, ONWARD), (AT_FW, AT_FW._replace(left=ONWARD), ONWARD)]  # fmt: skip


GOES_ON = AT_CLIENT._replace(local=SUPER._replace(src=OLD_RIGHT.dst, sport=33000))
AT_PROXY = AT_CLIENT._replace(position=Position.PROXY, left=OLD_LEFT, right=None)


@pytest.mark.parametrize("view", [AT_CLIENT, AT_FW, AT_IDS, AT_PROXY, GOES_ON])
def test_there_and_back(view: SessionView) -> None:
    assert view_of(entries_for(view)) == view
    assert view_and_spare(reversed(entries_for(view))) == (view, None)


@pytest.mark.parametrize(("before", "after", "leg"), BOTH)
def test_with_a_second_leg(before: SessionView, after: SessionView, leg: object) -> None:
    """Which of the two legs is in can be told before, and after the redirect."""
    kernel = {entry.key: entry for entry in entries_for(before)}
    spare = spare_entries(before, after)
    assert spare == tuple(each for each in entries_for(after) if each.key not in kernel)
    assert len(spare) == 1
    assert spare_entries(before, before) == ()
    kernel |= {entry.key: entry for entry in spare}
    assert view_and_spare(kernel.values()) == (before, leg)
    with pytest.raises(ValueError, match="second leg"):
        view_of(kernel.values())
    turned = redirected_entry(before, after)
    assert turned in entries_for(after)
    assert kernel[turned.key].rewrite != turned.rewrite
    kernel[turned.key] = turned
    other = before.right if before.right != after.right else before.left
    assert view_and_spare(kernel.values()) == (after, other)
    for entry in spare_entries(after, before):
        del kernel[entry.key]
    assert view_of(kernel.values()) == after


def test_what_does_not_belong_together() -> None:
    for without in range(4):
        entries = list(entries_for(AT_FW))
        del entries[without]
        with pytest.raises(ValueError, match="session"):
            view_of(entries)
    three = {
        entry.key: entry
        for right in (OLD_RIGHT, ONWARD, NEW_RIGHT)
        for entry in entries_for(AT_FW._replace(right=right))
    }
    with pytest.raises(ValueError, match="more than one spare"):
        view_and_spare(three.values())
    with pytest.raises(ValueError, match="no entries"):
        view_of([])


def test_which_entry_receives_and_which_sends() -> None:
    assert receiver(AT_FW, Toward.RIGHT) == (Hook.IN, OLD_LEFT)
    assert receiver(AT_FW, Toward.LEFT) == (Hook.IN, OLD_RIGHT.reverse())
    assert sender(AT_FW, Toward.RIGHT) == (Hook.OUT, SUPER)
    assert sender(AT_FW, Toward.LEFT) == (Hook.OUT, SUPER.reverse())
    assert sender(AT_IDS, Toward.RIGHT) == receiver(AT_IDS, Toward.RIGHT) == (Hook.IN, OLD_RIGHT)
    assert sender(AT_CLIENT, Toward.RIGHT) == (Hook.OUT, SUPER)
    assert sender(GOES_ON, Toward.RIGHT) == (Hook.OUT, GOES_ON.here) != (Hook.OUT, SUPER)
