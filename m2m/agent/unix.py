"""A Unix socket to listen on, in the place of one that a killed agent has left."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
from pathlib import Path

import trio

from m2m.errors import ConfigError

__all__ = ["bind", "listen", "unlink_own"]


async def listen(path: Path) -> trio.SocketListener:
    """Raises :exc:`ConfigError` when somebody answers there, or when it cannot be made."""
    unix = await bind(path, socket.SOCK_STREAM)
    unix.listen(16)
    return trio.SocketListener(unix)


async def bind(path: Path, kind: int, group: str | None = None) -> trio.socket.SocketType:
    """A socket of this *kind* (``SOCK_STREAM``, ...) to be listened on, for its owner and *group*.

    Raises as :func:`listen` does.
    """
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        _clear(path, kind)
        unix = trio.socket.socket(socket.AF_UNIX, kind)
        try:
            await unix.bind(os.fspath(path))
            os.chmod(path, 0o660)
            if group is not None:
                _give(path, group)
        except BaseException:
            unix.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"cannot make the control socket {path}: {error.strerror or error}; choose another "
            "directory with --run-dir"
        ) from error
    return unix


def unlink_own(path: Path, inode: int) -> None:
    """Take a socket's name away, unless it is another agent's by now."""
    try:
        if os.stat(path).st_ino == inode:
            os.unlink(path)
    except FileNotFoundError:
        pass


def _give(path: Path, group: str) -> None:
    try:
        shutil.chown(path, group=group)
    except LookupError:
        raise ConfigError(f"there is no group {group} to give {path} to") from None
    except PermissionError:
        raise ConfigError(
            f"{path} cannot be given to the group {group}: run the agent with CAP_CHOWN, or as a "
            "member of it (SupplementaryGroups= of systemd)"
        ) from None
    # To open it one has to get there; the other files say themselves who may.
    path.parent.chmod(path.parent.stat().st_mode | stat.S_IXOTH)


def _clear(path: Path, kind: int) -> None:
    """Remove what an agent that was killed has left. Raises :exc:`ConfigError` when alive."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(
                f"{path} is in the way of the control socket and is no socket: remove it"
            )
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        failed = probe.connect_ex(os.fspath(path))
    if failed in (0, errno.EAGAIN):  # EAGAIN: alive, with a full queue
        raise ConfigError(
            f"an agent answers on {path} already: stop it, or give this one another --name"
        )
    path.unlink(missing_ok=True)
