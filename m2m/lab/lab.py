"""A running lab: hosts as network namespaces, with agents and services in them.

:func:`open_lab` builds one for the length of an ``async with`` block; a lab that is *detached*
there stays up for ``m2m-lab exec``, ``status`` and ``down``. Whatever a killed run left behind
(namespaces, processes, pinned BPF objects, files) is taken away by the next one of that name.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import trio

from m2m.agent.api import PathInfo, PolicyInfo, SessionInfo, Stats
from m2m.agent.dialogue import (
    AskPath,
    AskPolicy,
    AskSessions,
    AskStats,
    End,
    PathItem,
    PolicyItem,
    Request,
    SessionItem,
    StatsItem,
)
from m2m.auth import DomainKey
from m2m.cli.query import ask, one
from m2m.errors import M2MError
from m2m.lab import forkserver, netns, process, programs, state
from m2m.lab.netns import LabError
from m2m.lab.pace import SLOWNESS
from m2m.lab.process import Notifications, Running, Started
from m2m.lab.topology import Nft, Ready, Topology

_CLEANUP_LIMIT = 20.0  # s
_LOOK = 0.02  # s between two looks for what tells of no event

_Answer = TypeVar("_Answer")


class Completed(msgspec.Struct, frozen=True):
    """What a command in a lab's host printed, and its exit status."""

    status: int
    out: str
    err: str


@asynccontextmanager
async def open_lab(
    topology: Topology, *, name: str | None = None, agents: bool = True
) -> AsyncIterator[Lab]:
    """Build a lab, give it to the block, and take it down afterwards unless it was detached.

    With ``agents=False`` the policy server and the agents wait for
    :meth:`Lab.start_agents`; services and NFs run. Raises :exc:`LabError`, with the tail of the
    log that matters, when something does not start or ends too early.
    """
    lab_name = name or topology.name
    state.check_possible(lab_name)
    with state.exclusive(lab_name):
        state.check_possible(lab_name)  # again: it may have come up meanwhile
        await state.clean(lab_name)
        lab = Lab(topology, lab_name)
        try:
            with plain_errors():
                async with trio.open_nursery() as nursery:
                    await lab._build(nursery, agents)
                    yield lab
                    nursery.cancel_scope.cancel()
        finally:
            if not lab.state.up:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLEANUP_LIMIT):
                    await state.clean(lab_name)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise what a nursery reports as itself: callers need not know of the nursery.

    Of several errors that a person is meant to read, the first one is raised: things done side by
    side fail for the same reason.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        errors = list(_leaves(group))
        if len(errors) > 1 and not all(isinstance(error, M2MError) for error in errors):
            raise
        raise errors[0] from errors[0].__cause__


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group of groups, in order."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


