"""The ways to neighbours, and what waits where there is none any more."""

from __future__ import annotations

import pytest

from m2m.agent import next_hops
from m2m.agent.next_hops import NextHops
from m2m.agent.watch import Link
from m2m.protocol.flow import parse_address
from m2m.protocol.translation import NextHop
from tests.support.agents import Routes

NEIGHBOUR = parse_address("10.0.0.2")
OLD, NEW = 2, 7  # interfaces


class Stage:
    """A host with two interfaces; ``given_up`` has next hops that nothing waits for any more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.routes = Routes(parse_address("10.0.0.1"))
        self.hops = NextHops(self.routes)  # type: ignore[arg-type]  # has what is used of it
        self.given_up: list[NextHop] = []
        monkeypatch.setattr(next_hops, "forget_neighbour", self.given_up.append)
        for ifindex in (OLD, NEW):
            self.link(ifindex, up=True)
        self.old = self.hops.to(NEIGHBOUR)

    def link(self, ifindex: int, *, up: bool) -> None:
        """News of an interface."""
        self.routes.links[ifindex] = Link(ifindex, f"eth{ifindex}", 1500, up, ethernet=True)
        self.hops.links_changed()

    def move(self) -> NextHop:
        """The kernel tells another way, and entries are redirected to it."""
        self.routes.ifindex = NEW if self.routes.ifindex == OLD else OLD
        hop = self.hops.to(NEIGHBOUR)
        self.hops.give_up_former()
        return hop


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def test_what_waits_at_an_interface_that_is_down_is_given_up(stage: Stage) -> None:
    stage.link(OLD, up=False)
    assert stage.given_up == []  # it is in use, and may come back
    stage.move()
    assert stage.given_up == [stage.old]
    stage.hops.give_up_former()  # more entries have been redirected
    assert stage.given_up == [stage.old, stage.old]


def test_the_news_that_it_is_down_comes_later(stage: Stage) -> None:
    """Else TCP would stand still until the kernel has asked for the neighbour often enough."""
    stage.move()
    assert stage.given_up == []
    stage.link(OLD, up=False)
    assert stage.given_up == [stage.old]
    stage.link(NEW, up=True)  # other news
    assert stage.given_up == [stage.old]


def test_so_it_is_when_routes_are_followed(stage: Stage) -> None:
    stage.routes.ifindex = NEW
    stage.hops.have_moved(stage.hops.moved(), ())
    stage.link(OLD, up=False)
    assert stage.given_up == [stage.old]


def test_what_is_in_use_again_is_not_given_up(stage: Stage) -> None:
    stage.move()
    assert stage.move() == stage.old
    stage.link(OLD, up=False)
    assert stage.given_up == []


def test_what_has_come_back_is_forgotten(stage: Stage) -> None:
    stage.link(OLD, up=False)
    stage.move()
    stage.link(OLD, up=True)
    stage.hops.give_up_former()
    stage.link(OLD, up=False)
    stage.hops.give_up_former()
    assert stage.given_up == [stage.old]
