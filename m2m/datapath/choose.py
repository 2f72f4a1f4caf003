"""Which kernel part an agent takes: ``--datapath=auto|ebpf|kmod``."""

from __future__ import annotations

from m2m.datapath import Datapath, DatapathError, Limits, genl, kmod
from m2m.datapath.bpf import EbpfDatapath
from m2m.datapath.hold_rules import Where
from m2m.datapath.kmod import KmodDatapath
from m2m.datapath.pins import directory_of
from m2m.errors import UnsupportedHost

__all__ = ["left_behind", "open_datapath"]


def left_behind(name: str) -> bool:
    """Whether an agent called *name* has left tables in the kernel to be taken over."""
    return directory_of(name).exists() or kmod.has_state()


async def open_datapath(
    kind: str, name: str, limits: Limits, *, ports: tuple[int, int], where: Where
) -> Datapath:
    """Open the datapath *kind* for the agent *name*, or the one that suits if it is ``auto``.

    ``auto`` takes the module where it is loaded; but sessions are taken over where they are.
    Raises :exc:`~m2m.errors.UnsupportedHost` and :exc:`~m2m.datapath.DatapathError`, as both do.
    """
    if kind == "auto":
        kind, why = _suitable(name)
    else:
        why = f"--datapath={kind}"
        other = _elsewhere(kind, name)
        if other is not None:
            raise DatapathError(
                f"an agent of this name has left its sessions to the datapath {other}, where"
                f" {kind} would not see them: start it with --datapath={other}, or give them up"
                f" (--datapath={other} --cleanup)"
            )
    datapath: Datapath
    if kind == "kmod":
        datapath = await KmodDatapath.open(limits, ports=ports, where=where)
    else:
        datapath = await EbpfDatapath.open(name, limits, ports=ports, where=where)
    datapath.why = why
    return datapath


def _suitable(name: str) -> tuple[str, str]:
    if kmod.has_state():
        return "kmod", "an agent has left its tables there"
    if directory_of(name).exists():
        return "ebpf", "an agent of this name has left its tables there"
    if kmod.is_loaded():
        try:
            genl.find_family()
        except UnsupportedHost as error:
            return "ebpf", str(error)
        return "kmod", "the module m2m is loaded"
    return "ebpf", "the module m2m is not loaded"


def _elsewhere(kind: str, name: str) -> str | None:
    """The other datapath, if it has what this agent should take over."""
    if kind == "kmod" and directory_of(name).exists():
        return "ebpf"
    if kind == "ebpf" and kmod.has_state():
        return "kmod"
    return None