class Lab:
    """A lab that is up. All paths and names come from it; made by :func:`open_lab`."""

    def __init__(self, topology: Topology, name: str) -> None:
        self.topology = topology
        self.name = name
        self.directory = state.directory(name)
        self.state = state.State(
            name=name,
            roles={h: host.role and str(host.role) for h, host in topology.hosts.items()},
            addresses={host: topology.address(host) for host in topology.hosts},
        )
        self._nursery: trio.Nursery | None = None
        self._running: dict[tuple[str, str], Running] = {}
        self._ending: set[int] = set()

    def address(self, host: str) -> str:
        """The address by which other hosts know *host*."""
        return self.topology.address(host)

    def namespace(self, host: str) -> Path:
        """The file by which the network namespace of *host* is entered."""
        return netns.namespace_path(self.name, host)

    def control_socket(self, host: str) -> Path:
        """Where ``m2mctl`` reaches the agent of *host*."""
        return state.control_socket(self.name, host)

    def pid(self, host: str, name: str) -> int:
        """The process id of a running process, such as ``("client", "agent")``."""
        return self._running[host, name].pid

    def home(self, host: str, name: str) -> Path:
        """The working directory of a process: what it writes by a relative path is there."""
        return self.directory / f"{host}-{name}"

    def log(self, host: str, name: str) -> Path:
        """Where the output of a process goes."""
        return self.directory / "log" / f"{host}-{name}.log"

    def detach(self) -> None:
        """Leave the lab up when the block ends."""
        self.state.up = True
        self.state.save()

    # -- building ---------------------------------------------------------------------------

    async def _build(self, nursery: trio.Nursery, agents: bool) -> None:
        self._nursery = nursery
        self.state.save()  # first of all: what is made from here on can be found again
        for part in ("log", "run"):
            (self.directory / part).mkdir(parents=True)
        await netns.build(self.topology, self.name)
        async with trio.open_nursery() as starting:
            if agents and self.topology.policy is not None:
                starting.start_soon(self.start_agents)
            for host in self.topology.hosts:
                starting.start_soon(self._start_services, host)

    async def _start_services(self, host: str) -> None:
        for item in self.topology.hosts[host].run:
            if isinstance(item, Nft):
                await self.run(host, "nft", "-f", "-", stdin=item.ruleset)
                continue
            for program in programs.of(item, self.home(host, programs.name_of(item))):
                await self.start(host, program.name, program.argv, ready=program.ready)

    async def start_agents(self) -> None:
        """Start the policy server, then the agents of all hosts that have a role."""
        policy = self.topology.policy
        if policy is None or policy.text is None:
            raise LabError(f"lab {self.name!r} has no [policy]")
        DomainKey.generate(self._key)
        self._policy_file.write_text(policy.text)
        program = programs.policy_server(
            self._policy_file,
            self.address(policy.host),
            key=self._key,
            store=self.directory / "policy.db",
        )
        await self.start(policy.host, program.name, program.argv, ready=program.ready)
        async with trio.open_nursery() as starting:
            for host, _ in self.topology.with_role():
                starting.start_soon(self.start_agent, host)

    async def start_agent(self, host: str) -> None:
        """Start the agent of *host*, for the first time or again; it is ready on return."""
        policy = self.topology.policy
        assert policy is not None
        program = programs.agent(
            self.topology.hosts[host],
            state.agent_name(self.name, host),
            policy_server=self.address(policy.host),
            key=self._key,
            run_dir=self.directory / "run",
        )
        await self.start(host, program.name, program.argv, ready=program.ready)

    @property
    def _key(self) -> Path:
        return self.directory / "domain.key"

    @property
    def _policy_file(self) -> Path:
        return self.directory / "policy.m2m"

    # -- processes --------------------------------------------------------------------------

    async def run(
        self,
        host: str,
        *argv: str,
        check: bool = True,
        stdin: str = "",
        timeout: float = 60.0 * SLOWNESS,  # noqa: ASYNC109  (a bound for every command, not the caller's)
    ) -> Completed:
        """Run a command in *host* to its end.

        Raises :exc:`LabError` when it exits with another status than 0 (unless *check* is off)
        or takes longer than *timeout* seconds.
        """
        with trio.move_on_after(timeout):
            done = await trio.run_process(
                process.enter(self.namespace(host), argv),
                stdin=stdin.encode(),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env={**os.environ, **self._environment(host)},
            )
            result = Completed(done.returncode, done.stdout.decode(), done.stderr.decode())
            if check and done.returncode:
                raise LabError(
                    f"{' '.join(argv)} on {host} ended with status {done.returncode}:"
                    f" {(result.err or result.out).strip()}"
                )
            return result
        raise LabError(f"{' '.join(argv)} on {host} did not end within {timeout:g} s")

    async def start(
        self, host: str, name: str, argv: list[str], *, ready: Ready | None = None
    ) -> None:
        """Start a process in *host* that runs until :meth:`stop` or the lab's end.

        Returns when it is *ready*. If it ends by itself, the lab fails with its log's tail.
        """
        assert self._nursery is not None
        ready = ready or Ready()
        log = self.log(host, name)
        environment = self._environment(host)
        async with Notifications(self.directory / f"{host}-{name}.notify") as notifications:
            if ready.notify:
                environment["NOTIFY_SOCKET"] = str(notifications.path)
            started = await self._spawn(host, name, argv, environment)
            born = process.birth(started.pid)
            self.state.processes.append(Started(host, name, started.pid, born or 0, str(log)))
            self.state.save()
            await process.wait_ready(
                started,
                f"{name} on {host}",
                ready,
                namespace=self.namespace(host),
                log=log,
                notifications=notifications if ready.notify else None,
            )
        self._running[host, name] = started
        self._nursery.start_soon(self._supervise, host, name, started)

    async def _spawn(
        self, host: str, name: str, argv: list[str], environment: dict[str, str]
    ) -> Running:
        namespace, home, log = self.namespace(host), self.home(host, name), self.log(host, name)
        home.mkdir(exist_ok=True)
        # Where importing M2M's programs takes seconds, it would be most of what a lab takes.
        if SLOWNESS > 1 and (module := programs.module(argv)) is not None:
            return process.fork(
                forkserver.shared(), host, name, namespace, module,
                home=home, log=log, env=environment,
            )  # fmt: skip
        return await process.spawn(host, name, namespace, argv, home=home, log=log, env=environment)

    async def _supervise(self, host: str, name: str, running: Running) -> None:
        status = await running.wait()
        self.state.processes = [p for p in self.state.processes if p.pid != running.pid]
        self.state.save()
        if running.pid not in self._ending:
            raise LabError(
                f"{name} on {host} ended with status {status}:\n"
                f"{process.tail(self.log(host, name))}"
            )

    async def stop(self, host: str, name: str, number: int = signal.SIGTERM) -> None:
        """End a process with a signal (``SIGKILL`` for a crash); returns when it is gone."""
        running = self._running.pop((host, name))
        self._ending.add(running.pid)
        running.send_signal(number)
        await running.wait()

    def _environment(self, host: str) -> dict[str, str]:
        return state.environment(self.name, host)

    # -- M2M --------------------------------------------------------------------------------

    # As m2mctl asks, without the time that it takes to start. Each raises M2MError when the
    # agent of *host* does not answer, or not to that.

    async def sessions(self, host: str) -> list[SessionInfo]:
        """All sessions at *host*."""
        socket = self.control_socket(host)
        items = await trio.to_thread.run_sync(lambda: list(ask(socket, AskSessions())))
        return [item.session for item in items if isinstance(item, SessionItem)]

    async def sessions_left(self, patience: float) -> int:
        """How many sessions hosts have still, after at most so many s of waiting for none; -1: they
        could not be asked in that time."""
        left = -1
        with trio.move_on_after(patience):
            while left:
                found = 0
                for host, _ in self.topology.with_role():
                    found += len(await self.sessions(host))
                left = found
                if left:
                    await trio.sleep(_LOOK)
        return left

    async def end(self, host: str, session: str) -> None:
        """Have *host* tear this session down, along its whole path."""
        socket = self.control_socket(host)
        await trio.to_thread.run_sync(lambda: list(ask(socket, End(session))))

    async def path(self, host: str, session: str) -> PathInfo:
        """The path of a session of *host*, as its agent can tell it now."""
        return (await self._ask(host, AskPath(session), PathItem)).path

    async def stats(self, host: str) -> Stats:
        """The counters of the agent of *host*."""
        return (await self._ask(host, AskStats(), StatsItem)).stats

    async def policy(self, host: str) -> PolicyInfo:
        """The policy in force at *host*."""
        return (await self._ask(host, AskPolicy(), PolicyItem)).policy

    async def _ask(self, host: str, request: Request, kind: type[_Answer]) -> _Answer:
        socket = self.control_socket(host)
        return await trio.to_thread.run_sync(lambda: one(socket, request, kind))

    async def load_policy(self, text: str) -> None:
        """Give the policy server another policy file."""
        policy = self.topology.policy
        assert policy is not None
        self._policy_file.write_text(text)
        await self.run(
            policy.host, programs.tool("m2m-policy"), "load", str(self._policy_file),
            "--server", self.address(policy.host), "--key-file", str(self._key),
        )  # fmt: skip
