"""A test of the protocol that reads as a trace of one host."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import msgspec

from m2m.identity import ANONYMOUS, Identity
from m2m.protocol.commands import Command, Keep, Send
from m2m.protocol.events import Event
from m2m.protocol.flow import Address
from m2m.protocol.node import Node, Settings
from m2m.protocol.ports import PortAllocator
from m2m.protocol.session import State

ID = 0x5E55
OTHER = 0x07E4


class Scripted(random.Random):
    """Chooses what the tests expect."""

    def __init__(self, ids: tuple[int, ...]) -> None:
        super().__init__(0)
        self._ids = list(ids)

    def getrandbits(self, k: int, /) -> int:
        return self._ids.pop(0) if k == 64 else super().getrandbits(k)

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


class Play:
    """A node and what it still has to do: ``>>`` what it is told, ``<<`` what it does about it."""

    def __init__(self, *, last_port: int = 61001, ids: tuple[int, ...] = (ID, OTHER)) -> None:
        rng = Scripted(ids)
        self.identity = Identity(b"a device key of a test, 32 bytes")
        self.devices: dict[Address, bytes] = {}
        self.ports = PortAllocator(61000, last_port, rng)
        self.node = Node(Settings(), self.ports, rng, self.identity, self.devices)
        self.todo: list[Command] = []

    def __rshift__(self, event: Event) -> Play:
        self.ends()
        self.todo = list(_nameless(self.node.handle(event)))
        return self

    def __lshift__(self, command: Command) -> Play:
        assert self.todo, f"nothing is done any more, {command} was expected"
        assert self.todo.pop(0) == command
        return self

    def ends(self) -> None:
        assert self.todo == [], "more is done than was expected"

    def state(self, session: int = ID) -> State | None:
        found = self.node.sessions.get(session)
        return None if found is None else found.state


def _nameless(commands: Iterable[Command]) -> Iterator[Command]:
    """Without whose device is at which end of a session: those who test moves look at nodes."""
    for command in commands:
        if isinstance(command, Send):
            known = {"client", "server"} & {*command.message.__struct_fields__}
            devices = dict.fromkeys(known, ANONYMOUS)
            yield command._replace(message=msgspec.structs.replace(command.message, **devices))
        elif not isinstance(command, Keep):
            yield command
