"""The pins of one agent, ``/sys/fs/bpf/m2m/<agent>/``: what stays when the agent goes.

Every map of every object is pinned by its name. Loading an object takes over those that are there;
so a restarted agent has its predecessor's tables, and all its objects share theirs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from pathlib import Path

from m2m.datapath import DatapathError
from m2m.datapath._bpf import BpfError, Map, Object
from m2m.errors import ConfigError, UnsupportedHost

__all__ = ["PINS", "Pins", "directory_of", "read_object"]

PINS = Path("/sys/fs/bpf/m2m")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")


def directory_of(name: str) -> Path:
    """Where the agent *name* keeps its pins. The BPF file system allows no dots in names."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"an agent cannot be called {name!r}: use letters, digits, '_', '-' and '.',"
            " 63 characters at most (--name)"
        )
    return PINS / name.replace(".", ":")


def read_object(source: Path) -> Object:
    """A compiled BPF object, not loaded yet. Raises :exc:`UnsupportedHost`."""
    try:
        return Object(source)
    except BpfError as error:
        raise UnsupportedHost(
            f"{source} is missing or no BPF object ({error.strerror}); build it:"
            " pip install -e . (or: sudo make setup)"
        ) from error


class Pins:
    """Held by one agent at a time."""

    def __init__(self, name: str) -> None:
        """Raises :exc:`DatapathError` when another agent of this name is running."""
        self.directory = directory_of(name)
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            PINS.chmod(0o700)
            self._lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise UnsupportedHost(
                f"{self.directory} cannot be made ({error.strerror}); run the agent as root, with"
                " the BPF file system mounted on /sys/fs/bpf"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise DatapathError(
                f"another agent called {name} is running; stop it, or give this one another name"
                " (--name)"
            ) from None

    def path(self, pin: str) -> Path:
        return self.directory / pin

    def names(self) -> list[str]:
        return sorted(os.listdir(self.directory))

    def pinned_map(self, name: str) -> Map | None:
        try:
            return Map.pinned(self.path(name))
        except BpfError:
            return None

    def load(self, source: Path, sizes: dict[str, int]) -> Object:
        """Load a BPF object with the pinned maps, and pin those that were not.

        *sizes* are the entries of maps that are made anew. Raises :exc:`UnsupportedHost`.
        """
        loaded = read_object(source)
        fresh = []
        try:
            for name in loaded.map_names():
                existing = self.pinned_map(name)
                if existing is not None:
                    loaded.reuse(name, existing)
                    existing.close()
                    continue
                fresh.append(name)
                if name in sizes:
                    loaded.set_max_entries(name, sizes[name])
            loaded.load()
            for name in fresh:
                loaded.map(name).pin(self.path(name))
        except BpfError as error:
            loaded.close()
            raise UnsupportedHost(
                f"the kernel refuses the BPF programs of {source.name}: {_in_short(error)}"
            ) from error
        return loaded

    def unpin(self, *names: str) -> None:
        for name in names:
            self.path(name).unlink(missing_ok=True)

    def replace(self, name: str, program_or_link: object) -> None:
        """Pin under a name that may be in use."""
        self.unpin(name)
        program_or_link.pin(self.path(name))  # type: ignore[attr-defined]

    def release(self, *, keep: bool) -> None:
        """Let the next agent of this name come; without *keep* nothing stays."""
        if self._lock < 0:
            return
        if not keep:
            self.unpin(*self.names())
            self.directory.rmdir()
            with contextlib.suppress(OSError):  # other agents have theirs there
                PINS.rmdir()
        os.close(self._lock)
        self._lock = -1


def _in_short(error: BpfError) -> str:
    """One line of what libbpf has said; after the verifier's log, that is its verdict."""
    what, *said = str(error.strerror).splitlines()
    if not said:
        return what
    ends = (at for at, line in enumerate(said) if at and line.startswith("processed "))
    end = next(ends, None)
    reason = said[0] if end is None else said[end - 1]
    return f"{what} ({reason.removeprefix('libbpf: ')})"
