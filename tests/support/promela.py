"""Checks a Promela model with spin: compiles a variant of it, searches, and tells what was found.

A variant is a model file and the macros it is compiled with. The search is exhaustive within a
bound on memory and time; a search that reaches a bound is an error, never a proof.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

MEMORY = 2000  # MB
DEPTH = 1_000_000  # steps of the longest path
REPLAY = 20  # s, for one counterexample


class CheckError(Exception):
    """The model could not be checked to its end: neither proved nor refuted."""


class Found(NamedTuple):
    """What a search came to."""

    failure: str | None  # the property that does not hold, as spin words it; None: all hold
    trace: list[str]  # the counterexample, a line a message; empty when all hold
    states: int
    seconds: float


def check(
    model: Path, defines: Mapping[str, object], *, shortest: bool = False, seconds: float = 100
) -> Found:
    """Search all states of *model* compiled with *defines*.

    Assertions and deadlocks; and, as models here have no ``progress`` labels, any run that does
    not end. With *shortest*, by breadth first: no look at endless runs, but the counterexample
    is a shortest one. Raises :class:`CheckError` when the search is not complete after *seconds*
    or in :data:`MEMORY`.
    """
    macros = [f"-D{name}={value}" for name, value in defines.items()]
    with tempfile.TemporaryDirectory(prefix="m2m-model-") as name:
        folder = Path(name)
        _run(["spin", *macros, "-a", str(model)], folder)
        # A counterexample is near; what costs is to compile.
        kind = ["-O0", "-DSAFETY", "-DBFS"] if shortest else ["-O1", "-DNP"]
        _run(["gcc", "-w", *kind, f"-DMEMLIM={MEMORY}", "-o", "pan", "pan.c"], folder)
        options = [] if shortest else ["-l"]
        try:
            said = _run(["./pan", f"-m{DEPTH}", *options], folder, seconds)
        except subprocess.TimeoutExpired:
            raise CheckError(f"{model.name} is not searched through after {seconds:g} s") from None
        trails = sorted(folder.glob("*.trail"))
        if "errors: 0" not in said and not trails:
            raise CheckError(f"spin did not search {model.name} through:\n{said}")
        if "Search not completed" in said and not trails:
            raise CheckError(f"{model.name} does not fit in {MEMORY} MB or {DEPTH} steps:\n{said}")
        states = re.search(r"(\d+) states, stored", said)
        time = re.search(r"elapsed time ([\d.e+-]+) seconds", said)
        assert states is not None
        assert time is not None
        failure = re.search(r"pan:\d+: (.*?) \(at depth", said) if trails else None
        return Found(
            failure and failure[1],
            _trace(model, macros, trails[0], folder) if trails else [],
            int(states[1]),
            float(time[1]),
        )


def _trace(model: Path, macros: list[str], trail: Path, folder: Path) -> list[str]:
    """What the model printed on its way into the failure."""
    trail.write_text(_without_claim(trail.read_text()))
    said = _run(["spin", "-T", "-k", trail.name, *macros, str(model)], folder, REPLAY)
    lines: list[str] = []
    for line in said.splitlines():
        if line.startswith(("spin:", "#processes")):
            break
        lines.append(line)
    return lines


def _without_claim(trail: str) -> str:
    """The search for endless runs adds a process 0, which a replay does not have."""
    lines = trail.splitlines()
    if "-2:" not in lines[0]:
        return trail
    kept = [lines[1]]
    for line in lines[2:]:
        step, process, transition = line.split(":")
        if int(step) < 0:
            kept.append(line)
        elif int(process) > 0:
            kept.append(f"{step}:{int(process) - 1}:{transition}")
    return "\n".join(kept) + "\n"


def _run(command: list[str], folder: Path, seconds: float | None = 60) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False
    )
    if done.returncode not in (0, 1) or "rror: syntax" in done.stdout:
        raise CheckError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}")
    return done.stdout + done.stderr
