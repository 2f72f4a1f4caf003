"""Endpoints of a lab that move: each move is done by rtnetlink at once, and its outage is known.

:func:`endpoint` gives the UE (or the server) of :mod:`m2m.lab.handover` as an :class:`Endpoint`.
It is at one place to begin with; each of its moves is a coroutine that returns a :class:`Moved`.
Times are CLOCK_MONOTONIC, which every process of the lab shares.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Interface
from time import monotonic
from typing import TypeVar

import msgspec
import trio

from m2m.lab.handover import Place, places
from m2m.lab.lab import Lab
from m2m.lab.netns import LabError
from m2m.lab.wiring import Wiring

_Result = TypeVar("_Result")

_FIRST = 10  # priority; an agent's is 1
_PREFERRED = 50  # metric of a default route that is to be used before the one there was


class Moved(msgspec.Struct, frozen=True):
    """One move. In between the two times the link itself carried nothing.

    Where both links were up all the time, the two are the same moment.
    """

    what: str
    lost: float  # s, just before the old link or address was taken
    usable: float  # s, when address and route were there and the link carried packets

    telling: float = 0.0  # s in between that a listener took, and the next link waited for

    @property
    def outage(self) -> float:
        """Seconds without a link, but for the listener's."""
        return self.usable - self.lost - self.telling


Listener = Callable[[str, Place], None]
"""Called with a place and what happens to it: ``"leaving"`` just before it is lost, as none but a
device that plans its move can know; ``"lost"`` and ``"usable"`` as any network manager hears them.
"""


