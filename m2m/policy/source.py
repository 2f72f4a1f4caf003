"""The text of a policy file, places in it, and the error that points at one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from m2m.errors import ConfigError, M2MError

__all__ = ["Place", "PolicyError", "Source", "shown"]

_COMMENT = re.compile(r"#[^\n]*")
_TAB = 4
_WINDOW = 100  # characters of a line that an error shows
_SHOWN = 60  # characters of a found word that a message repeats


class Place(NamedTuple):
    """A position in a policy file; both count from 1, columns in characters."""

    line: int
    column: int


class Source:
    """A policy file's name and text.

    A byte order mark is dropped and every line ending is one newline, so that places mean the
    same wherever the file was written.
    """

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text.removeprefix("\ufeff").replace("\r\n", "\n")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Source:
        """The file at *path*, which must be UTF-8. Raises :exc:`ConfigError`."""
        name = os.fspath(path)
        try:
            return cls(name, Path(path).read_bytes().decode())
        except OSError as error:
            raise ConfigError(f"cannot read policy file {name}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"policy file {name} is not UTF-8 text: byte {error.start} is "
                f"0x{error.object[error.start]:02x}; save it as UTF-8"
            ) from error

    def line(self, number: int) -> str:
        """One line of the text, without its newline; empty behind the end."""
        lines = self.text.split("\n")
        return lines[number - 1] if 0 < number <= len(lines) else ""

    def extract(self, start: int, end: int) -> str:
        """What stands from offset *start* to *end*, on one line and without comments."""
        return " ".join(_COMMENT.sub("", self.text[start:end]).split())


class PolicyError(M2MError):
    """Something in a policy file is wrong.

    ``FILE:3:17: expected ..., found ...: what to do``, then the line itself and a caret below
    the column.
    """

    def __init__(
        self, source: Source, place: Place, expected: str, found: str, advice: str = ""
    ) -> None:
        self.file = source.file
        self.place = place
        self.expected = expected
        self.found = found
        self.advice = advice
        self._source_line = _printable(source.line(place.line))
        super().__init__(source.file, place, expected, found, advice)

    @property
    def line(self) -> int:
        return self.place.line

    @property
    def column(self) -> int:
        return self.place.column

    @property
    def sentence(self) -> str:
        """The message alone, without place and source line."""
        advice = f": {self.advice}" if self.advice else ""
        return f"expected {self.expected}, found {self.found}{advice}"

    def __str__(self) -> str:
        # A window of the line, so that the caret stays on the screen.
        start = max(0, self.column - _WINDOW // 2) if len(self._source_line) > _WINDOW else 0
        part = self._source_line[start : start + _WINDOW]
        before = self._source_line[start : self.column - 1]
        caret = " " * len(before.expandtabs(_TAB)) + "^"
        where = f"{self.file}:{self.line}:{self.column}"
        return f"{where}: {self.sentence}\n    {part.expandtabs(_TAB)}\n    {caret}"


def shown(text: str) -> str:
    """A word of the file as a message repeats it: quoted, printable, not endless."""
    cut = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    return f"'{_printable(cut)}'"


def _printable(text: str) -> str:
    """*text* without anything that a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
