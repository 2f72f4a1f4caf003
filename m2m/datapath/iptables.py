"""Telling iptables what to do, and why it would not.

By blocking calls: rules are changed rarely, a call takes some 5 ms, and it must run in the calling
thread's network namespace, which a thread of a pool need not be in.
"""

from __future__ import annotations

import subprocess

from m2m.errors import UnsupportedHost

__all__ = ["iptables", "restore"]

_WAIT = "5"  # s for another program's iptables to finish


def iptables(table: str, *arguments: str) -> str | None:
    """None when it has been done, else why not. Raises :exc:`UnsupportedHost` where there is no
    iptables."""
    return _run("iptables", "--wait", _WAIT, "-t", table, *arguments)


def restore(rules: str) -> str | None:
    """The same for whole chains, which replace those of their names in one step."""
    return _run("iptables-restore", "--noflush", "--wait", _WAIT, given=rules)


def _run(*command: str, given: str = "") -> str | None:
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UnsupportedHost(
            f"{command[0]} is missing, with which packets are held and led to proxies; "
            "install iptables"
        ) from None
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(lines) if lines else f"{command[0]}: status {done.returncode}"
