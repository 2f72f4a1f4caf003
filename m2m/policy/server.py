"""``m2m-policy serve``: push to every agent what concerns it, and again on every change.

An agent gets its part of the policy as one frame, so it has the old set or the new one. Of two
changes in quick succession a slow agent may get only the second. Loads decide between instances
at the agents; they are pushed again when other instances become the least loaded ones.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import msgspec
import structlog
import trio
import trio.abc

from m2m.auth import DomainKey
from m2m.policy.channel import Channel, ChannelError, Fault, Side, errors_in
from m2m.policy.compile import compile_policy
from m2m.policy.language import parse_source
from m2m.policy.location import favoured, instances_at, subset, with_loads
from m2m.policy.messages import (
    AgentInfo,
    Agents,
    Confirm,
    Hello,
    ListAgents,
    Load,
    Loaded,
    LoadFile,
    Push,
    Refused,
    ToServer,
)
from m2m.policy.rules import PolicySet
from m2m.policy.source import PolicyError, Source
from m2m.policy.store import AgentRecord, Store, StoreError, Version
from m2m.protocol.flow import Address, format_address

__all__ = ["PolicyServer"]

_log = structlog.get_logger()

_PUSH_INTERVAL = 1.0  # s between pushes that only bring other loads
_SAVE_INTERVAL = 5.0  # s between writes of what agents report
_SEND_TIMEOUT = 10.0  # s an agent may take to read a frame
_SILENCE = 30.0  # s without any report after which an agent counts as gone
_LONGEST_WAIT = 30.0  # s


class _Link:
    """A connected agent: what it was sent, and what it has in force."""

    def __init__(self, channel: Channel[ToServer], hello: Hello) -> None:
        self.channel = channel
        self.hello = hello
        self.sent: PolicySet | None = None
        self.confirmed = -1
        self.wake = trio.Event()
        self.scope = trio.CancelScope()


class PolicyServer:
    """The server behind its listeners.

    :attr:`faults` counts connections that were given up, by :class:`Fault`.
    """

    def __init__(self, key: DomainKey, store: Store, version: Version) -> None:
        """Serve *version*, which *store* has. Raises :exc:`PolicyError`."""
        self.faults: Counter[Fault] = Counter()
        self._key = key
        self._store = store
        compiled = _compile(Source(version.file, version.text))
        self._version = version
        self._policy = msgspec.structs.replace(compiled, generation=version.generation)
        self._current = with_loads(self._policy, {})  # what is pushed
        self._agents = {record.name: record for record in store.agents()}
        self._links: dict[str, _Link] = {}
        self._unsaved: set[str] = set()
        self._loads_changed = trio.Event()
        self._confirmed = trio.Event()
        self._loading = trio.Lock()

    @property
    def generation(self) -> int:
        """Of the policy in force."""
        return self._version.generation

    async def run(
        self,
        listeners: Sequence[trio.abc.Listener[trio.SocketStream]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; started when agents can connect."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow_loads)
                nursery.start_soon(self._save_now_and_then)
                await nursery.start(trio.serve_listeners, self.serve, listeners)
                task_status.started()
        finally:
            self._save()

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Talk to whoever is at the other end of *stream* until it goes."""
        peer = _peer(stream)
        try:
            async with await Channel.open(stream, self._key, Side.SERVER, ToServer) as channel:
                await self._converse(channel)
        except* ChannelError as group:
            for error in errors_in(group):
                self.faults[error.fault] += 1
                _log.warning("connection given up", fault=error.fault.value, why=str(error),
                             peer=peer, count=self.faults[error.fault])  # fmt: skip

    async def _converse(self, channel: Channel[ToServer]) -> None:
        while (message := await _within(_SILENCE, channel)) is not None:
            if isinstance(message, Hello):
                return await self._attend(channel, message)
            if isinstance(message, LoadFile):
                await channel.send(await self._load(message))
            elif isinstance(message, ListAgents):
                await channel.send(self._list())
            else:
                raise ChannelError(
                    Fault.MALFORMED, f"{type(message).__name__} came before an agent's Hello"
                )
        return None

    # -- agents -------------------------------------------------------------------------

    async def _attend(self, channel: Channel[ToServer], hello: Hello) -> None:
        """Serve one agent until it goes, or comes again by another connection."""
        link = _Link(channel, hello)
        earlier = self._links.get(hello.name)
        if earlier is not None:
            _log.info("agent came again", agent=hello.name)
            earlier.scope.cancel()
        self._links[hello.name] = link
        self._introduce(link, hello)
        try:
            with link.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._push, link)
                    while (message := await _within(_SILENCE, channel)) is not None:
                        self._hear(link, message)
                    nursery.cancel_scope.cancel()
        finally:
            if self._links.get(hello.name) is link:
                self._note(link)
                del self._links[hello.name]
                _log.info("agent gone", agent=hello.name)
            self._loads_changed.set()
            self._wake_waiting()  # a load may wait for this agent

    def _introduce(self, link: _Link, hello: Hello) -> None:
        link.hello = hello
        _log.info("agent here", agent=hello.name, role=hello.role.value,
                  addresses=",".join(map(format_address, hello.addresses)))  # fmt: skip
        self._note(link, generation=hello.generation)
        if hello.generation > self.generation:
            self._outgrow(hello)
        link.wake.set()
        self._loads_changed.set()

    def _outgrow(self, hello: Hello) -> None:
        """An agent has a newer set than ours: the store was lost. Generations never go back."""
        try:
            version = self._store.add(
                self._version.file, self._version.text, above=hello.generation
            )
        except StoreError as error:
            _log.error("an agent has a later generation", agent=hello.name, why=str(error))
            return
        _log.warning("generations moved past an agent's", agent=hello.name,
                     had=hello.generation, now=version.generation)  # fmt: skip
        self._adopt(version, self._policy)

    def _hear(self, link: _Link, message: ToServer) -> None:
        if isinstance(message, Load):
            self._note(link, sessions=message.sessions, cpu=message.cpu)
            self._loads_changed.set()
        elif isinstance(message, Confirm):
            link.confirmed = message.generation
            self._note(link, generation=message.generation)
            self._wake_waiting()
        elif isinstance(message, Hello) and message.name == link.hello.name:
            self._introduce(link, message)
        else:
            raise ChannelError(
                Fault.MALFORMED,
                f"agent {link.hello.name} sent {type(message).__name__} in the name of another"
                if isinstance(message, Hello)
                else f"agent {link.hello.name} sent {type(message).__name__}",
            )

    async def _push(self, link: _Link) -> None:
        """Keep an agent's set up to date, for ever."""
        while True:
            link.wake = trio.Event()  # first, so that no change is missed
            wanted = subset(self._current, link.hello.role, link.hello.addresses)
            if wanted != link.sent:
                with trio.move_on_after(_SEND_TIMEOUT) as scope:
                    await link.channel.send(Push(wanted))
                if scope.cancelled_caught:
                    raise ChannelError(
                        Fault.TIMEOUT,
                        f"agent {link.hello.name} does not read what it is sent",
                    )
                link.sent = wanted
            await link.wake.wait()

    # -- changes ------------------------------------------------------------------------

    async def _load(self, request: LoadFile) -> Loaded | Refused:
        async with self._loading:
            if request.text != self._version.text:
                source = Source(request.file, request.text)
                try:
                    # The compiler may be busy for a second; agents are served meanwhile.
                    policy = await trio.to_thread.run_sync(_compile, source)
                    version = self._store.add(request.file, request.text)
                except (PolicyError, StoreError) as error:
                    _log.warning("policy refused", file=request.file, why=str(error))
                    return Refused(str(error))
                self._adopt(version, policy)
        return await self._when_confirmed(self.generation, request.wait)

    def _adopt(self, version: Version, policy: PolicySet) -> None:
        """Swap the policy in force for *policy*, compiled from *version*, and have it pushed."""
        policy = msgspec.structs.replace(policy, generation=version.generation)
        self._version, self._policy = version, policy
        _log.info("policy in force", generation=version.generation, file=version.file,
                  policies=len(policy.policies), rules=len(policy.rules))  # fmt: skip
        self._renew()

    def _renew(self) -> None:
        self._current = with_loads(self._policy, self._loads())
        for link in self._links.values():
            link.wake.set()

    async def _when_confirmed(self, generation: int, wait: float) -> Loaded:
        with trio.move_on_after(min(wait, _LONGEST_WAIT)):
            while self._waiting_for(generation):
                await self._confirmed.wait()
        waiting_for = self._waiting_for(generation)
        agents = len(self._links)
        return Loaded(generation, agents, agents - len(waiting_for), waiting_for)

    def _waiting_for(self, generation: int) -> tuple[str, ...]:
        return tuple(
            sorted(name for name, link in self._links.items() if link.confirmed < generation)
        )

    def _wake_waiting(self) -> None:
        self._confirmed.set()
        self._confirmed = trio.Event()

    async def _follow_loads(self) -> None:
        while True:
            await self._loads_changed.wait()
            self._loads_changed = trio.Event()
            if favoured(with_loads(self._policy, self._loads())) != favoured(self._current):
                self._renew()
                await trio.sleep(_PUSH_INTERVAL)

    def _loads(self) -> dict[Address, float]:
        """Sessions on the hosts of connected agents, by address."""
        return {
            address: float(self._agents[name].sessions)
            for name, link in self._links.items()
            for address in link.hello.addresses
        }

    # -- what is known of agents --------------------------------------------------------

    def _note(
        self,
        link: _Link,
        *,
        generation: int | None = None,
        sessions: int | None = None,
        cpu: float | None = None,
    ) -> None:
        hello = link.hello
        before = self._agents.get(hello.name)
        self._agents[hello.name] = AgentRecord(
            hello.name,
            hello.role,
            hello.addresses,
            time.time(),
            generation if generation is not None else before.generation if before else 0,
            sessions if sessions is not None else before.sessions if before else 0,
            cpu if cpu is not None else before.cpu if before else 0.0,
        )
        self._unsaved.add(hello.name)

    def _list(self) -> Agents:
        return Agents(
            self.generation,
            tuple(
                AgentInfo(
                    name=name,
                    role=record.role,
                    addresses=tuple(map(format_address, record.addresses)),
                    connected=name in self._links,
                    last_seen=record.last_seen,
                    generation=record.generation,
                    sessions=record.sessions,
                    cpu=record.cpu,
                    instances=instances_at(self._policy, record.addresses),
                )
                for name, record in sorted(self._agents.items())
            ),
        )

    async def _save_now_and_then(self) -> None:
        while True:
            await trio.sleep(_SAVE_INTERVAL)
            self._save()

    def _save(self) -> None:
        if not self._unsaved:
            return
        try:
            self._store.save_agents(self._agents[name] for name in self._unsaved)
        except StoreError as error:
            _log.error("agents not saved", why=str(error))
        else:
            self._unsaved.clear()


def _compile(source: Source) -> PolicySet:
    return compile_policy(parse_source(source))


async def _within(seconds: float, channel: Channel[ToServer]) -> ToServer | None:
    """The next message, which must come within *seconds*."""
    with trio.move_on_after(seconds):
        return await channel.receive()
    raise ChannelError(Fault.TIMEOUT, f"nothing was heard for {seconds:g} s")


def _peer(stream: trio.abc.Stream) -> str:
    if isinstance(stream, trio.SocketStream):
        try:
            host, port, *_ = stream.socket.getpeername()
        except OSError:
            return "gone"
        return f"{host} port {port}"
    return "local"
