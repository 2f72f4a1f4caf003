"""The patched libpcap on this machine, and whether a program would get it."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from m2m.errors import M2MError

__all__ = [
    "INSTALLED",
    "NAMES",
    "LibraryError",
    "Verdict",
    "examine",
    "library_directory",
    "search_path",
]

INSTALLED = Path("/usr/local/lib/m2m")
"""Where ``make install-libpcap`` puts it."""

NAMES = ("libpcap.so.0.8", "libpcap.so.1")
"""The names a program can have been linked with: Debian's, upstream's."""

_MARK = b"M2M_PCAP_ONCE"  # what no other libpcap has in it
_FIRST = 512 << 10  # bytes of a file in which its program headers and interpreter are
_RESOLVED = re.compile(r"^\s*(libpcap\.so\S*) => (\S+)", re.MULTILINE)


class LibraryError(M2MError):
    """There is no patched libpcap, or a program cannot be served; the message says what to do."""


class Verdict(NamedTuple):
    """Whether a program is served, None where that cannot be told, and all that was found out."""

    served: bool | None
    findings: tuple[str, ...]


def library_directory(places: Iterable[Path] | None = None) -> Path:
    """Where the patched libpcap is: installed, or built by ``make libpcap``.

    Raises :exc:`LibraryError` when it is nowhere.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    looked = [INSTALLED, cache / "m2m/libpcap/lib"] if places is None else list(places)
    for place in looked:
        if all(is_patched(place / name) for name in NAMES):
            return place
    where = " nor ".join(map(str, looked))
    raise LibraryError(f"there is no patched libpcap in {where}: run make libpcap")


def search_path(directory: Path) -> str:
    """What LD_LIBRARY_PATH has to be: *directory* before all that is there already."""
    given = os.environ.get("LD_LIBRARY_PATH")
    return f"{directory}:{given}" if given else str(directory)


def is_patched(path: Path) -> bool:
    """Whether this file is a libpcap that restores supersessions."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            return data.find(_MARK) >= 0
    except (OSError, ValueError):
        return False


def examine(program: str, directory: Path, *, as_root: bool | None = None) -> Verdict:
    """Whether *program* captures through the libpcap of *directory* when it is started with it.

    The program is not run. Raises :exc:`LibraryError` when there is no such program.
    """
    found = shutil.which(program)
    if found is None:
        raise LibraryError(f"{program} is not on the PATH")
    path = Path(os.path.realpath(found))
    findings = [f"{program} is {path}"]
    head = _head(path)
    if head.startswith(b"#!"):
        words = head[2:].split(b"\n", 1)[0].decode(errors="replace").split()
        findings.append(
            f"it is a script of {' '.join(words)}: what that loads later cannot be told; any "
            "module that is linked with libpcap gets the patched one"
        )
        return Verdict(None, tuple(findings))
    loader = _loader(head)
    if loader is None:
        findings.append("it is linked statically: if it captures, then with a libpcap of its own")
        return Verdict(False, tuple(findings))
    if hindrance := _hindrance(path, os.geteuid() == 0 if as_root is None else as_root):
        installed = directory == INSTALLED
        findings.append(hindrance + (", but it finds the installed library" if installed else ""))
        if not installed:
            findings.append("run it as root without these rights, or: sudo make install-libpcap")
            return Verdict(False, tuple(findings))
    return _resolved(path, loader, directory, findings)


def _resolved(path: Path, loader: str, directory: Path, findings: list[str]) -> Verdict:
    """What the loader says it would load."""
    done = subprocess.run(
        [loader, "--list", str(path)], capture_output=True, text=True, check=False,
        env={**os.environ, "LD_LIBRARY_PATH": search_path(directory)},
    )  # fmt: skip
    matched = _RESOLVED.search(done.stdout)
    if matched is None:
        if b"libpcap.so" in path.read_bytes():
            findings.append("it loads libpcap only when it needs it (dlopen), by its usual name")
            return Verdict(True, tuple(findings))
        findings.append(
            "it is not linked with libpcap itself: modules that it loads and that are, get the "
            "patched one"
        )
        return Verdict(None, tuple(findings))
    name, where = matched.groups()
    findings.append(f"it is linked with {name}, and would get {where}")
    if name not in NAMES:
        findings.append(f"there is no patched library of that name, only {' and '.join(NAMES)}")
    elif not is_patched(Path(where)):
        findings.append("that is another one than ours: it was linked with a path of its own")
    else:
        return Verdict(True, tuple(findings))
    return Verdict(False, tuple(findings))


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_FIRST)
    except OSError as error:
        raise LibraryError(f"{path} cannot be read: {error.strerror}") from error


def _loader(head: bytes) -> str | None:
    """The program interpreter of an ELF file (PT_INTERP); None for what has none."""
    matched = re.search(rb"(/lib(?:64|32)?/(?:[\w.-]+/)?ld[\w.-]*\.so\.\d+)\0", head)
    return matched[1].decode() if head.startswith(b"\x7fELF") and matched else None


def _hindrance(path: Path, as_root: bool) -> str | None:
    """Why the loader would ignore LD_LIBRARY_PATH (AT_SECURE, see ld.so(8))."""
    about = path.stat()
    if about.st_mode & stat.S_ISUID and not (as_root and about.st_uid == 0):
        return "it is set-uid: the loader ignores LD_LIBRARY_PATH"
    if about.st_mode & stat.S_ISGID and about.st_gid != os.getegid():
        return "it is set-gid: the loader ignores LD_LIBRARY_PATH"
    if not as_root:
        try:
            os.getxattr(path, "security.capability")
        except OSError:
            return None
        return "it has file capabilities: the loader ignores LD_LIBRARY_PATH"
    return None
