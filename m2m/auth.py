"""The domain key: who may speak to whom.

All hosts of one domain share a secret file. Every control message and every frame of the policy
channel carries a truncated HMAC-SHA256 under it (RFC 2104; 16 bytes, as RFC 4868 truncates), so
a message from outside the domain changes nothing.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from pathlib import Path

from m2m._hmac import Hmac
from m2m.errors import ConfigError

__all__ = ["KEY_SIZE", "MAC_SIZE", "DomainKey"]

KEY_SIZE = 32
"""Bytes a key file must have at least, and that :meth:`DomainKey.generate` writes."""

MAC_SIZE = 16
"""Bytes of a message authentication code."""

_MAX_FILE = 4096  # a key file that is larger is some other file, named by mistake
_WELL_KNOWN = b"m2m: everybody knows this key, and it protects nothing."


class DomainKey(Hmac):
    """A secret that the hosts of one domain share. Never shown: not in logs, not in ``repr``."""

    __slots__ = ("_secret", "is_insecure")

    is_insecure: bool
    """Whether this is the key that everybody knows (``--insecure``)."""

    def __init__(self, secret: bytes) -> None:
        """Use *secret*, at least :data:`KEY_SIZE` bytes. Raises :exc:`ConfigError`."""
        if len(secret) < KEY_SIZE:
            raise ConfigError(
                f"the domain key has {len(secret)} bytes but needs at least {KEY_SIZE}: "
                "make one with `m2m-policy keygen FILE`"
            )
        self._secret = secret
        self.is_insecure = False

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DomainKey:
        """Read the key file at *path*.

        Raises :exc:`ConfigError` when it cannot be read, is too short or too long to be a key,
        or can be read or written by anybody but its owner.
        """
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                mode = stat.S_IMODE(status.st_mode)
                if not stat.S_ISREG(status.st_mode):
                    raise ConfigError(f"key file {os.fspath(path)} is not a regular file")
                if mode & 0o077:
                    raise ConfigError(
                        f"key file {os.fspath(path)} has mode {mode:04o}, open to others than its "
                        f"owner: run `chmod 600 {os.fspath(path)}`"
                    )
                secret = file.read(_MAX_FILE + 1)
        except OSError as error:
            raise ConfigError(
                f"cannot read key file {os.fspath(path)}: {error.strerror}; make one with "
                f"`m2m-policy keygen {os.fspath(path)}` and copy it to every host of the domain"
            ) from error
        if not KEY_SIZE <= len(secret) <= _MAX_FILE:
            size = f"more than {_MAX_FILE}" if len(secret) > _MAX_FILE else f"{len(secret)}"
            raise ConfigError(
                f"key file {os.fspath(path)} has {size} bytes, and a key has {KEY_SIZE} to "
                f"{_MAX_FILE}: make one with `m2m-policy keygen FILE`"
            )
        return cls(secret)

    @classmethod
    def generate(cls, path: str | os.PathLike[str]) -> DomainKey:
        """Write a new random key to *path* (mode 0600), which must not exist yet.

        Raises :exc:`ConfigError` when it exists or cannot be written.
        """
        secret = secrets.token_bytes(KEY_SIZE)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError as error:
            raise ConfigError(
                f"{os.fspath(path)} exists already and is not overwritten: remove it first, "
                "or name another file"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"cannot write key file {os.fspath(path)}: {error.strerror}"
            ) from error
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(secret)
        except OSError as error:
            Path(path).unlink(missing_ok=True)  # half a key would only confuse the next reader
            raise ConfigError(
                f"cannot write key file {os.fspath(path)}: {error.strerror}"
            ) from error
        return cls(secret)

    @classmethod
    def insecure(cls) -> DomainKey:
        """The key that everybody knows, for a laboratory; its :attr:`is_insecure` is true."""
        key = cls(_WELL_KNOWN)
        key.is_insecure = True
        return key

    def derive(self, *context: bytes) -> DomainKey:
        """Another key, bound to *context* (each part counts with its length).

        Whoever lacks this key cannot compute it, and it tells nothing of this one.
        """
        whole = b"".join(len(part).to_bytes(4, "big") + part for part in context)
        key = DomainKey(hmac.digest(self._secret, b"m2m derive" + whole, "sha256"))
        key.is_insecure = self.is_insecure
        return key

    def __repr__(self) -> str:
        return "<DomainKey, insecure>" if self.is_insecure else "<DomainKey>"

    def __reduce__(self) -> str:
        raise TypeError("a DomainKey is not to be pickled or copied into anything that is stored")
