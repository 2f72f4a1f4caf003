"""Asking an agent on this machine: finding its socket, and one request at a time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from m2m.agent.dialogue import Done, Failed, Item, NfRequest, Request
from m2m.errors import M2MError

__all__ = ["RUN_DIR", "Refusal", "ask", "find_socket", "one"]

RUN_DIR = Path("/run/m2m")

_PATIENCE = 30.0  # s for an answer

Wanted = TypeVar("Wanted")


class Refusal(M2MError):
    """The agent has answered that it cannot; what was asked for has not been done."""


def find_socket(
    run_dir: Path | None,
    agent: str | None,
    environment: Mapping[str, str] = os.environ,
    ending: str = ".sock",
) -> Path:
    """The control socket of *agent*, or of the only agent that runs here.

    ``M2M_SOCKET`` names it for commands inside a lab's host. With the *ending* ``.nf`` it is the
    socket for network functions. Raises :exc:`M2MError` that says which agents there are.
    """
    if agent is None and run_dir is None and "M2M_SOCKET" in environment:
        return Path(environment["M2M_SOCKET"]).with_suffix(ending)
    where = run_dir or RUN_DIR
    if agent is not None and (path := where / f"{agent}{ending}").exists():
        return path
    try:
        sockets = sorted(path for path in where.iterdir() if path.suffix == ending)
    except FileNotFoundError:
        sockets = []
    except PermissionError as error:
        raise M2MError(f"{where} may not be read: run m2mctl as root") from error
    alive = [path for path in sockets if _answers(path)]
    names = ", ".join(path.stem for path in alive)
    if not alive:
        raise M2MError(
            f"no agent runs here (none answers in {where}): start one with m2m-agent, or name "
            "its directory with --run-dir"
        )
    if agent is not None:
        raise M2MError(f"there is no agent {agent!r} in {where}; there is {names}")
    if len(alive) > 1:
        raise M2MError(f"several agents run here: choose one with --agent: {names}")
    return alive[0]


def ask(path: Path, request: Request | NfRequest) -> Iterator[Item]:
    """What the agent at *path* answers, up to its last line.

    Raises :exc:`M2MError` when it cannot be reached or goes away, :exc:`Refusal` when it says
    that it failed.
    """
    decoder = msgspec.json.Decoder[Item](Item)
    with _connected(path) as connection:
        connection.sendall(msgspec.json.encode(request) + b"\n")
        with connection.makefile("rb") as lines:
            for line in lines:
                item = decoder.decode(line)
                if isinstance(item, Failed):
                    raise Refusal(item.why)
                if isinstance(item, Done):
                    return
                yield item
    raise M2MError(f"the agent at {path} ended before it had answered")


def one(path: Path, request: Request, kind: type[Wanted]) -> Wanted:
    """The one item, of type *kind*, that answers *request*. Raises as :func:`ask` does."""
    for item in ask(path, request):
        if isinstance(item, kind):
            return item
    raise M2MError(f"the agent at {path} answered something else: is it of another version?")


@contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_PATIENCE)
            connection.connect(os.fspath(path))
            yield connection
    except PermissionError as error:
        raise M2MError(f"{path} may not be opened: run m2mctl as root") from error
    except TimeoutError as error:
        raise M2MError(f"the agent at {path} has not answered for {_PATIENCE:g} s") from error
    except (ConnectionRefusedError, FileNotFoundError) as error:
        raise M2MError(f"no agent answers at {path}: is it running?") from error
    except OSError as error:
        raise M2MError(f"the agent at {path} went away: {error.strerror}") from error


def _answers(path: Path) -> bool:
    try:
        with _connected(path):
            return True
    except M2MError:
        return False
