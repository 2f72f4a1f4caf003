"""Who a host is, whatever its address: the device key, and what is proved with it.

Every agent has an X25519 key pair (RFC 7748). The public half, 32 bytes, is its *device*; hosts of
a chain learn those of both ends when the session is set up. Two hosts that know each other's
device share a secret that nobody else has, and from it a key for each session. With that key an
endpoint that has moved proves that a session is its own.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from m2m.errors import ConfigError

__all__ = ["ANONYMOUS", "DEVICE_SIZE", "KEY_SIZE", "PROOF_SIZE", "Identity", "proof_by"]

DEVICE_SIZE = 32
PROOF_SIZE = 16
KEY_SIZE = 32

ANONYMOUS = bytes(DEVICE_SIZE)
"""No device: nothing can be proved to it, or by it."""

_PEERS = 1024  # whose shared secret, and whose device, is remembered
_SESSIONS = 4096  # whose keys are: both an entry and its answer need one
_BLOCK = 64  # bytes that SHA-256 takes at a time
_INNER, _OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))  # RFC 2104 §2


class Identity:
    """One host's key pair. Never shown: not in logs, not in ``repr``."""

    def __init__(self, secret: bytes) -> None:
        """Use *secret*, :data:`DEVICE_SIZE` random bytes. Raises :exc:`ConfigError`."""
        if len(secret) != DEVICE_SIZE:
            raise ConfigError(f"a device key has {DEVICE_SIZE} bytes, not {len(secret)}")
        self._private = X25519PrivateKey.from_private_bytes(secret)
        self.device: bytes = self._private.public_key().public_bytes_raw()
        self._shared = functools.lru_cache(_PEERS)(self._exchange)
        self._key = functools.lru_cache(_SESSIONS)(self._derive)

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read the key at *path*, or make one there (mode 0600) when there is none.

        Raises :exc:`ConfigError` when it is not such a key, or open to others than its owner.
        """
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return cls(_read(path))
        except OSError as error:
            raise ConfigError(f"cannot write device key {path}: {error.strerror}") from error
        secret = secrets.token_bytes(DEVICE_SIZE)
        with os.fdopen(fd, "wb") as file:
            file.write(secret)
        return cls(secret)

    def prove(self, device: bytes, session: int, content: bytes) -> bytes:
        """:data:`PROOF_SIZE` bytes that only this host and *device* can make of *content*."""
        first, second = self._key(device, session)
        inner, outer = first.copy(), second.copy()
        inner.update(content)
        outer.update(inner.digest())
        return outer.digest()[:PROOF_SIZE]

    def proves(self, device: bytes, session: int, content: bytes, proof: bytes) -> bool:
        """Whether *proof* was made of *content* by *device* for this host (or by this one)."""
        return device != ANONYMOUS and hmac.compare_digest(
            self.prove(device, session, content), proof
        )

    def session_key(self, device: bytes, session: int) -> bytes:
        """The key by which this host and *device* prove things about the session to each other,
        :data:`KEY_SIZE` bytes: to be given away with the session, and never otherwise."""
        return hmac.digest(
            self._shared(device), b"m2m session" + session.to_bytes(8, "big"), "sha256"
        )

    def _derive(self, device: bytes, session: int) -> tuple[hashlib._Hash, hashlib._Hash]:
        """The session's key, as the two hashes of HMAC begin with it (RFC 2104 §4)."""
        key = self.session_key(device, session).ljust(_BLOCK, b"\0")
        return hashlib.sha256(key.translate(_INNER)), hashlib.sha256(key.translate(_OUTER))

    def _exchange(self, device: bytes) -> bytes:
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(device))
        except ValueError:  # a point that shares the same secret with everybody (RFC 7748 §6.1)
            return secrets.token_bytes(DEVICE_SIZE)

    def __repr__(self) -> str:
        return f"<Identity of device {self.device[:4].hex()}>"

    def __reduce__(self) -> str:
        raise TypeError("an Identity is not to be pickled or copied into anything that is stored")


def proof_by(key: bytes, content: bytes) -> bytes:
    """What whoever has the session's *key* can make of *content*."""
    return hmac.digest(key, content, "sha256")[:PROOF_SIZE]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            secret = file.read(DEVICE_SIZE + 1)
    except OSError as error:
        raise ConfigError(f"cannot read device key {path}: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigError(
            f"device key {path} has mode {mode:04o}, open to others than its owner: run "
            f"`chmod 600 {path}`"
        )
    if len(secret) != DEVICE_SIZE:
        raise ConfigError(
            f"device key {path} does not have {DEVICE_SIZE} bytes: remove it, and the agent makes "
            "another at its next start (its live sessions then cannot be rebound)"
        )
    return secret
