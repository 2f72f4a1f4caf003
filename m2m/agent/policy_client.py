"""The agent's side of the policy channel: gets its policies, tells its load.

It reconnects by itself. While the server is away the last set stays in force; it is also kept in
a file, so that an agent restarted meanwhile begins with it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import msgspec
import structlog
import trio

from m2m.auth import MAC_SIZE, DomainKey
from m2m.errors import M2MError
from m2m.policy.channel import Channel, ChannelError, errors_in
from m2m.policy.endpoint import Endpoint
from m2m.policy.location import with_loads
from m2m.policy.messages import (
    AgentInfo,
    Confirm,
    FromServer,
    Hello,
    Load,
    Push,
    Refused,
    Role,
)
from m2m.policy.request import ServerAway, connect, list_agents
from m2m.policy.rules import PolicySet
from m2m.protocol.flow import Address

__all__ = ["PolicyClient"]

_log = structlog.get_logger()

_FIRST_PAUSE = 0.1  # s before the second attempt; doubled each time
_LONGEST_PAUSE = 5.0  # s
_REPORT = 2.0  # s between reports of load


class PolicyClient:
    """An agent's link to the policy server.

    *addresses* and *load* are asked whenever they are to be told. *on_policy* puts a set into
    force; when it raises :exc:`M2MError` the set is not confirmed and the earlier one stays.
    It is called again with the same generation when loads or addresses have changed.
    *on_link* hears when the server comes and goes, with the reason. *cache* is a file of the
    client's own.
    """

    def __init__(
        self,
        server: Endpoint,
        key: DomainKey,
        *,
        name: str,
        role: Role,
        addresses: Callable[[], Iterable[Address]],
        load: Callable[[], Load],
        on_policy: Callable[[PolicySet], Awaitable[None]],
        on_link: Callable[[bool, str], None],
        cache: Path,
        is_here: Callable[[Address], bool] = lambda _: True,
        source: Callable[[], str | None] = lambda: None,
    ) -> None:
        """*is_here*: whether an interface of this host has an address. *source*: from which one to
        connect, if the route's own choice will not do."""
        self.server = server
        self.connected = False
        self._key = key
        self._cache_key = key.derive(b"policy cache", name.encode())
        self._name = name
        self._role = role
        self._addresses = addresses
        self._load = load
        self._on_policy = on_policy
        self._on_link = on_link
        self._cache = cache
        self._is_here = is_here
        self._source = source
        self._generation = 0
        self._kept: PolicySet | None = None
        self._addresses_changed = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the link up until cancelled.

        Started when the first set is in force, be it the kept one, or when the server has been
        found to be away; within a few seconds in any case.
        """
        started = _Once(task_status)
        if await self._begin_with_kept():
            started()
        pause = _FIRST_PAUSE
        while True:
            began = trio.current_time()
            try:
                why = await self._attend(
                    await connect(self.server, self._key, self._source()), started
                )
            except ServerAway as error:
                why = str(error)
            if self.connected or not started.done:
                self.connected = False
                _log.warning("policy server away", server=str(self.server), why=why)
                self._on_link(False, why)
                started()
            if trio.current_time() - began > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            # Jitter: a server that comes back should not meet all agents at once.
            await trio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def addresses_changed(self) -> None:
        """Have the server told at once that *addresses* gives others now."""
        self._addresses_changed.set()

    async def agents(self) -> tuple[AgentInfo, ...]:
        """Every agent of the domain. Raises :exc:`M2MError` when the server is away."""
        return await list_agents(self.server, self._key)

    # -- one connection -----------------------------------------------------------------

    async def _attend(self, channel: Channel[FromServer], started: _Once) -> str:
        """Talk to the server until it goes; returns why it went."""
        try:
            async with channel:
                told = self._hello()
                await channel.send(told)
                self.connected = True
                _log.info("policy server here", server=str(self.server))
                self._on_link(True, f"connected to {self.server}")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._report, channel, told)
                    while (message := await channel.receive()) is not None:
                        await self._hear(channel, message)
                        started()
                    nursery.cancel_scope.cancel()
        except* ChannelError as group:
            why = str(errors_in(group)[0])
        except* _Moved:
            why = "this host has moved; connecting again from where it is"
        else:
            why = "it closed the connection"
        return why

    async def _hear(self, channel: Channel[FromServer], message: FromServer) -> None:
        if isinstance(message, Push):
            if await self._put_into_force(message.policy):
                self._keep(message.policy)
                await channel.send(Confirm(message.policy.generation))
        elif isinstance(message, Refused):
            _log.warning("the policy server refuses", why=message.why)

    async def _report(self, channel: Channel[FromServer], told: Hello) -> None:
        """Tell addresses when they change, and the load every now and then."""
        while True:
            self._addresses_changed = trio.Event()
            hello = self._hello()
            if hello.addresses != told.addresses:
                if channel.local is not None and not self._is_here(channel.local):
                    raise _Moved  # nothing comes or goes by that connection any more
                await channel.send(hello)
                told = hello
            await channel.send(self._load())
            with trio.move_on_after(_REPORT):
                await self._addresses_changed.wait()

    def _hello(self) -> Hello:
        return Hello(self._name, self._role, tuple(self._addresses()), self._generation)

    async def _put_into_force(self, policy: PolicySet) -> bool:
        try:
            await self._on_policy(policy)
        except M2MError as error:
            _log.error("policy not in force", generation=policy.generation, why=str(error))
            return False
        self._generation = policy.generation
        return True

    # -- the kept set -------------------------------------------------------------------

    async def _begin_with_kept(self) -> bool:
        """Put the kept set into force; whether there was one."""
        try:
            data = self._cache.read_bytes()
        except FileNotFoundError:
            return False
        except OSError as error:
            _log.warning("kept policy not read", file=str(self._cache), why=error.strerror)
            return False
        mac, packed = data[:MAC_SIZE], data[MAC_SIZE:]
        try:
            if not self._cache_key.verify(packed, mac):
                raise ValueError("it is damaged, or was kept under another key or name")
            policy = msgspec.msgpack.decode(packed, type=PolicySet)
        except ValueError as error:  # msgspec's errors are among them
            _log.warning("kept policy ignored", file=str(self._cache), why=str(error))
            return False
        if not await self._put_into_force(policy):
            return False
        self._kept = _without_loads(policy)
        _log.info("kept policy in force", generation=policy.generation)
        return True

    def _keep(self, policy: PolicySet) -> None:
        lasting = _without_loads(policy)
        if lasting == self._kept:
            return
        packed = msgspec.msgpack.encode(lasting)
        new = self._cache.with_name(self._cache.name + ".new")
        try:
            self._cache.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            new.unlink(missing_ok=True)
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(self._cache_key.mac(packed) + packed)
            new.replace(self._cache)
        except OSError as error:
            _log.warning("policy not kept", file=str(self._cache), why=error.strerror)
        else:
            self._kept = lasting


class _Moved(Exception):
    """The connection began at an address that no interface has any more."""


class _Once:
    """Says *started* the first time it is called."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self.done = False
        self._task_status = task_status

    def __call__(self) -> None:
        if not self.done:
            self.done = True
            self._task_status.started()


def _without_loads(policy: PolicySet) -> PolicySet:
    """*policy* with no host's load known: loads are of the moment, not worth a write."""
    return with_loads(policy, {})