class Endpoint:
    """A host that moves between its places. Made by :func:`endpoint`."""

    def __init__(self, lab: Lab, host: str, listener: Listener | None = None) -> None:
        self.host = host
        self.places = places(lab.topology, host)
        self._wiring = Wiring(lab.namespace(host))
        self._far = {router: Wiring(lab.namespace(router)) for router in self.places}
        self._listener = listener
        self._at = next(iter(self.places.values()))

    def close(self) -> None:
        """Give the sockets back; the host stays where it is."""
        for wiring in (self._wiring, *self._far.values()):
            wiring.close()

    @property
    def at(self) -> Place:
        """The place by which it sends."""
        return self._at

    @property
    def elsewhere(self) -> Place:
        """The place where it is not."""
        return next(one for one in self.places.values() if one.router != self._at.router)

    async def settle(self) -> None:
        """Be at the first place alone, wherever it was."""
        await _undisturbed(self._settle)

    async def hand_over(self, to: Place | None = None) -> Moved:
        """Break before make: the interface goes down, then the other one comes up."""
        return await _undisturbed(self._hand_over, to or self.elsewhere)

    async def blink(self) -> Moved:
        """Lose the link and get it back with the same address: an outage that is no move."""
        return await _undisturbed(self._hand_over, self._at)

    async def readdress(self, address: IPv4Interface) -> Moved:
        """Another address of the same subnet on the same interface."""
        return await _undisturbed(self._readdress, address)

    async def prefer(self, to: Place | None = None) -> Moved:
        """Make before break: the other link comes up beside this one, and is preferred."""
        return await _undisturbed(self._prefer, to or self.elsewhere)

    async def leave(self, place: Place) -> None:
        """Give up a link that is not preferred any more."""
        if place.router == self._at.router:
            raise LabError(f"{self.host} sends by {place.router}; move it first")
        await _undisturbed(self._detach, place)

    async def outage(self, seconds: float, to: Place | None = None) -> Moved:
        """No address at all for *seconds*, then a place: the other one, if none is given."""
        place = to or self.elsewhere
        lost, _ = await _undisturbed(self._lose)  # beside so long a time, nothing
        await trio.sleep(seconds)
        usable = await _undisturbed(self._gain, place)
        return Moved(f"{seconds:g} s without a link, then {place.router}", lost, usable)

    async def take(self, address: IPv4Interface, router: str) -> None:
        """Have *address* at *router*, which another host has had there a moment ago."""
        await _undisturbed(self._take, address, router)

    # -- in a thread: some of it waits for the kernel's lock ---------------------------------

    def _settle(self) -> None:
        first, *others = self.places.values()
        for place in others:
            try:
                self._wiring.remove(place.router, place.address)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:  # it has left there already
                    raise
            self._wiring.down(place.router)
        self._attach(first)
        self._wiring.route("default", first.gateway, first.router)
        self._at = first

    def _hand_over(self, to: Place) -> Moved:
        what = f"{self._at.router} to {to.router}" if to != self._at else f"{to.router} blinks"
        lost, telling = self._lose()
        return Moved(what, lost, self._gain(to), telling)

    def _lose(self) -> tuple[float, float]:
        """When the link was lost, and how long (s) the listener took to hear of it."""
        self._tell("leaving", self._at)
        lost = monotonic()
        self._detach(self._at)
        before = monotonic()
        self._tell("lost", self._at)
        return lost, monotonic() - before

    def _gain(self, place: Place) -> float:
        self._attach(place)
        self._wiring.route("default", place.gateway, place.router)
        self._at = place
        usable = monotonic()
        self._tell("usable", place)
        return usable

    def _readdress(self, address: IPv4Interface) -> Moved:
        old = self._at
        new = old._replace(address=address)
        self._tell("leaving", old)
        lost = monotonic()
        self._wiring.remove(old.router, old.address)
        before = monotonic()
        self._tell("lost", old)
        telling = monotonic() - before
        self._address(new)
        self._wiring.route("default", new.gateway, new.router)
        self._at = self.places[new.router] = new
        moved = Moved(f"{old.address.ip} to {address.ip}", lost, monotonic(), telling)
        self._tell("usable", new)
        return moved

    def _prefer(self, to: Place) -> Moved:
        old = self._at
        self._attach(to)
        self._tell("usable", to)
        self._wiring.route("default", to.gateway, to.router, metric=_PREFERRED)
        moment = monotonic()
        # From here on it is the ordinary route, so that the next move finds what it expects.
        self._wiring.route("default", to.gateway, to.router)
        self._wiring.unroute("default", to.gateway, to.router, metric=_PREFERRED)
        self._at = to
        return Moved(f"{to.router} preferred to {old.router}", moment, moment)

    def _attach(self, place: Place) -> None:
        self._wiring.up(place.router)
        self._wiring.wait_until_it_carries(place.router)
        self._far[place.router].wait_until_it_carries(self.host)
        self._address(place)

    def _address(self, place: Place) -> None:
        """Have the place's address. Both ends know each other, as attaching to a cell tells them.

        Left to ARP, a question asked a moment before the answer is there is repeated after a
        second, which is no property of what is measured here.
        """
        far = self._far[place.router]
        gateway = IPv4Address(place.gateway)
        self._wiring.neighbour(place.router, gateway, far.hardware(self.host))
        self._wiring.add(place.router, place.address)
        far.neighbour(self.host, place.address.ip, self._wiring.hardware(place.router))

    def _detach(self, place: Place) -> None:
        self._wiring.remove(place.router, place.address)
        self._wiring.down(place.router)

    def _take(self, address: IPv4Interface, router: str) -> None:
        self._wiring.add(router, address)
        # A cell leads each UE's address to it, as a base station does by its bearers.
        self._far[router].route(f"{address.ip}/32", None, self.host)

    def _tell(self, event: str, place: Place) -> None:
        if self._listener is not None:
            self._listener(event, place)


async def _undisturbed(step: Callable[..., _Result], *args: object) -> _Result:
    """Take a step in a thread that goes before all others, as a radio's own processor does.

    Agents do as well: one that hears of the step's first part would else have its turn before
    the last one, and an outage be longer by what M2M does meanwhile.
    """
    return await trio.to_thread.run_sync(_first_of_all, step, *args)


def _first_of_all(step: Callable[..., _Result], *args: object) -> _Result:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_FIRST))
    try:
        return step(*args)
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@asynccontextmanager
async def endpoint(
    lab: Lab, host: str, listener: Listener | None = None
) -> AsyncIterator[Endpoint]:
    """*host* of a lab with two places, at the first of them.

    To be used before the agents are started, which would see the link go that was never used.
    """
    found = await trio.to_thread.run_sync(Endpoint, lab, host, listener)
    try:
        await found.settle()
        yield found
    finally:
        found.close()
