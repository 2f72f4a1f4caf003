"""Files of deeds: written by the agent that hands over, read by the one that takes over."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from m2m.auth import DomainKey
from m2m.errors import M2MError
from m2m.protocol.codec import WireError
from m2m.protocol.deed import Deed, pack_deeds, unpack_deeds

__all__ = ["read", "write"]

_LARGEST = 1 << 24  # bytes; 65535 deeds have fewer


def write(path: Path, key: DomainKey, deeds: Sequence[Deed]) -> None:
    """Make the file, mode 0600, and return when it will survive a crash. Raises :exc:`OSError`,
    also when it exists: it may hold sessions."""
    data = pack_deeds(key, deeds)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _sync_directory(path.parent)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def read(path: Path, key: DomainKey) -> list[Deed]:
    """The deeds in a file. Raises :exc:`M2MError` when it is none of this domain's."""
    try:
        # A pipe that nobody writes to would keep who opens it waiting.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise M2MError(f"{path} is not a regular file")
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise M2MError(f"cannot read the deeds in {path}: {error.strerror}") from error
    if len(data) > _LARGEST:
        raise M2MError(f"{path} has more than {_LARGEST} bytes: it is some other file")
    try:
        return unpack_deeds(key, data)
    except WireError as error:
        raise M2MError(f"{path}: {error}; write it with `m2mctl hand-over`") from error


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
