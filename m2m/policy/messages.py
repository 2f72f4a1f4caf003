"""What travels between agents, the policy server and ``m2m-policy load``.

Each frame of the :mod:`~m2m.policy.channel` carries one of these, as a msgpack map with its type
under ``t``. Unknown fields are ignored, so that a newer side may say more; an unknown type closes
the channel.

An agent says :class:`Hello` first and gets a :class:`Push` at once and on every change, each
answered by a :class:`Confirm`; it reports its :class:`Load` now and then. Anybody else who holds
the domain key may send :class:`LoadFile` or :class:`ListAgents`, one request after the other.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeAlias

import msgspec

from m2m.policy.rules import PolicySet
from m2m.protocol.flow import Address

__all__ = [
    "Agents", "AgentInfo", "Confirm", "FromServer", "Hello", "ListAgents", "Load", "LoadFile",
    "Loaded", "Push", "Refused", "Role", "ToServer",
]  # fmt: skip


_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
_Generation: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
_Share: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
_Packed: TypeAlias = Annotated[Address, msgspec.Meta(min_length=16, max_length=16)]


class Role(StrEnum):
    """What a host is for."""

    CLIENT = "client"
    SERVER = "server"
    MIDDLEBOX = "middlebox"
    GATEWAY = "gateway"


class _Message(msgspec.Struct, frozen=True, tag_field="t", tag=str.lower):
    """Base of all messages."""


class Hello(_Message, frozen=True):
    """An agent introduces itself, or tells that its addresses have changed."""

    name: _Name
    role: Role
    addresses: tuple[_Packed, ...]
    generation: _Generation  # of the set it has already; 0: none


class Load(_Message, frozen=True):
    """How busy an agent's host is."""

    sessions: _Count
    cpu: _Share  # of the host's processors that is busy
    counters: dict[str, int] = {}


class Confirm(_Message, frozen=True):
    """The agent's datapath holds packets by the set of this generation from now on."""

    generation: _Generation


class LoadFile(_Message, frozen=True):
    """Replace the policy by the text of a file; answered by Loaded or Refused."""

    file: str  # its name, for error messages
    text: str
    wait: float = 2.0  # s to wait at most for the agents to confirm it


class ListAgents(_Message, frozen=True):
    """Ask for :class:`Agents`."""


class Push(_Message, frozen=True):
    """All of the policy that concerns the agent. Replaces what it had, as a whole."""

    policy: PolicySet


class Loaded(_Message, frozen=True):
    """The new policy is stored and has been pushed."""

    generation: int
    agents: int  # connected
    confirmed: int  # of those, how many have it in force
    waiting_for: tuple[str, ...] = ()  # names of the others


class AgentInfo(msgspec.Struct, frozen=True):
    """What the policy server knows of one agent."""

    name: str
    role: Role
    addresses: tuple[str, ...]
    connected: bool
    last_seen: float  # s since 1970
    generation: int  # the last one it confirmed; 0: none
    sessions: int  # as last reported
    cpu: float  # share of the processors, 0 to 1
    instances: tuple[str, ...] = ()  # NF instances at its addresses, as ``type/name``


class Agents(_Message, frozen=True):
    """Answer to :class:`ListAgents`."""

    generation: int
    agents: tuple[AgentInfo, ...]


class Refused(_Message, frozen=True):
    """The request was understood and not carried out. Nothing changed."""

    why: str


ToServer: TypeAlias = Hello | Load | Confirm | LoadFile | ListAgents
FromServer: TypeAlias = Push | Loaded | Agents | Refused
