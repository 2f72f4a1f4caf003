"""From what somebody wants of chains to one change of one session's chain.

A wish names network functions; a plan names hosts: the one that leads (L), the run that goes, the
run that comes, and where both end (R). Nothing here asks or waits for anybody.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from m2m.agent.api import HopReport
from m2m.agent.order import ME, Do, Wish
from m2m.errors import M2MError
from m2m.policy.choose import NONE_PLACED, assign, candidates
from m2m.policy.rules import Instance, Kind, NfType, PolicySet
from m2m.protocol.flow import Address, Flow, format_address, parse_address
from m2m.protocol.translation import Position
from m2m.protocol.update import MAX_RUN, Step
from m2m.protocol.wire import Hop

__all__ = ["Plan", "Unfit", "check", "describe", "hop_name", "plan", "plan_to_follow"]

_POSITIONS = {Kind.TAP: Position.TAP, Kind.INLINE: Position.INLINE}
_ENDS = ("client", "server")


class Unfit(M2MError):
    """The session's chain is not one that the wish is about."""


class Plan(NamedTuple):
    """One change of one session."""

    leader: Address
    steps: tuple[Step, ...]
    right: Address
    hops: tuple[Hop, ...]


def hop_name(hop: HopReport) -> str:
    """A host of a path as reports name it: the agent at an end, the network function between."""
    if hop.position in _ENDS:  # a proxy is called by what it does
        return hop.host
    return hop.nf or hop.address


def describe(hops: Sequence[HopReport]) -> str:
    """A path in words."""
    return " -> ".join(map(hop_name, hops))


def check(wish: Wish, policy: PolicySet) -> None:
    """Raise :exc:`M2MError` for a wish that no session could ever be about."""
    names = _Names(policy, "")
    for name in (*wish.old, *wish.new, *filter(None, (wish.after, wish.before))):
        if name not in _ENDS and name != ME and not _is_address(name):
            names.resolve(name)
    if any(name in _ENDS for name in (*wish.old, *wish.new)):
        raise M2MError("the client and the server of a session cannot be taken out or put in")
    if wish.do is Do.INSERT and (wish.after is None) == (wish.before is None):
        raise M2MError("an insertion needs one place: say after or before what")
    if (wish.after, wish.before) in (("server", None), (None, "client")):
        raise M2MError("a chain begins behind the client and ends before the server")
    if not wish.old and wish.do is not Do.INSERT:
        raise M2MError(f"{wish.do} what? Name network functions")
    if not wish.new and wish.do in (Do.INSERT, Do.REPLACE):
        raise M2MError(f"{wish.do} by what? Name network functions")
    if wish.do is Do.DRAIN and (len(wish.old) > 1 or names.resolve(wish.old[0])[1] is None):
        raise M2MError(f"only an instance can be drained, and {', '.join(wish.old)} is none")


def plan(
    wish: Wish,
    hops: Sequence[HopReport],
    here: str,
    flow: Flow,
    policy: PolicySet,
    avoid: Container[Address] = (),
    placed: Mapping[Address, int] = NONE_PLACED,
) -> Plan:
    """How to carry *wish* out on the path *hops* of the session *flow*.

    *here* is the address of the host that is asked, *avoid* holds hosts that lately did not answer,
    *placed* how many sessions hosts have beyond the loads that they reported. The wish has passed
    :func:`check`. Raises :exc:`Unfit`, and :exc:`M2MError` for what no chain could ever fit.
    """
    names = _Names(policy, here)
    first, last = _run(names, wish, hops)
    new = wish.new
    if wish.do is Do.DRAIN and not new:
        new = (names.the_type(wish.old[0]).name,)
    return _plan(names, hops, first, last, new, flow, avoid, placed)


