"""The patched libpcap on this machine, and whether a program would get it."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable
from pathlib import Path

from nf_adapters.program import LibraryError, Program, Verdict, find

__all__ = [
    "INSTALLED",
    "NAMES",
    "LibraryError",
    "Verdict",
    "captures",
    "examine",
    "library_directory",
    "search_path",
]

INSTALLED = Path("/usr/local/lib/m2m")
"""Where ``make install-libpcap`` puts it."""

NAMES = ("libpcap.so.0.8", "libpcap.so.1")
"""The names a program can have been linked with: Debian's, upstream's."""

_MARK = b"M2M_PCAP_ONCE"  # what no other libpcap has in it
_RESOLVED = re.compile(r"^\s*(libpcap\.so\S*) => (\S+)", re.MULTILINE)


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
    about = find(program)
    findings = [f"{program} is {about.path}"]
    if about.script is not None:
        findings.append(
            f"it is a script of {about.script}: what that loads later cannot be told; any "
            "module that is linked with libpcap gets the patched one"
        )
        return Verdict(None, tuple(findings))
    if about.loader is None:
        findings.append("it is linked statically: if it captures, then with a libpcap of its own")
        return Verdict(False, tuple(findings))
    if hindrance := about.hindrance(as_root):
        installed = directory == INSTALLED
        hindrance += " LD_LIBRARY_PATH"
        findings.append(hindrance + (", but it finds the installed library" if installed else ""))
        if not installed:
            findings.append("run it as root without these rights, or: sudo make install-libpcap")
            return Verdict(False, tuple(findings))
    return _resolved(about, directory, findings)


def captures(program: Program) -> bool:
    """Whether it is linked with libpcap, or names it: a function that captures."""
    if program.loader is None:
        return False
    return _RESOLVED.search(program.listed()) is not None or _names_it(program)


def _names_it(program: Program) -> bool:
    return b"libpcap.so" in program.path.read_bytes()


def _resolved(about: Program, directory: Path, findings: list[str]) -> Verdict:
    """What the loader says it would load."""
    matched = _RESOLVED.search(about.listed(LD_LIBRARY_PATH=search_path(directory)))
    if matched is None:
        if _names_it(about):
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
