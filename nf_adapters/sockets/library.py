"""The preload library on this machine, and whether a proxy would get it."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from nf_adapters.program import LibraryError, Program, Verdict, find

__all__ = ["BUILT", "NAME", "calls_sockets", "examine", "installed", "preload"]

BUILT = Path(__file__).with_name("libm2m-sockets.so")
"""Where setup.py puts it."""

NAME = BUILT.name
"""By this name alone the loader finds it once it is installed."""

_SYSTEM = (
    *(Path(place, sysconfig.get_config_var("MULTIARCH") or "") for place in ("/lib", "/usr/lib")),
    Path("/lib64"), Path("/usr/lib64"), Path("/lib"), Path("/usr/lib"),
)  # fmt: skip

_BEGINS = (b"\0connect\0",)
_ACCEPTS = (b"\0accept\0", b"\0accept4\0")


def installed() -> Path | None:
    """Where ``make install-sockets`` has put it, for programs that the loader is strict with."""
    return next((place / NAME for place in _SYSTEM if (place / NAME).exists()), None)


def preload() -> str:
    """What LD_PRELOAD has to be: a name where it is installed, else a path.

    Raises :exc:`LibraryError` when it is nowhere.
    """
    if (found := installed()) is not None:
        if not BUILT.exists() or found.read_bytes() == BUILT.read_bytes():
            return NAME
        raise LibraryError(f"{found} is of another version: sudo make install-sockets")
    if not BUILT.exists():
        raise LibraryError(f"{BUILT} is missing: make setup")
    return str(BUILT)


def calls_sockets(program: Program) -> bool:
    """Whether it accepts connections and begins others: a proxy, by all appearances."""
    if program.loader is None:
        return False
    libraries = [
        Path(words[2]) for line in program.listed().splitlines()
        if len(words := line.split()) > 2 and words[1] == "=>" and _is_own(words[0])
    ]  # fmt: skip
    names = b"".join(path.read_bytes() for path in (program.path, *libraries) if path.exists())
    return all(any(name in names for name in group) for group in (_BEGINS, _ACCEPTS))


def _is_own(library: str) -> bool:
    """Not the C library, which has every call in it."""
    return not library.startswith(("libc.so", "libpthread.so", "libresolv.so"))


def examine(program: str, *, as_root: bool | None = None) -> Verdict:
    """Whether the sockets of *program* are seen when it is started with the library.

    The program is not run. Raises :exc:`LibraryError` when there is no such program.
    """
    about = find(program)
    findings = [f"{program} is {about.path}"]
    if about.script is not None:
        findings.append(f"it is a script of {about.script}: what that calls is seen")
        return Verdict(None, tuple(findings))
    if about.loader is None:
        findings.append(
            "it is linked statically: no library can be loaded into it. It can call m2m_nf.h itself"
        )
        return Verdict(False, tuple(findings))
    if not calls_sockets(about):
        findings.append("neither it nor its libraries both accept and begin connections")
        return Verdict(False, tuple(findings))
    findings.append("it accepts connections, and begins others")
    place = installed()
    hindrance = about.hindrance(as_root)
    if hindrance is not None:
        findings.append(f"{hindrance} LD_PRELOAD, but for what is installed")
    if place is None:
        findings.append(
            "processes of it that change their user, as the workers of Squid do, get the library "
            "only where it is installed: sudo make install-sockets"
        )
        return Verdict(hindrance is None, tuple(findings))
    findings.append(f"the library is installed as {place}")
    return Verdict(True, tuple(findings))