def plan_to_follow(
    chain: Sequence[str],
    hops: Sequence[HopReport],
    here: str,
    flow: Flow,
    policy: PolicySet,
    avoid: Container[Address] = (),
    placed: Mapping[Address, int] = NONE_PLACED,
) -> Plan | None:
    """The next change on the way from the path *hops* to the NF types of *chain*; None: it is that.

    NF types that the path has in the order of *chain* keep their instances, if these are still
    declared. Every change brings the path nearer, and none takes out what is to come back at
    another place: no packet ever goes without. Raises :exc:`M2MError`.
    """
    names = _Names(policy, here)
    middle = hops[1:-1]
    kept = _common(chain, middle, names)
    settled = {chain[place] for _, place in kept}
    gaps: list[tuple[int, int, tuple[str, ...]]] = []
    before, type_before = 0, 0
    for place, type_place in (*kept, (len(middle), len(chain))):
        if place > before or type_place > type_before:
            gaps.append((before + 1, place + 1, tuple(chain[type_before:type_place])))
        before, type_before = place + 1, type_place + 1

    def awaited(hop: HopReport, new: tuple[str, ...]) -> bool:
        """Whether it does what the chain has at another place and the path does not have yet."""
        return any(
            names.is_at(name, hop) for name in chain if name not in settled and name not in new
        )

    for first, last, new in gaps:
        if not any(awaited(hop, new) for hop in hops[first:last]):
            return _plan(names, hops, first, last, new, flow, avoid, placed)
    for first, _, new in gaps:
        if new:  # what is awaited comes before what it replaces goes
            return _plan(names, hops, first, first, new, flow, avoid, placed)
    return None


def _common(
    chain: Sequence[str], middle: Sequence[HopReport], names: _Names
) -> list[tuple[int, int]]:
    """The longest sequence that both have: places in *middle* and in *chain*."""
    best: list[list[list[tuple[int, int]]]] = [
        [[] for _ in range(len(chain) + 1)] for _ in range(len(middle) + 1)
    ]
    for at in reversed(range(len(middle))):
        for to in reversed(range(len(chain))):
            longer = max(best[at + 1][to], best[at][to + 1], key=len)
            if names.may_stay(chain[to], middle[at]):
                longer = max([(at, to), *best[at + 1][to + 1]], longer, key=len)
            best[at][to] = longer
    return best[0][0]


def _run(names: _Names, wish: Wish, hops: Sequence[HopReport]) -> tuple[int, int]:
    """Which hops go: the first, and the one behind the last."""
    if wish.do is Do.INSERT:
        beside = wish.after if wish.after is not None else wish.before
        assert beside is not None
        place = _find(names, (beside,), hops)
        place += wish.after is not None
        return place, place
    place = _find(names, wish.old, hops)
    return place, place + len(wish.old)


def _find(names: _Names, wanted: tuple[str, ...], hops: Sequence[HopReport]) -> int:
    for place in range(len(hops) - len(wanted) + 1):
        run = hops[place : place + len(wanted)]
        if all(names.is_at(name, hop) for name, hop in zip(wanted, run, strict=True)):
            return place
    what = " -> ".join(names.shown(name) for name in wanted)
    raise Unfit(f"the session does not pass {what}: its path is {describe(hops)}")


def _plan(
    names: _Names,
    hops: Sequence[HopReport],
    first: int,
    last: int,
    new: Sequence[str],
    flow: Flow,
    avoid: Container[Address],
    placed: Mapping[Address, int],
) -> Plan:
    if not 0 < first <= last < len(hops):
        raise Unfit("the client and the server of a session cannot be taken out of its chain")
    if max(last - first, len(new)) > MAX_RUN:
        raise M2MError(f"one change takes out or puts in at most {MAX_RUN} network functions")
    chosen = _choose(names, hops, new, flow, avoid, placed)
    steps = []
    for hop in hops[first:last]:
        heir = next((one.address for nf, one in chosen if _inherits(names, hop, nf)), None)
        steps.append(Step(parse_address(hop.address), heir))
    return Plan(
        parse_address(hops[first - 1].address),
        tuple(steps),
        parse_address(hops[last].address),
        tuple(Hop(one.address, _POSITIONS[nf.kind], nf.name) for nf, one in chosen),
    )


def _inherits(names: _Names, hop: HopReport, nf: NfType) -> bool:
    """Only inline functions have state that could be moved, and only to their like. A tap's
    programs have read what they captured when it has said that there is none."""
    return (nf.kind is Kind.INLINE or hop.watched) and names.is_at(nf.name, hop)


