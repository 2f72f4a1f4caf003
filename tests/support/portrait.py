"""A program that says what kind of process it is, and ends as it is told to.

``python -m tests.support.portrait [status N | error | wait]``
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path


def portrait() -> dict[str, object]:
    status = dict(
        line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines()
    )
    open_files = Path("/proc/self/fd")
    return {
        "session": os.getsid(0) == os.getpgid(0) == os.getpid(),
        "namespace": str(Path("/proc/thread-self/ns/net").readlink()),
        "home": os.getcwd(),
        "environment": dict(sorted(os.environ.items())),
        "arguments": sys.argv[1:],
        "signals": {name: status[name] for name in ("SigBlk", "SigIgn", "SigCgt")},
        "files": {fd.name: str(fd.readlink()) for fd in open_files.iterdir() if fd.is_symlink()},
        "umask": status["Umask"],
        "nice": os.nice(0),
        "processors": sorted(os.sched_getaffinity(0)),
    }


def main(argv: Sequence[str]) -> int:
    sys.stdout.write(json.dumps(portrait()) + "\n")
    sys.stdout.flush()
    sys.stderr.write("as an error\n")
    if argv[0] == "error":
        raise LookupError("as it was told to")
    if argv[0] == "wait":
        signal.pause()
    return int(argv[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
