"""Plays scenarios of m2m-lab one after the other, and tells how long each took.

    .venv/bin/python tests/vm/scenarios.py NAME...

All in one process, so that what they need is imported once. Fails when one has failed.
"""

from __future__ import annotations

import sys
import time
import traceback

from m2m.cli import lab

_MOVING = {"handover", "ping-pong", "outage", "server-move", "process-move"}


def play(name: str) -> bool:
    """Whether every check of this scenario held."""
    command = ["demo"] if name == "demo" else ["run", name]
    if name in _MOVING:
        command += ["--moves", "2"]
    try:
        return lab.main(command) == 0
    except Exception:
        traceback.print_exc()
        return False


def main() -> int:
    failed = []
    for name in sys.argv[1:]:
        begin = time.monotonic()
        if not play(name):
            failed.append(name)
        sys.stdout.write(f"== {name}: {time.monotonic() - begin:.0f} s\n")
        sys.stdout.flush()
    if failed:
        sys.stdout.write(f"failed: {' '.join(failed)}\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
