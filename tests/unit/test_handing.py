"""Sessions that another host takes over: in the end they are at one host, or in the deed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2m.protocol.commands import NotHanded, Taken
from m2m.protocol.deed import Deed
from m2m.protocol.events import Ended, HandOver, LeadHere, Route, TakeOver
from m2m.protocol.handing import GOOD
from m2m.protocol.rebind import End
from m2m.protocol.session import State
from tests.support.simulation import DOUBLED, LATE, LATE_DOUBLE, LOST, PROMPT, Host, World

SESSIONS = 3


class Stage:
    """A chain, one of whose ends is to be at :attr:`heir`: a host that is not on it."""

    def __init__(self, middleboxes: int, end: End, seed: int = 1) -> None:
        self.world = World(middleboxes, random.Random(seed), others=2)
        self.end = end
        self.giver = self.world.client if end is End.CLIENT else self.world.server
        self.heir, self.third = self.world.others
        for number in range(SESSIONS):
            self.world.open(number)
        self.world.run(1.0)
        self.ids = tuple(self.giver.node.sessions)
        assert len(self.ids) == SESSIONS

    @property
    def deeds(self) -> tuple[Deed, ...]:
        return tuple(self.world.deeds[-SESSIONS:])

    def hand_over(self) -> None:
        self.giver.feed(HandOver(1, self.ids))

    def take_over(self, host: Host, deeds: tuple[Deed, ...] | None = None) -> dict[int, str]:
        """What *host* takes; why it refuses the others."""
        route = Route(host.home, 1500)
        deeds = self.deeds if deeds is None else deeds
        host.told.clear()
        host.feed(TakeOver(1, tuple((deed, route) for deed in deeds)))
        (taken,) = [one for one in host.told if isinstance(one, Taken)] or [Taken(1, ())]
        return dict(taken.refused)

    def lead(self, host: Host) -> None:
        if host.up:
            host.feed(LeadHere(host.node.mobility.handing.waiting()))

    def has(self, host: Host) -> int:
        return sum(session in host.node.sessions for session in self.ids)

    def end_is(self, host: Host) -> None:
        """The chain ends at *host* from now on."""
        world = self.world
        if self.end is End.CLIENT:
            world.client = world.hosts[0] = host
        else:
            world.server = world.hosts[-1] = host

    def check_ways(self) -> None:
        """Packets of every session go through all hosts, both ways, and arrive unchanged."""
        self.world.check_agreement(others=True)
        for number in range(SESSIONS):
            flow = self.world.flow(number)
            assert self.world.trace(flow) == (self.world.hosts, flow)
            assert self.world.trace(flow.reverse()) == (self.world.hosts[::-1], flow.reverse())

    def check_nothing_at(self, *hosts: Host) -> None:
        for host in hosts:
            assert not host.node.sessions
            assert not host.kernel.entries
            assert not host.kernel.notes
            assert not host.ports.in_use

    def check_forgotten(self, *hosts: Host) -> None:
        """*hosts* have nothing of it, once a deed is worth nothing any more."""
        self.world.run(GOOD + 30.0)
        self.check_nothing_at(*hosts)


@pytest.mark.parametrize("middleboxes", [0, 1, 2])
@pytest.mark.parametrize("end", End)
def test_sessions_follow_a_process_to_another_host(middleboxes: int, end: End) -> None:
    stage = Stage(middleboxes, end)
    stage.hand_over()
    assert stage.has(stage.giver) == 0 and not stage.giver.kernel.entries
    assert stage.take_over(stage.heir) == {}
    assert stage.has(stage.heir) == SESSIONS
    stage.lead(stage.heir)
    stage.world.run(0.1)
    stage.end_is(stage.heir)
    stage.check_ways()
    assert stage.heir.node.mobility.counts["taken over"] == SESSIONS
    stage.check_forgotten(stage.giver)
    stage.check_ways()


@pytest.mark.parametrize("end", End)
def test_they_are_ended_by_whoever_has_them(end: End) -> None:
    stage = Stage(1, end)
    stage.hand_over()
    stage.take_over(stage.heir)
    stage.lead(stage.heir)
    stage.world.run(5.0)
    for session in stage.ids:
        stage.heir.feed(Ended(session, "over"))
    stage.world.run(20.0)
    stage.end_is(stage.heir)
    stage.world.check_empty()
    stage.check_forgotten(stage.giver)


@pytest.mark.parametrize("end", End)
def test_and_once_more_to_a_third_host_and_back(end: End) -> None:
    stage = Stage(2, end)
    for host in (stage.heir, stage.third, stage.giver, stage.heir):
        stage.hand_over()
        assert stage.take_over(host) == {}
        stage.lead(host)
        stage.world.run(3.0)
        stage.end_is(host)
        stage.check_ways()
        stage.giver = host


@pytest.mark.parametrize("end", End)
def test_who_has_handed_over_says_nothing_whatever_it_is_asked(end: End) -> None:
    """Neither an ACK along the path nor the end of a peer's patience ends the session."""
    stage = Stage(1, end)
    stage.hand_over()
    stage.world.run(GOOD - 50.0)  # a client asks for its path after a minute, and again
    stage.take_over(stage.heir)
    stage.lead(stage.heir)
    stage.world.run(0.1)
    stage.end_is(stage.heir)
    stage.check_ways()


