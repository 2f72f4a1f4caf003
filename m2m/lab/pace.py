"""How fast this machine is, beside those for which the lab's loads and limits are chosen."""

from __future__ import annotations

from pathlib import Path

__all__ = ["SLOWNESS"]

_EMULATED = "QEMU TCG CPU"  # a processor's model name
_TIMES = 10.0  # measured: what programs of the lab take under it


def _slowness() -> float:
    return _TIMES if _EMULATED in Path("/proc/cpuinfo").read_text() else 1.0


SLOWNESS = _slowness()
"""How many times longer everything takes: more than 1 where the processor is emulated.

The lab waits so many times longer for what must happen, and its loads are so many times lighter;
it forks M2M's programs, so that Python imports them once (:mod:`m2m.lab.forkserver`).
"""
