"""The hosts that a new session goes through, from the first one after this to where it ends."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container
from itertools import pairwise

import trio
from msgspec import structs

from m2m.agent.journal import Journal
from m2m.agent.loads import Loads
from m2m.datapath._core import RuleTable
from m2m.policy.choose import ChainError, resolve
from m2m.policy.gateways import between, gateway_of
from m2m.policy.parts import Part, parts_of
from m2m.policy.rules import EMPTY, Kind, NfType, Policy, PolicySet
from m2m.protocol.devices import has_moved
from m2m.protocol.flow import Address, Flow, format_address
from m2m.protocol.session import Session
from m2m.protocol.translation import Position, SessionView
from m2m.protocol.wire import Hop

__all__ = ["Chains"]

_AVOID = 10.0  # s for which a host that did not answer is not chosen when there are others
_NO_AGENT = "no agent"  # counts sessions whose end has none
_POSITIONS = {
    Kind.TAP: Position.TAP,
    Kind.INLINE: Position.INLINE,
    Kind.PROXY: Position.PROXY,
}


class Chains:
    """The policy in force, and what else decides over chains: how loaded hosts are, and which have
    not answered lately."""

    def __init__(
        self,
        journal: Journal,
        gateway: Callable[[], Collection[Address]],
        lasting: Callable[[], Container[Address]],
    ) -> None:
        """*gateway*: the addresses of this host if it is one, else none. *lasting*: those at which
        sessions begin here wherever this host is."""
        self.policy = EMPTY
        self.gateway = gateway
        self.loads = Loads()
        # Network functions that are not declared any more, but may still have sessions.
        self.former_nfs: dict[tuple[Address, Kind], str] = {}
        self._counts = journal.counts
        self._lasting = lasting
        self._rules = RuleTable(EMPTY)
        self._policies: dict[int, Policy] = {}
        self._parts: dict[int, tuple[Part, ...]] = {}  # by policy
        self._avoid: dict[Address, float] = {}  # hosts that did not answer -> until when

    def load(self, policy: PolicySet, rules: RuleTable) -> None:
        """From now on choose by *policy*, which has these *rules*."""
        if policy.nfs != self.policy.nfs:
            self.loads.reported(policy.nfs)
        for nf in self.policy.nfs:
            for one in nf.instances:
                self.former_nfs[one.address, nf.kind] = f"{nf.name}/{one.name}"
        self.policy, self._rules = policy, rules
        self._policies = {one.id: one for one in policy.policies}
        self._parts = {one.id: parts_of(policy, one) for one in policy.policies}

    # -- which policy -------------------------------------------------------------------

    def policy_of(self, flow: Flow) -> Policy | None:
        """The policy that decides over *flow* (client to server) now."""
        policy_id = self._rules.match(flow)
        return None if policy_id is None else self._policies[policy_id]

    def policy_now(self, session: Session) -> Policy | None:
        """The policy that decides over a live session now: by where its client is, if that has
        moved, and has not begun at an address that goes with it."""
        flow, is_own = session.supersession, session.local is None
        if (
            has_moved(session)
            and is_own
            and session.right is not None
            and flow.src not in self._lasting()
        ):
            flow = flow._replace(src=session.right.src)
        return self.policy_of(flow)

    # -- which hosts --------------------------------------------------------------------

    def for_new(self, policy: Policy, flow: Flow) -> tuple[Hop, ...]:
        """The hops that a session of *flow*, which begins here, is to pass under *policy*; none
        where it is on the way already and has all that it is to pass.

        Raises :exc:`ChainError`, also where no agent has answered a moment ago at its end: nobody
        waits for that again, session by session.
        """
        end = self._end_of(flow)
        if len(self._parts_of(policy)) == 1 and end in self.unanswering():
            self._counts[_NO_AGENT] += 1
            raise ChainError(
                f"{format_address(end)}, where the session would end, has not answered in the last "
                f"{_AVOID:.0f} s: start an agent there, or let a gateway serve it"
            )
        return self.hops(policy, flow)

    def hops(self, policy: Policy, flow: Flow, behind: str | None = None) -> tuple[Hop, ...]:
        """The hops for *flow* under *policy*, from its client or *behind* a proxy, to the next
        proxy, the server, or that one's gateway.

        There are none where this host is a gateway, on the way already, and has all that the chain
        asks for. Raises :exc:`ChainError`.
        """
        part, gateway = self._part(policy, behind), self.gateway()
        wanted = structs.replace(policy, chain=part.types)
        chosen = resolve(
            self.policy, wanted, flow, self.unanswering(), self.loads.placed, part.taken
        )
        proxies = tuple(one for one in chosen if one.kind is Kind.PROXY)
        end = proxies[0].address if proxies else self._end_of(flow)
        chain = between(chosen[: len(chosen) - len(proxies)], gateway, end)
        if end in gateway:
            if proxies:
                raise ChainError(
                    f"{flow}: the proxy {proxies[0].nf_type} is at the gateway "
                    f"{format_address(end)}, where the session begins: let another host run it"
                )
            if chain:
                names = " -> ".join(one.nf_type for one in chain)
                raise ChainError(
                    f"{flow}: client and server are both behind the gateway {format_address(end)}, "
                    f"which cannot be both ends of a chain through {names}: let it run them "
                    "itself, or let two gateways serve them"
                )
            return ()
        hops = [Hop(one.address, _POSITIONS[one.kind], one.nf_type) for one in (*chain, *proxies)]
        return tuple(hops) if proxies else (*hops, Hop(end, Position.SERVER))

    def proxy_of(self, policy: Policy, came: SessionView) -> NfType:
        """The proxy here that a session *came* to and is to go on from, under *policy*.

        Raises :exc:`ChainError`.
        """
        assert came.left is not None
        own = came.left.dst
        for nf in self.policy.nfs:
            runs_here = any(one.address == own for one in nf.instances)
            if nf.kind is Kind.PROXY and nf.name in policy.chain and runs_here:
                return nf
        raise ChainError(
            f"{came.supersession}: the policy names no proxy at {format_address(own)} (any more)"
        )

    def types_to_pass(
        self, policy: Policy, flow: Flow, first: str | None = None, last: str | None = None
    ) -> tuple[str, ...]:
        """The NF types of *policy* for which the path of a live session has to have a host, between
        the proxy *first*, or its client, and the proxy *last*, or its server.

        Raises :exc:`ChainError`, also where *policy* would have it end elsewhere.
        """
        types = self._part(policy, first).types
        kinds = {nf.name: nf.kind for nf in self.policy.nfs}
        ends = [name for name in types if kinds.get(name) is Kind.PROXY]
        if ends != ([] if last is None else [last]):
            raise ChainError(
                f"the connection ends at {last or 'the server'}, and by the policy it would at "
                f"{' and '.join(ends) or 'the server'}: connections that stand end where they do"
            )
        types = types[: len(types) - len(ends)]
        if not self.gateway() and not self.policy.gateways:
            return types
        return tuple(hop.nf for hop in self.hops(policy, flow, first)[:-1])

    def _part(self, policy: Policy, behind: str | None) -> Part:
        """Raises :exc:`ChainError`."""
        parts = self._parts_of(policy)
        if behind is None:
            return parts[0]
        for part, following in pairwise(parts):
            if part.types[-1] == behind:
                return following
        raise ChainError(f"the policy does not name the proxy {behind} (any more)")

    def _parts_of(self, policy: Policy) -> tuple[Part, ...]:
        if self._policies.get(policy.id) is policy:
            return self._parts[policy.id]
        return parts_of(self.policy, policy)  # of the set before

    def _end_of(self, flow: Flow) -> Address:
        """The host at which the session ends: its server, or the gateway that serves that."""
        gateway = gateway_of(self.policy, flow.dst)
        return flow.dst if gateway is None else gateway.address

    # -- what is known of hosts ---------------------------------------------------------

    def unanswering(self) -> Container[Address]:
        """Hosts that lately did not answer."""
        if self._avoid:
            now = trio.current_time()
            self._avoid = {host: until for host, until in self._avoid.items() if until > now}
        return self._avoid

    def is_silent(self, host: Address, flow: Flow) -> None:
        """*host* has not answered when *flow* was to be set up."""
        self._avoid[host] = trio.current_time() + _AVOID
        if host == self._end_of(flow):
            self._counts[_NO_AGENT] += 1

    def has_answered(self, host: Address) -> None:
        """A message has come from *host*."""
        if self._avoid:
            self._avoid.pop(host, None)