def test_a_deed_that_nobody_uses_is_worth_nothing_in_the_end() -> None:
    stage = Stage(1, End.SERVER)
    stage.hand_over()
    stage.world.run(7200.0)
    stage.world.check_empty()
    stage.take_over(stage.heir)
    stage.lead(stage.heir)
    stage.world.run(60.0)
    stage.check_nothing_at(stage.heir)


@pytest.mark.parametrize("end", End)
def test_taken_over_and_never_led(end: End) -> None:
    stage = Stage(1, end)
    stage.hand_over()
    stage.take_over(stage.heir)
    stage.check_forgotten(stage.heir)


@pytest.mark.parametrize("end", End)
def test_they_can_come_back_instead(end: End) -> None:
    stage = Stage(1, end)
    stage.hand_over()
    assert stage.take_over(stage.giver) == {}
    stage.lead(stage.giver)
    stage.world.run(0.1)
    stage.check_ways()
    stage.take_over(stage.heir)  # the other host has a copy of the deeds
    stage.lead(stage.heir)
    stage.world.run(1.0)
    assert stage.heir.node.mobility.counts["deed void"] == SESSIONS
    stage.check_nothing_at(stage.heir)
    stage.check_ways()


@pytest.mark.parametrize("end", End)
def test_a_used_deed_changes_nothing(end: End) -> None:
    stage = Stage(1, end)
    stage.hand_over()
    stage.take_over(stage.heir)
    stage.lead(stage.heir)
    stage.world.run(0.1)
    stage.end_is(stage.heir)
    refused = stage.take_over(stage.heir)
    assert set(refused) == set(stage.ids) and "already" in refused[stage.ids[0]]
    for host in (stage.third, stage.giver):
        stage.take_over(host)
        stage.lead(host)
    stage.world.run(1.0)
    stage.check_ways()
    stage.check_nothing_at(stage.third)
    hop = stage.world.hosts[1]
    assert hop.node.mobility.counts["rebind unproven"] == 2 * SESSIONS
    for host in (stage.third, stage.giver):
        assert host.node.mobility.counts["deed void"] == SESSIONS
    assert stage.heir.node.mobility.counts["take-over refused"] == SESSIONS
    stage.check_forgotten(stage.giver)


@pytest.mark.parametrize("end", End)
@pytest.mark.parametrize("restarted", [False, True])
def test_of_two_deeds_the_later_one_is_good(end: End, restarted: bool) -> None:
    """Also where the earlier one has been used: else its host would have the session, too."""
    stage = Stage(1, end)
    stage.hand_over()
    earlier = stage.deeds
    stage.take_over(stage.giver)
    stage.lead(stage.giver)
    stage.world.run(0.1)
    stage.hand_over()
    if restarted:
        stage.giver.kill_agent()
        stage.giver.start()
    refused = stage.take_over(stage.giver, earlier)
    assert set(refused) == set(stage.ids) and "once more" in refused[stage.ids[0]]
    stage.take_over(stage.heir)
    stage.lead(stage.heir)
    stage.world.run(1.0)
    stage.end_is(stage.heir)
    stage.check_ways()
    stage.check_forgotten(stage.giver)


