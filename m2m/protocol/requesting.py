"""A host that wants a change it does not lead: it asks L, until it hears what came of it.

A host that asks about itself ("replace me") does not insist on the neighbours it had when it first
asked: when others have changed meanwhile, it asks the left neighbour it has then.
"""

from __future__ import annotations

import random

from m2m.protocol.change import Commands, UpdateSettings
from m2m.protocol.commands import (
    CancelTimer,
    ChangeDone,
    ChangeRefused,
    Send,
    SetTimer,
)
from m2m.protocol.events import RequestWanted, Timer
from m2m.protocol.flow import Address
from m2m.protocol.reasons import Why
from m2m.protocol.register import Register
from m2m.protocol.update import Approve, Done, Reject, Request, Step
from m2m.protocol.wire import Cause

__all__ = ["Requesting"]


class _Asking:
    """One request under way."""

    __slots__ = ("approved", "delay", "message", "peer", "waited", "wanted")

    def __init__(self, wanted: RequestWanted) -> None:
        self.wanted = wanted
        self.peer: Address = b""
        self.message: Request | None = None
        self.approved = False
        self.delay = 0.0
        self.waited = 0.0


class Requesting:
    """The requests of this host, one per session."""

    def __init__(self, settings: UpdateSettings, register: Register, rng: random.Random) -> None:
        self._settings = settings
        self._register = register
        self._rng = rng
        self._asking: dict[int, _Asking] = {}

    def __len__(self) -> int:
        return len(self._asking)

    def start(self, out: Commands, wanted: RequestWanted) -> None:
        """Ask."""
        if wanted.session in self._asking:
            text = "another request about this session is under way: wait for its end"
            _refuse(out, wanted, Why(Cause.BUSY, text))
            return
        asking = _Asking(wanted)
        why = self._address(asking, wanted.change)
        if why is not None:
            _refuse(out, wanted, why)
            return
        self._asking[wanted.session] = asking
        self._send(out, asking)

    def _address(self, asking: _Asking, number: int) -> Why | None:
        """Find out whom to ask for what; or why that cannot be."""
        wanted = asking.wanted
        left, steps, right = wanted.left, wanted.steps, wanted.right
        if left is None:
            session = self._register.get(wanted.session)
            if session is None or session.left is None or session.right is None:
                text = "this host is no middlebox of the session: there is nothing to replace"
                return Why(Cause.MODE, text)
            heir = wanted.hops[0].address if wanted.hops else None
            left, right = session.left.src, session.right.dst
            steps = (Step(session.left.dst, heir),)
        assert right is not None
        asking.peer = left
        asking.message = Request(
            wanted.session, number, wanted.mode, steps, right, wanted.hops, wanted.added
        )
        return None

    def _send(self, out: Commands, asking: _Asking) -> None:
        assert asking.message is not None
        settings = self._settings
        out.append(Send(asking.peer, asking.message))
        first = settings.request_retry if asking.approved else settings.retry
        asking.delay = min(max(first, asking.waited), settings.request_retry)
        out.append(SetTimer(asking.wanted.session, asking.delay, Timer.REQUEST))

    def answered(self, out: Commands, message: Approve | Done | Reject) -> None:
        """L has said something."""
        asking = self._asking.get(message.session)
        if asking is None or asking.message is None or message.change != asking.message.change:
            return
        wanted = asking.wanted
        match message:
            case Approve():
                asking.approved = True
            case Done(held=held, gone=gone):
                self._close(out, wanted)
                out.append(ChangeDone(wanted.session, wanted.change, held, gone))
            case Reject(cause=cause, text=text, blame=blame):
                again = cause is Cause.MOVED and wanted.left is None
                if again and self._address(asking, self._rng.getrandbits(64) or 1) is None:
                    asking.approved = False  # asked anew when the timer comes: not at once
                    return
                self._close(out, wanted)
                _refuse(out, wanted, Why(cause, text, blame))

    def tick(self, out: Commands, session: int) -> None:
        """Ask again, or give up."""
        asking = self._asking.get(session)
        if asking is None:
            return
        asking.waited += asking.delay
        if asking.waited < self._settings.request_limit:
            if asking.wanted.left is None and not asking.approved:
                self._address_again(asking)
            self._send(out, asking)
            return
        self._close(out, asking.wanted)
        text = "the left neighbour does not answer"
        _refuse(out, asking.wanted, Why(Cause.TIMEOUT, text, asking.peer))

    def _address_again(self, asking: _Asking) -> None:
        """The neighbours may be others by now, and the one that was asked may be gone."""
        before = asking.message
        assert before is not None
        self._address(asking, before.change)
        if asking.message != before:
            self._address(asking, self._rng.getrandbits(64) or 1)

    def _close(self, out: Commands, wanted: RequestWanted) -> None:
        del self._asking[wanted.session]
        out.append(CancelTimer(wanted.session, Timer.REQUEST))


def _refuse(out: Commands, wanted: RequestWanted, why: Why) -> None:
    cause = Cause.ABANDONED if why.cause is None else why.cause
    out.append(ChangeRefused(wanted.session, wanted.change, cause, why.text, why.blame))
