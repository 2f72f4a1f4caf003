"""What a policy server must not forget when it is restarted: an SQLite file.

Policies are kept as their source text, so that a newer compiler can do better with it. Calls
block for as long as the disk takes, a few milliseconds; nothing that the policy server does is
in more of a hurry.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from m2m.errors import ConfigError, M2MError
from m2m.policy.messages import Role
from m2m.protocol.flow import Address

__all__ = ["AgentRecord", "Store", "StoreError", "Version"]

_SCHEMA = 1
_KEPT = 100  # versions; older ones go

_TABLES = """
CREATE TABLE version (
    generation INTEGER PRIMARY KEY,
    file       TEXT NOT NULL,
    text       TEXT NOT NULL,
    stored     REAL NOT NULL       -- s since 1970
) STRICT;
CREATE TABLE served (              -- the file that the server was last started with
    only INTEGER PRIMARY KEY CHECK (only = 0),
    text TEXT NOT NULL
) STRICT;
CREATE TABLE agent (
    name       TEXT PRIMARY KEY,
    role       TEXT NOT NULL,
    addresses  BLOB NOT NULL,      -- 16 bytes each
    last_seen  REAL NOT NULL,      -- s since 1970
    generation INTEGER NOT NULL,   -- the last one it confirmed
    sessions   INTEGER NOT NULL,
    cpu        REAL NOT NULL
) STRICT;
"""


class StoreError(M2MError):
    """The store's file cannot be read or written."""


class Version(NamedTuple):
    """A policy as it was loaded."""

    generation: int
    file: str  # its name, for error messages
    text: str
    stored: float  # s since 1970


class AgentRecord(NamedTuple):
    """What is known of an agent, whether it is connected or not."""

    name: str
    role: Role
    addresses: tuple[Address, ...]
    last_seen: float  # s since 1970
    generation: int = 0  # the last one it confirmed
    sessions: int = 0
    cpu: float = 0.0


class Store:
    """An open store. ``:memory:`` forgets everything when it is closed.

    The file is made with mode 0600 (SQLite gives its companions the same). Raises
    :exc:`ConfigError` when it cannot be used, and every call :exc:`StoreError`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._name = os.fspath(path)
        try:
            if self._name != ":memory:":
                Path(path).parent.mkdir(mode=0o750, parents=True, exist_ok=True)
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                os.fchmod(fd, 0o600)  # it may have been made by other hands
                os.close(fd)
            self._db = sqlite3.connect(path, isolation_level=None)
            with ExitStack() as undo:
                undo.callback(self._db.close)
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._prepare()
                undo.pop_all()
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"cannot use the policy store {self._name}: {error}; name another file, or "
                "delete it if its policies and agents may be forgotten"
            ) from error

    def _prepare(self) -> None:
        (schema,) = self._db.execute("PRAGMA user_version").fetchone()
        if schema == 0:
            self._db.executescript(
                f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {_SCHEMA}; COMMIT;"
            )
        elif schema != _SCHEMA:
            raise ConfigError(
                f"the policy store {self._name} has format {schema}, this M2M writes {_SCHEMA}: "
                "install the newer M2M, or name another file"
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
        except sqlite3.Error as error:
            raise StoreError(
                f"cannot write to the policy store {self._name}: {error}; nothing was changed"
            ) from error

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"cannot read the policy store {self._name}: {error}") from error

    def last(self) -> Version | None:
        """The version in force; None when there never was one."""
        rows = self._rows(
            "SELECT generation, file, text, stored FROM version ORDER BY generation DESC LIMIT 1"
        )
        return Version(*rows[0]) if rows else None

    def add(self, file: str, text: str, *, above: int = 0) -> Version:
        """Make a new version of *text*, its generation above all earlier ones and *above*."""
        with self._transaction() as db:
            (highest,) = db.execute("SELECT coalesce(max(generation), 0) FROM version").fetchone()
            version = Version(max(highest, above) + 1, file, text, time.time())
            db.execute("INSERT INTO version VALUES (?, ?, ?, ?)", version)
            db.execute(
                "DELETE FROM version WHERE generation NOT IN "
                "(SELECT generation FROM version ORDER BY generation DESC LIMIT ?)",
                (_KEPT,),
            )
        return version

    def start_from(self, file: str, text: str) -> Version:
        """The version to serve when the server is started with a file that holds *text*.

        As long as the file is the one of the last start, that is the last version, which
        ``m2m-policy load`` may have brought; a file that has been edited since is a new one.
        """
        served = self._rows("SELECT text FROM served")
        last = self.last()
        if last is None or served != [(text,)]:
            if last is None or last.text != text:
                last = self.add(file, text)
            with self._transaction() as db:
                db.execute("INSERT OR REPLACE INTO served VALUES (0, ?)", (text,))
        return last

    def save_agents(self, agents: Iterable[AgentRecord]) -> None:
        """Remember these agents; each replaces what was known under its name."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO agent VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (one.name, one.role.value, b"".join(one.addresses), one.last_seen,
                     one.generation, one.sessions, one.cpu)
                    for one in agents
                ],
            )  # fmt: skip

    def agents(self) -> list[AgentRecord]:
        """Every agent ever seen, by name."""
        rows = self._rows(
            "SELECT name, role, addresses, last_seen, generation, sessions, cpu "
            "FROM agent ORDER BY name"
        )
        return [
            AgentRecord(
                name, Role(role),
                tuple(packed[at : at + 16] for at in range(0, len(packed), 16)), *rest,
            )
            for name, role, packed, *rest in rows
        ]  # fmt: skip

    def close(self) -> None:
        """Close the file. What was stored is on disk already."""
        self._db.close()
