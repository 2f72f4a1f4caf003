"""The mapping by which captures get their supersessions' names: the agent's side of it.

``mapping.h`` says what the file holds, ``publish.h`` how it is written, ``restore.h`` what a reader
makes of it and ``hook.h`` how the patched libpcap does that (``docs/passive-nfs.md``).
"""

from __future__ import annotations

import mmap
import os
import stat
import time
from pathlib import Path

from m2m.errors import M2MError
from nf_adapters.pcap._mapping import MAX_CELLS, MIN_CELLS, Table, lay_out, size_of

__all__ = ["Mapping", "MappingError", "now"]

CELLS_PER_SESSION = 8
"""A middlebox has four tuples per session, and a table that is half empty is quick to search."""


class MappingError(M2MError):
    """The mapping cannot be made; the message says why."""


def now() -> int:
    """The time by which tuples that have come to another session are told apart."""
    return time.time_ns() // 1_000_000 & 0xFFFFFFFF


class Mapping:
    """The file and its table, for the agent alone. ``table`` is a :class:`Table`.

    A reader's file is never resized: another number of sessions makes another file, and tells
    those who have the former one. What is in a former one is not copied: an agent publishes all
    its sessions when it starts.
    """

    def __init__(self, path: Path, sessions: int) -> None:
        """Open the mapping at *path* for as many *sessions*; what a predecessor has left there is
        to be taken over, or taken out, by :meth:`Table.take_over` and :meth:`Table.taken_over`.

        Raises :exc:`MappingError`.
        """
        self.path = path
        cells = MIN_CELLS
        while cells < min(sessions * CELLS_PER_SESSION, MAX_CELLS):
            cells *= 2
        about = os.stat("/proc/thread-self/ns/net")
        netns = (about.st_dev, about.st_ino)
        try:
            former = _open(path)
            if former is not None and (len(former), former.netns) == (cells, netns):
                self.table = former
                return
            self.table = _make(path, cells, *netns)
            if former is not None:
                former.replace()
        except OSError as error:
            raise MappingError(
                f"cannot make the mapping {path}: {error.strerror}; choose another directory with "
                "--run-dir"
            ) from error


def _open(path: Path) -> Table | None:
    """What is there, if it is a mapping of this version and of this user."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or not about.st_size:
            return None
        return Table(mmap.mmap(fd, about.st_size))
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)


def _make(path: Path, cells: int, netns_dev: int, netns_ino: int) -> Table:
    """Readers see the whole file or none. Its group may read it, as it may use the sockets."""
    made = path.with_name(f"{path.name}.new")
    made.unlink(missing_ok=True)
    fd = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    try:
        os.ftruncate(fd, size_of(cells))
        memory = mmap.mmap(fd, size_of(cells))
        lay_out(memory, cells, netns_dev, netns_ino)
    finally:
        os.close(fd)
    os.rename(made, path)
    return Table(memory)