@pytest.mark.parametrize("end", End)
def test_two_hosts_that_have_the_deeds_at_once(end: End) -> None:
    stage = Stage(1, end)
    stage.hand_over()
    for host in (stage.heir, stage.third):
        stage.take_over(host)
        stage.lead(host)
    stage.world.run(1.0)
    assert (stage.has(stage.heir), stage.has(stage.third)) == (SESSIONS, 0)
    stage.end_is(stage.heir)
    stage.check_ways()
    stage.check_nothing_at(stage.third)


@pytest.mark.parametrize("what", ["key", "number", "leg", "session"])
def test_a_changed_deed_is_worth_nothing(what: str) -> None:
    """The file is sealed; this is about a host of the domain that makes one up."""
    stage = Stage(1, End.SERVER)
    stage.hand_over()
    deed = stage.deeds[0]
    wrong = {
        "key": deed._replace(key=bytes(32)),
        "number": deed._replace(moves=(0, 6), key=bytes(32)),
        "leg": deed._replace(leg=deed.leg._replace(sport=deed.leg.sport + 1)),
        "session": deed._replace(session=deed.session ^ 1),
    }[what]
    stage.take_over(stage.third, (wrong,))
    stage.lead(stage.third)
    stage.world.run(0.5)
    stage.take_over(stage.heir)
    stage.lead(stage.heir)
    stage.world.run(1.0)
    stage.end_is(stage.heir)
    if what == "leg":  # neither does the hop know it, nor is it gone: it may only be late
        assert stage.has(stage.third) == 0
    stage.check_ways()
    stage.world.run(30.0)
    stage.check_nothing_at(stage.third)


def test_what_cannot_be_handed_over_stays() -> None:
    stage = Stage(1, End.SERVER)
    middle = stage.world.hosts[1]
    for host, sessions, why in (
        (middle, stage.ids, "in the middle"),
        (stage.giver, (*stage.ids, 77), "not at this host"),
    ):
        host.told.clear()
        host.feed(HandOver(1, sessions))
        (answer,) = [one for one in host.told if isinstance(one, NotHanded)]
        assert why in answer.why
        assert host.node.mobility.counts["hand-over refused"] == 1
    assert not stage.world.deeds
    stage.check_ways()


def test_deeds_that_cannot_be_written() -> None:
    stage = Stage(1, End.SERVER)
    stage.giver.failing_writes = 1
    stage.hand_over()
    stage.check_ways()
    stage.giver.kill_agent()
    stage.giver.start()
    stage.world.run(200.0)
    stage.check_ways()


@pytest.mark.parametrize("end", End)
def test_a_datapath_that_cannot_take_them(end: End) -> None:
    stage = Stage(1, end)
    stage.hand_over()
    stage.heir.failing_redirects = SESSIONS + 1  # all together, and each by itself
    assert set(stage.take_over(stage.heir)) == set(stage.ids)
    stage.check_nothing_at(stage.heir)
    assert stage.take_over(stage.heir) == {}


def test_another_session_of_the_same_flow_is_not_disturbed() -> None:
    stage = Stage(1, End.CLIENT)
    stage.hand_over()
    number = stage.deeds[0]._replace(session=5)
    assert set(stage.take_over(stage.heir, (stage.deeds[1], number, stage.deeds[0]))) == {
        stage.deeds[0].session
    }


@pytest.mark.parametrize("end", End)
@pytest.mark.parametrize("taken", [False, True])
def test_the_agent_is_killed_when_the_deeds_are_written(end: End, taken: bool) -> None:
    """Its process has not been told: it goes on where it was, unless the deeds were used."""
    stage = Stage(1, end)
    stage.giver.killed_after_writing = True
    stage.hand_over()
    if taken:
        stage.take_over(stage.heir)
        stage.lead(stage.heir)
        stage.world.run(0.1)
    stage.giver.start()
    stage.world.run(200.0)
    if taken:
        stage.end_is(stage.heir)
        stage.check_nothing_at(stage.giver)
    else:
        stage.take_over(stage.heir)
        stage.lead(stage.heir)
        stage.world.run(1.0)
        stage.check_nothing_at(stage.heir)
    stage.check_ways()


