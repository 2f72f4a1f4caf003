"""What m2m-nf makes of the page in which a program's libpcap tells how far it is."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Iterator

import pytest

from m2m.cli.nf_health import Health

LONG_AGO = 1  # ns


class Program:
    """A program with one handle, whose next frame or block is the word *status*."""

    def __init__(self, health: Health) -> None:
        self._page = open(health.path, "r+b", buffering=0)  # noqa: SIM115
        self.status = ctypes.c_uint32(0)

    def tell(self, *, process: int, empty_at: int, next: int) -> None:  # noqa: A002
        os.pwrite(self._page.fileno(), struct.pack("=I", 1), 0)
        slot = struct.pack("=QQQQQ", process, empty_at, 5, 3, next)
        os.pwrite(self._page.fileno(), slot, 64)

    @property
    def address(self) -> int:
        return ctypes.addressof(self.status)

    def close(self) -> None:
        self._page.close()


@pytest.fixture
def health() -> Iterator[Health]:
    made = Health()
    yield made
    made.close()


@pytest.fixture
def program(health: Health) -> Iterator[Program]:
    made = Program(health)
    yield made
    made.close()


def test_a_program_that_waits_by_itself_is_through_while_nothing_has_come(
    health: Health, program: Program
) -> None:
    program.tell(process=os.getpid(), empty_at=LONG_AGO, next=program.address)
    moment = time.monotonic_ns() - 1_000_000_000
    assert health.quiet_since(moment)
    to_come = time.monotonic_ns() + 1_000_000_000
    assert not health.quiet_since(to_come), "what was captured may not have been handed over"
    program.status.value = 1
    assert not health.quiet_since(moment)
    assert (health.delivered, health.restored) == (5, 3)


def test_one_that_is_busy_or_cannot_be_looked_into_is_not_through(
    health: Health, program: Program
) -> None:
    moment = time.monotonic_ns() - 1_000_000_000
    for process, address in (
        (os.getpid(), 0),
        (os.getpid(), 8),
        (2**63, 8),
        (os.getpid(), 2**64 - 1),
    ):
        program.tell(process=process, empty_at=LONG_AGO, next=address)
        assert not health.quiet_since(moment), (process, address)


def test_the_ring_that_was_seen_empty_since_and_the_closed_handle_are_through(
    health: Health, program: Program
) -> None:
    moment = time.monotonic_ns() - 1_000_000_000
    program.tell(process=os.getpid(), empty_at=time.monotonic_ns(), next=0)
    assert health.quiet_since(moment)
    program.tell(process=0, empty_at=LONG_AGO, next=0)
    assert health.quiet_since(time.monotonic_ns())
