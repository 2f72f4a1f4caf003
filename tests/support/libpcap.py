"""A libpcap by its C interface, stock or patched: what any program that is linked with it sees."""

from __future__ import annotations

import ctypes
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

STOCK = Path("/usr/lib/x86_64-linux-gnu/libpcap.so.0.8")
ERRORS = 256  # bytes of a message
PATIENCE = 5000  # ms


class _Timeval(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("usec", ctypes.c_long))


class _Header(ctypes.Structure):
    _fields_ = (("ts", _Timeval), ("caplen", ctypes.c_uint32), ("len", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


class _Stats(ctypes.Structure):
    _fields_ = (("recv", ctypes.c_uint), ("drop", ctypes.c_uint), ("ifdrop", ctypes.c_uint))


class Packet(NamedTuple):
    data: bytes
    length: int  # on the wire


class Library:
    """One libpcap, loaded beside any other."""

    def __init__(self, path: Path) -> None:
        self.lib = ctypes.CDLL(str(path))
        self.lib.pcap_create.restype = ctypes.c_void_p
        self.lib.pcap_geterr.restype = ctypes.c_char_p

    def open(
        self, device: str, *, filter: str | None = None, snaplen: int = 262144,  # noqa: A002
        immediate: bool = False, datalink: int | None = None, timeout: int = 50,
        buffer: int = 0,
    ) -> Handle:  # fmt: skip
        """A handle that captures, in the calling thread's namespace."""
        errors = ctypes.create_string_buffer(ERRORS)
        raw = self.lib.pcap_create(device.encode(), errors)
        assert raw, errors.value
        handle = Handle(self.lib, ctypes.c_void_p(raw))
        self.lib.pcap_set_snaplen(handle.raw, snaplen)
        self.lib.pcap_set_timeout(handle.raw, timeout)
        self.lib.pcap_set_immediate_mode(handle.raw, int(immediate))
        self.lib.pcap_set_buffer_size(handle.raw, buffer)
        handle.check(self.lib.pcap_activate(handle.raw))
        if datalink is not None:
            handle.check(self.lib.pcap_set_datalink(handle.raw, datalink))
        if filter is not None:
            handle.set_filter(filter)
        return handle


class Handle:
    """One capture."""

    def __init__(self, lib: ctypes.CDLL, raw: ctypes.c_void_p) -> None:
        self._lib = lib
        self.raw = raw

    def check(self, status: int) -> None:
        assert status >= 0, self._lib.pcap_geterr(self.raw)

    def set_filter(self, text: str) -> None:
        program = _Program()
        self.check(
            self._lib.pcap_compile(self.raw, ctypes.byref(program), text.encode(), 1, 0xFFFFFFFF)
        )
        self.check(self._lib.pcap_setfilter(self.raw, ctypes.byref(program)))
        self._lib.pcap_freecode(ctypes.byref(program))

    def packets(self) -> Iterator[Packet]:
        """One after the other; fails when none comes for a long time."""
        errors = ctypes.create_string_buffer(ERRORS)
        assert self._lib.pcap_setnonblock(self.raw, 1, errors) == 0, errors.value
        header, data = ctypes.POINTER(_Header)(), ctypes.c_void_p()
        waiting = select.poll()
        waiting.register(self._lib.pcap_get_selectable_fd(self.raw), select.POLLIN)
        while True:
            status = self._lib.pcap_next_ex(self.raw, ctypes.byref(header), ctypes.byref(data))
            self.check(status)
            if status == 0:
                assert waiting.poll(PATIENCE), "no packet comes any more"
                continue
            head = header.contents
            yield Packet(ctypes.string_at(data.value or 0, head.caplen), head.len)

    def inject(self, frame: bytes) -> None:
        assert self._lib.pcap_inject(self.raw, frame, len(frame)) == len(frame)

    def received(self) -> tuple[int, int]:
        """Packets that have passed the filter, and that were dropped (``pcap_stats``)."""
        stats = _Stats()
        self.check(self._lib.pcap_stats(self.raw, ctypes.byref(stats)))
        return stats.recv, stats.drop

    def close(self) -> None:
        self._lib.pcap_close(self.raw)


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Handles that are activated in the block find these variables."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
