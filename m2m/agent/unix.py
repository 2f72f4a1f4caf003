"""A Unix socket to listen on, in the place of one that a killed agent has left."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import trio

from m2m.errors import ConfigError

__all__ = ["listen"]


async def listen(path: Path) -> trio.SocketListener:
    """Raises :exc:`ConfigError` when somebody answers there, or when it cannot be made."""
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        _clear(path)
        unix = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await unix.bind(os.fspath(path))
            os.chmod(path, 0o660)
            unix.listen(16)
        except BaseException:
            unix.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"cannot make the control socket {path}: {error.strerror or error}; choose another "
            "directory with --run-dir"
        ) from error
    return trio.SocketListener(unix)


def _clear(path: Path) -> None:
    """Remove what an agent that was killed has left. Raises :exc:`ConfigError` when alive."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(
                f"{path} is in the way of the control socket and is no socket: remove it"
            )
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        failed = probe.connect_ex(os.fspath(path))
    if failed in (0, errno.EAGAIN):  # EAGAIN: alive, with a full queue
        raise ConfigError(
            f"an agent answers on {path} already: stop it, or give this one another --name"
        )
    path.unlink(missing_ok=True)
