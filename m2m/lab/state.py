"""What a lab leaves in files: enough to find it, show it, enter it, end it, whoever started it.

All of it is under ``/run/m2m-lab``: ``LAB.json`` says what belongs to the lab, ``LAB/`` holds its
sockets, logs and configuration, ``LAB.lock`` keeps two processes from building one lab.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from m2m.lab import netns, process, programs
from m2m.lab.netns import LabError
from m2m.lab.process import Started

RUN = Path("/run/m2m-lab")
PINS = Path("/sys/fs/bpf/m2m")


class State(msgspec.Struct):
    """What a lab's state file holds; enough to find, show and end all that belongs to it."""

    name: str
    roles: dict[str, str | None]  # of every host
    addresses: dict[str, str]
    processes: list[Started] = []
    up: bool = False  # everything was ready, and the lab was left running

    @classmethod
    def load(cls, lab: str) -> State:
        """Raises :exc:`LabError` when there is no such lab."""
        try:
            return msgspec.json.decode(_state_file(lab).read_bytes(), type=cls)
        except FileNotFoundError:
            known = ", ".join(names()) or "none"
            raise LabError(f"there is no lab {lab!r}; labs here: {known}") from None

    def save(self) -> None:
        new = _state_file(self.name).with_suffix(".new")
        new.write_bytes(msgspec.json.encode(self))
        new.rename(_state_file(self.name))


def directory(lab: str) -> Path:
    """Where a lab keeps its sockets, logs and configuration."""
    return RUN / lab


def _state_file(lab: str) -> Path:
    return RUN / f"{lab}.json"


def names() -> list[str]:
    """The labs that are up, or have left something behind."""
    return sorted(path.stem for path in RUN.glob("*.json"))


def agent_name(lab: str, host: str) -> str:
    """The ``--name`` of a host's agent: agents of two labs share one machine."""
    return f"{lab}-{host}"


def control_socket(lab: str, host: str) -> Path:
    """The socket by which ``m2mctl`` talks to a host's agent."""
    return directory(lab) / "run" / f"{agent_name(lab, host)}.sock"


@contextmanager
def exclusive(lab: str) -> Iterator[None]:
    """One process at a time builds or ends a lab. Raises :exc:`LabError` naming the other."""
    RUN.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (RUN / f"{lab}.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise LabError(
                f"lab {lab!r} is in use by process {lock.read().strip()}; end that one first"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


async def take_down(lab: str) -> None:
    """End a detached lab, or clean up after a killed one. Raises :exc:`LabError` if none is."""
    State.load(lab)
    with exclusive(lab):
        await clean(lab)


async def clean(lab: str) -> None:
    """Take away everything that the state file or the namespaces' names say is the lab's."""
    try:
        state = State.load(lab)
    except (LabError, msgspec.DecodeError):
        state = State(name=lab, roles={}, addresses={})
    pids: dict[int, int | None] = {started.pid: started.birth for started in state.processes}
    # A process that was started a moment before a kill is in no state file, but in a namespace.
    for pid in netns.processes_inside(lab):
        pids.setdefault(pid, process.birth(pid))
    await process.end(pids)
    await netns.delete(lab)
    for host in state.roles:
        shutil.rmtree(PINS / agent_name(lab, host), ignore_errors=True)
    with suppress(OSError):  # other agents have theirs there
        os.rmdir(PINS)
    shutil.rmtree(directory(lab), ignore_errors=True)
    _state_file(lab).unlink(missing_ok=True)


def check_possible(lab: str) -> None:
    """Raise :exc:`LabError` when this is not root, or the lab was left running and still runs."""
    if os.geteuid() != 0:
        raise LabError("a lab makes network namespaces, which needs root; run it with sudo")
    try:
        state = State.load(lab)
    except (LabError, msgspec.DecodeError):
        return
    if state.up and any(started.alive for started in state.processes):
        raise LabError(f"lab {lab!r} is up; end it first: m2m-lab down {lab}")


def environment(lab: str, host: str) -> dict[str, str]:
    """What a command run in a host finds in its environment."""
    return {"M2M_SOCKET": str(control_socket(lab, host)), "M2M_LAB": lab, "M2M_HOST": host}


def enter_host(lab: str, host: str, argv: list[str]) -> None:
    """Become *argv* in a host of a lab that is up; does not return."""
    state = State.load(lab)
    if host not in state.roles:
        raise LabError(f"lab {lab!r} has no host {host!r}; it has: {', '.join(state.roles)}")
    path = os.pathsep.join([str(Path(programs.tool("m2mctl")).parent), os.environ["PATH"]])
    variables = {**os.environ, **environment(lab, host), "PATH": path}
    command = process.enter(netns.namespace_path(lab, host), argv)
    os.execvpe(command[0], command, variables)
