"""The serving half of a traffic tool on the loopback, for as long as a test needs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def serving(module: str, *arguments: str) -> Iterator[int]:
    """Run ``python -m m2m.lab.traffic.MODULE serve ARGUMENTS 0`` in the block; gives its port."""
    command = [sys.executable, "-m", f"m2m.lab.traffic.{module}", "serve", *arguments, "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said, _, port = server.stdout.readline().rpartition(" ")
        assert said == "listening on"
        try:
            yield int(port)
        finally:
            server.terminate()
