"""What a policy file compiles to: plain data that the server pushes and a datapath evaluates.

Nothing here needs the grammar: an agent that only receives policy never imports lark.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from m2m.protocol.flow import Address


class Kind(StrEnum):
    """How an NF sees packets on its host (design: NF kinds)."""

    TAP = "tap"  # copies only; packets go straight through from subsession to subsession
    INLINE = "inline"  # restored headers travel through the host's own stack
    PROXY = "proxy"  # sessions end at it, and go on by connections of its own


class Choose(StrEnum):
    """How one instance is chosen among those of an NF type."""

    HASH = "hash"  # rendezvous hash of the flow: stable, stateless
    LEAST_LOADED = "least-loaded"  # by the loads that agents report to the policy server
    AGENT = "agent"  # left to the client's agent: it avoids instances that did not answer


class Shows(StrEnum):
    """Whose connections hosts behind a proxy, and the server, see."""

    CLIENT = "client"  # those of the session's client
    PROXY = "proxy"  # the proxy's own


class Fail(StrEnum):
    """What becomes of a matching session whose chain cannot be set up."""

    OPEN = "open"  # goes straight to its destination
    CLOSED = "closed"  # is dropped


class ChangeMode(StrEnum):
    """What a change of a live session's chain promises to its packets (§5)."""

    LF = "lf"  # none is lost
    OP = "op"  # nor overtaken, and the state of inline NFs moves
    SS_OP = "ss+op"  # and the byte stream is parted at one place per direction (TCP)


class Live(StrEnum):
    """What live sessions do when a policy that matches them is new."""

    FOLLOW = "follow"  # their chains are changed to what the policy says
    STAY = "stay"  # they keep the chains they have


class Asker(StrEnum):
    """Who may ask for a change of a live session's chain."""

    OPERATOR = "operator"  # m2mctl
    NF = "nf"  # a network function, about itself
    POLICY = "policy"  # a new policy that live sessions follow


ALLOWED = (Asker.OPERATOR, Asker.POLICY)
"""Who may ask unless a policy says otherwise."""


class Instance(msgspec.Struct, frozen=True):
    """One running NF at an address."""

    name: str
    address: Address
    load: float = 0.0  # sessions on that host, as last reported


class NfType(msgspec.Struct, frozen=True):
    """A named NF type: ``firewall``, ``ids``; its kind and its instances, in the file's order."""

    name: str
    kind: Kind
    choose: Choose
    instances: tuple[Instance, ...]
    port: int = 0  # a proxy: where it listens
    shows: Shows = Shows.CLIENT  # a proxy: what is seen behind it


class Network(msgspec.Struct, frozen=True):
    """A range of addresses; both bounds are inclusive."""

    lo: Address
    hi: Address

    def __contains__(self, address: Address) -> bool:
        return self.lo <= address <= self.hi


class Gateway(msgspec.Struct, frozen=True):
    """A router with an agent, on behalf of the hosts of some networks that have none."""

    name: str
    address: Address
    serves: tuple[Network, ...]


class Policy(msgspec.Struct, frozen=True):
    """One ``match(...) >> {...}`` of the policy file. *id* is its place in the file, from 0."""

    id: int
    text: str
    line: int
    chain: tuple[str, ...]
    fail: Fail
    change: ChangeMode = ChangeMode.OP  # unless a command says otherwise
    live: Live = Live.STAY
    allow: tuple[Asker, ...] = ALLOWED  # in the order of the enum


class FlatRule(msgspec.Struct, frozen=True):
    """A box in 5-tuple space that belongs to one policy; all bounds are inclusive.

    A predicate with ``|`` or ``~`` becomes several boxes. The first matching box of the table
    decides. The packed layout is ``struct m2m_rule`` of ``kmod/core``.
    """

    policy: int
    src_lo: Address
    src_hi: Address
    dst_lo: Address
    dst_hi: Address
    sport_lo: int
    sport_hi: int
    dport_lo: int
    dport_hi: int
    proto_lo: int
    proto_hi: int


class PolicySet(msgspec.Struct, frozen=True):
    """Everything an agent knows of policy; replaced as a whole, never in parts."""

    generation: int
    policies: tuple[Policy, ...]
    rules: tuple[FlatRule, ...]
    nfs: tuple[NfType, ...]
    gateways: tuple[Gateway, ...] = ()


EMPTY = PolicySet(generation=0, policies=(), rules=(), nfs=())