def _choose(
    names: _Names,
    hops: Sequence[HopReport],
    new: Sequence[str],
    flow: Flow,
    avoid: Container[Address],
    placed: Mapping[Address, int],
) -> list[tuple[NfType, Instance]]:
    """An instance for each of *new*; none that is on the path already."""
    there = {parse_address(hop.address) for hop in hops}
    types: list[NfType] = []
    options: list[list[Instance]] = []
    for name in new:
        nf, instance = names.resolve(name)
        if nf.kind is Kind.PROXY:
            raise M2MError(
                f"{nf.name} is a proxy, which begins connections of its own: it cannot be put into "
                "the chain of a session that stands"
            )
        if instance is None:
            usable = [
                one for one in candidates(nf, flow, avoid, placed) if one.address not in there
            ]
            if not usable:
                raise M2MError(
                    f"{nf.name} has no instance that could be put into the path {describe(hops)}: "
                    "declare another one, on a host of its own"
                )
        elif instance.address in there:
            raise Unfit(
                f"{nf.name}/{instance.name} is on the session's path already: {describe(hops)}"
            )
        else:
            usable = [instance]
        types.append(nf)
        options.append(usable)
    chosen = assign(options)
    if chosen is None:
        raise M2MError(
            f"every way to choose instances for {', '.join(new)} visits one host twice; name others"
        )
    return list(zip(types, chosen, strict=True))


class _Names:
    """What names mean by the policy in force, at the host *here*."""

    def __init__(self, policy: PolicySet, here: str) -> None:
        self._types = {nf.name: nf for nf in policy.nfs}
        self._here = here

    def resolve(self, name: str) -> tuple[NfType, Instance | None]:
        """The NF type of that name, or the instance."""
        if name in self._types:
            return self._types[name], None
        type_name, slash, instance_name = name.partition("/")
        found = [
            (nf, one)
            for nf in self._types.values()
            for one in nf.instances
            if (slash and (nf.name, one.name) == (type_name, instance_name))
            or (not slash and one.name == name)
        ]
        if len(found) == 1:
            return found[0]
        if found:
            several = " or ".join(f"{nf.name}/{one.name}" for nf, one in found)
            raise M2MError(f"{name!r} is not the name of one instance: say {several}")
        known = ", ".join(f"{nf.name}/{one.name}" for nf in self._types.values()
                          for one in nf.instances)  # fmt: skip
        raise M2MError(
            f"{name!r} is neither an NF type nor an instance of this host's policy; there is "
            f"{known or 'none'}"
        )

    def the_type(self, name: str) -> NfType:
        return self.resolve(name)[0]

    def is_at(self, name: str, hop: HopReport) -> bool:
        """Whether *name* is what stands at *hop*."""
        if name in _ENDS:
            return hop.position == name
        if name == ME:
            return hop.address == self._here
        if _is_address(name):
            return hop.address == name
        nf, instance = self.resolve(name)
        if hop.position != nf.kind and not _has_left(nf, hop):
            return False
        if instance is not None:
            return hop.address == format_address(instance.address)
        if hop.nf is not None:
            return hop.nf.partition("/")[0] == nf.name
        return _runs_at(nf, hop)

    def may_stay(self, name: str, hop: HopReport) -> bool:
        """Whether *hop* is an instance of the NF type *name* by the policy as it is now."""
        nf = self.the_type(name)
        return hop.position == nf.kind and self.is_at(name, hop) and _runs_at(nf, hop)

    def shown(self, name: str) -> str:
        return "this host" if name == ME else name


def _has_left(nf: NfType, hop: HopReport) -> bool:
    """Whether *hop* is what a proxy has left behind, which passes packets on like a tap."""
    name = (hop.nf or "").partition("/")[0]
    return nf.kind is Kind.PROXY and hop.position == Kind.TAP and name == nf.name


def _runs_at(nf: NfType, hop: HopReport) -> bool:
    return any(hop.address == format_address(one.address) for one in nf.instances)


def _is_address(name: str) -> bool:
    try:
        parse_address(name)
    except ValueError:
        return False
    return True
