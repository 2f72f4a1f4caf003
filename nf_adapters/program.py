"""What a program is, as far as that can be told without running it: whether the loader (ld.so)
would give it a library of ours."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import NamedTuple

from m2m.errors import M2MError

__all__ = ["LibraryError", "Program", "Verdict", "find"]

_FIRST = 512 << 10  # bytes of a file in which its program headers and interpreter are


class LibraryError(M2MError):
    """A library is missing, or a program cannot be served; the message says what to do."""


class Verdict(NamedTuple):
    """Whether a program is served, None where that cannot be told, and all that was found out."""

    served: bool | None
    findings: tuple[str, ...]


class Program(NamedTuple):
    """A program on this machine."""

    path: Path
    script: str | None  # the words of its first line, of a script
    loader: str | None  # its program interpreter; None: a script, or linked statically

    def listed(self, **environment: str) -> str:
        """What the loader says it would load, in that environment."""
        assert self.loader is not None
        done = subprocess.run(
            [self.loader, "--list", str(self.path)], capture_output=True, text=True, check=False,
            env={**os.environ, **environment},
        )  # fmt: skip
        return done.stdout

    def hindrance(self, as_root: bool | None = None) -> str | None:
        """Why the loader would ignore its environment (AT_SECURE, see ld.so(8))."""
        if as_root is None:
            as_root = os.geteuid() == 0
        about = self.path.stat()
        if about.st_mode & stat.S_ISUID and not (as_root and about.st_uid == 0):
            return "it is set-uid: the loader ignores"
        if about.st_mode & stat.S_ISGID and about.st_gid != os.getegid():
            return "it is set-gid: the loader ignores"
        if not as_root:
            try:
                os.getxattr(self.path, "security.capability")
            except OSError:
                return None
            return "it has file capabilities: the loader ignores"
        return None


def find(program: str) -> Program:
    """Look at *program*. Raises :exc:`LibraryError` when there is none, or it may not be read."""
    found = shutil.which(program)
    if found is None:
        raise LibraryError(f"{program} is not on the PATH")
    path = Path(os.path.realpath(found))
    try:
        with path.open("rb") as file:
            head = file.read(_FIRST)
    except OSError as error:
        raise LibraryError(f"{path} cannot be read: {error.strerror}") from error
    if head.startswith(b"#!"):
        words = head[2:].split(b"\n", 1)[0].decode(errors="replace").split()
        return Program(path, " ".join(words), None)
    matched = re.search(rb"(/lib(?:64|32)?/(?:[\w.-]+/)?ld[\w.-]*\.so\.\d+)\0", head)
    is_elf = head.startswith(b"\x7fELF")
    return Program(path, None, matched[1].decode() if is_elf and matched else None)
