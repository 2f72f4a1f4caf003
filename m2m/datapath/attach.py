"""Bringing the programs to interfaces: tcx links where the kernel has them (6.6), else clsact.

Both stay when the agent goes. A link is pinned as ``link-<ifindex>-<in|out>``; of a clsact
attachment, which lives in the kernel's tables by itself, the pin ``tc-<ifindex>-<...>`` only says
that it is ours and, as ``-made``, that the queueing discipline is too.

What leaves the host's own stack is looked at only where there can be an entry for it: a middlebox
of taps alone has none, and its packets are spared that program.

All calls work in the calling thread's network namespace.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import re
import socket
import struct
from collections.abc import Iterable

from m2m.datapath import DatapathError
from m2m.datapath._bpf import (
    TCX_EGRESS,
    TCX_INGRESS,
    BpfError,
    Link,
    Program,
    tc_attach,
    tc_detach,
    tc_remove_hook,
)
from m2m.datapath.pins import Pins

_SIOCGIFHWADDR = 0x8927
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_PIN = re.compile(r"(link|tc)-(\d+)-(in|out|made)")
# One filter per direction; the numbers are arbitrary, and ours.
_TC_HANDLE, _TC_PRIORITY = 0x4D32, 0x4D32
# What old kernels say to a kind of link they do not know.
_NO_TCX = {errno.EINVAL, errno.EOPNOTSUPP}


class Attachments:
    """Which interfaces translate."""

    def __init__(self, pins: Pins, program_in: Program, program_out: Program) -> None:
        self._pins = pins
        self._programs = {"in": program_in, "out": program_out}
        self.outgoing = any(pin.endswith("-out") for pin in pins.names())

    def interfaces(self) -> set[int]:
        """Those that are attached, also by a predecessor."""
        found = (_PIN.fullmatch(pin) for pin in self._pins.names())
        return {int(match[2]) for match in found if match}

    def set(self, ifindexes: Iterable[int]) -> None:
        """Attach to exactly these, with the present programs.

        Raises :exc:`DatapathError`; then only what was attached before still is.
        """
        wanted, before = set(ifindexes), self.interfaces()
        for ifindex in wanted:
            _check_link_layer(ifindex)
        new: list[int] = []
        try:
            for ifindex in sorted(wanted):
                if ifindex not in before:
                    new.append(ifindex)
                self._attach(ifindex)
        except BpfError as error:
            for each in new:
                self._detach(each)
            raise _not_served(ifindex, error) from error
        for ifindex in before - wanted:
            self._detach(ifindex)

    def translate_outgoing(self) -> None:
        """From now on, what leaves the host's own stack too. Raises :exc:`DatapathError`."""
        for ifindex in sorted(self.interfaces()):
            try:
                self._attach_side(ifindex, "out")
            except BpfError as error:
                if error.errno != errno.ENODEV:  # it is gone, and will be let go
                    raise _not_served(ifindex, error) from error
        self.outgoing = True

    def _attach(self, ifindex: int) -> None:
        # What comes in first: an answer must never find its way out translated but not in.
        self._attach_side(ifindex, "in")
        if self.outgoing:
            self._attach_side(ifindex, "out")

    def _attach_side(self, ifindex: int, side: str) -> None:
        if not self._by_link(ifindex, side):
            self._by_filter(ifindex, side)

    def _by_link(self, ifindex: int, side: str) -> bool:
        pin = f"link-{ifindex}-{side}"
        program = self._programs[side]
        try:
            Link.pinned(self._pins.path(pin)).update(program)
        except BpfError:
            self._pins.unpin(pin)  # of an interface that is gone, whose number came back
        else:
            return True
        try:
            link = Link.create(program, ifindex, TCX_INGRESS if side == "in" else TCX_EGRESS)
        except BpfError as error:
            if error.errno in _NO_TCX:
                return False
            raise
        link.pin(self._pins.path(pin))
        return True

    def _by_filter(self, ifindex: int, side: str) -> None:
        program = self._programs[side]
        made = tc_attach(program, ifindex, side == "in", _TC_HANDLE, _TC_PRIORITY)
        self._pins.replace(f"tc-{ifindex}-{side}", program)
        if made:
            self._pins.replace(f"tc-{ifindex}-made", program)

    def _detach(self, ifindex: int) -> None:
        pins = set(self._pins.names())
        for side in ("out", "in"):
            if f"tc-{ifindex}-{side}" in pins:
                tc_detach(ifindex, side == "in", _TC_HANDLE, _TC_PRIORITY)
            pin = f"link-{ifindex}-{side}"
            if pin in pins:
                with contextlib.suppress(BpfError):  # the interface is gone already
                    Link.pinned(self._pins.path(pin)).detach()
        if f"tc-{ifindex}-made" in pins:
            tc_remove_hook(ifindex)
        self._pins.unpin(*(f"link-{ifindex}-{side}" for side in ("out", "in")))
        self._pins.unpin(*(f"tc-{ifindex}-{what}" for what in ("out", "in", "made")))


def attach_own(pins: Pins, ifindex: int, side: str, program: Program) -> None:
    """Run *program* for what passes one side of a device that we have made."""
    pin = f"own-{side}"
    path = pins.path(pin)
    try:
        Link.pinned(path).update(program)
    except BpfError:
        pins.unpin(pin)
    else:
        return
    try:
        Link.create(program, ifindex, TCX_INGRESS if side == "in" else TCX_EGRESS).pin(path)
    except BpfError as error:
        if error.errno not in _NO_TCX:
            raise _not_served(ifindex, error) from error
        tc_attach(program, ifindex, side == "in", _TC_HANDLE, _TC_PRIORITY)


def _name(ifindex: int) -> str:
    try:
        return f"{socket.if_indextoname(ifindex)} ({ifindex})"
    except OSError:
        return f"number {ifindex}"


def _not_served(ifindex: int, error: OSError) -> DatapathError:
    return DatapathError(f"interface {_name(ifindex)} cannot be served: {error.strerror}")


def _check_link_layer(ifindex: int) -> None:
    """The programs expect an Ethernet header in front of the IP header."""
    try:
        name = socket.if_indextoname(ifindex)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            request = struct.pack("16sH14x", name.encode(), 0)
            answer = fcntl.ioctl(any_socket, _SIOCGIFHWADDR, request + bytes(8))
    except OSError as error:
        raise _not_served(ifindex, error) from error
    (kind,) = struct.unpack_from("H", answer, 16)
    if kind not in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK):
        raise DatapathError(
            f"interface {name} ({ifindex}) cannot be served: it is of type {kind}, and only"
            " Ethernet-like ones (1) are; leave it out (--interface)"
        )