@pytest.mark.parametrize("end", End)
def test_the_giver_is_restarted_before_they_are_led_away(end: End) -> None:
    stage = Stage(1, end)
    stage.hand_over()
    stage.giver.kill_agent()
    stage.giver.start()
    stage.world.run(100.0)  # neighbours ask meanwhile
    stage.take_over(stage.heir)
    stage.lead(stage.heir)
    stage.world.run(1.0)
    stage.end_is(stage.heir)
    stage.check_ways()
    stage.check_forgotten(stage.giver)


@pytest.mark.parametrize("end", End)
@pytest.mark.parametrize("after", [None, 0.0, 0.0005, 0.0015, 0.0025, 0.5])
def test_the_heir_is_restarted(end: End, after: float | None) -> None:
    """Before they are led there (None), or as many seconds after."""
    stage = Stage(1, end)
    stage.hand_over()
    stage.take_over(stage.heir)
    if after is not None:
        stage.lead(stage.heir)
        stage.world.run(after)
    stage.heir.kill_agent()
    stage.heir.start()
    stage.world.run(5.0)
    if after is None or not stage.has(stage.heir):  # they are in the deed still
        assert stage.has(stage.heir) == 0
        assert stage.take_over(stage.heir) == {}
        stage.lead(stage.heir)
    stage.world.run(200.0)
    stage.end_is(stage.heir)
    stage.check_ways()


FATES = st.sampled_from([PROMPT, PROMPT, PROMPT, LOST, DOUBLED, LATE, LATE_DOUBLE])
PAUSES = st.sampled_from([0.0, 0.0005, 0.0015, 0.0025, 0.03, 0.6, 2.0])


@settings(max_examples=150, deadline=None, print_blob=False)
@given(data=st.data(), middleboxes=st.integers(0, 2), end=st.sampled_from(End),
       seed=st.integers(0, 1000))  # fmt: skip
def test_whatever_happens_each_session_is_at_one_host(
    data: st.DataObject, middleboxes: int, end: End, seed: int
) -> None:
    stage = Stage(middleboxes, end, seed)
    world = stage.world
    bad = True
    world.fate = lambda: data.draw(FATES) if bad else PROMPT
    hosts = [stage.giver, stage.heir, stage.third, world.hosts[1 if end is End.CLIENT else -2]]

    def trouble() -> None:
        for host in hosts:
            host.failing_redirects = data.draw(st.sampled_from([0, 0, 0, 1, SESSIONS + 1]))
        world.run(data.draw(PAUSES))
        if data.draw(st.integers(0, 2)) == 0:
            host = data.draw(st.sampled_from(hosts))
            host.kill_agent()
            world.run(data.draw(st.sampled_from([0.0, 0.05, 0.5])))
            host.start()

    stage.giver.killed_after_writing = data.draw(st.integers(0, 3)) == 0
    stage.hand_over()
    if not stage.giver.up:
        world.run(data.draw(PAUSES))
        stage.giver.start()
    trouble()
    for _ in range(data.draw(st.integers(1, 4))):
        host = data.draw(st.sampled_from(hosts[:3]))
        if stage.deeds:
            stage.take_over(host)
            trouble()
            stage.lead(host)
            trouble()
    for host in hosts:
        host.failing_redirects = 0
    bad = False
    world.run(5.0)  # those that are led somewhere, or asked for after a restart
    for host in hosts[:3]:
        stage.lead(host)
    world.run(5.0)
    if stage.deeds:  # what is nowhere is in the deeds
        stage.take_over(stage.heir)
        stage.lead(stage.heir)
    world.run(200.0)
    for number, session in enumerate(stage.ids):
        places = [host for host in hosts[:3] if session in host.node.sessions]
        assert len(places) == 1, f"session {number} is at {places}"
        stage.end_is(places[0])
        flow = next(
            one.supersession for one in places[0].node.sessions.values() if one.id == session
        )
        assert world.trace(flow) == (world.hosts, flow)
        assert world.trace(flow.reverse()) == (world.hosts[::-1], flow.reverse())
        states = {host.node.sessions[session].state for host in world.hosts}
        assert states == {State.ESTABLISHED}
    for host in hosts:
        assert not host.node.mobility.unconfirmed()
