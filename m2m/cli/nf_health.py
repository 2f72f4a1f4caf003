"""Accompanying a network function: signals to it, its health to the agent."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Mapping, Sequence
from mmap import mmap
from pathlib import Path
from typing import NamedTuple

import msgspec
import trio

from m2m.agent.dialogue import Item, NfRun, Quiesce, Quiet
from m2m.errors import M2MError

__all__ = ["Health", "accompanied"]

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

# struct m2m_health of nf_adapters/pcap/health.h
_PAGE = 2048
_SLOTS = 31
_HEAD = struct.Struct("=I60x")
_SLOT = struct.Struct("=QQQQQ24x")

# ns after which every packet has been handed over: M2M_HEALTH_MS, and more
_HANDED_OVER = 15_000_000
_LOOK = 0.004  # s between two looks at memory that tells of no change
_LIMIT = 0.4  # s
_ACCOUNT = 1.0  # s between two accounts
_AGAIN = 1.0  # s between two attempts to reach an agent that is away


class _Slot(NamedTuple):
    process: int  # 0: the handle is closed
    empty_at: int
    delivered: int
    restored: int
    next: int

    def is_empty(self, page: tuple[str, str]) -> bool:
        """Whether the word in the program's memory says that nothing has come since.

        The program says itself which process it is. It is looked at only if it has *page* (device
        and inode) among its memory: what none but the programs of this page have.
        """
        try:
            with open(f"/proc/{self.process}/maps", encoding="utf-8") as maps:
                if all(tuple(line.split(maxsplit=5)[3:5]) != page for line in maps):
                    return False
            with open(f"/proc/{self.process}/mem", "rb", buffering=0) as memory:
                return os.pread(memory.fileno(), 4, self.next) == bytes(4)
        except (OSError, OverflowError):
            return False


class Health:
    """What a program's libpcap tells of it, in a page that both have."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("m2m-health")
        os.ftruncate(self._fd, _PAGE)
        self._page = mmap(self._fd, _PAGE)
        about = os.fstat(self._fd)
        device = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}"
        self._memory = device, str(about.st_ino)  # as in /proc/PID/maps

    @property
    def path(self) -> str:
        """Where the program finds it, as long as this process runs."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def _slots(self) -> list[_Slot]:
        (used,) = _HEAD.unpack_from(self._page)
        return [self._slot(number) for number in range(min(used, _SLOTS))]

    def _slot(self, number: int) -> _Slot:
        return _Slot._make(_SLOT.unpack_from(self._page, _HEAD.size + number * _SLOT.size))

    @property
    def delivered(self) -> int:
        """Packets that it has been given."""
        return sum(slot.delivered for slot in self._slots())

    @property
    def restored(self) -> int:
        """Those of them that belong to sessions."""
        return sum(slot.restored for slot in self._slots())

    def quiet_since(self, moment: int) -> bool:
        """Whether all that was captured before *moment* (ns, monotonic) has been delivered."""
        handed_over = moment + _HANDED_OVER
        now = time.monotonic_ns()
        for number, slot in enumerate(self._slots()):
            if not slot.process or slot.empty_at > handed_over:
                continue
            if now <= handed_over or not slot.next or not slot.is_empty(self._memory):
                return False
            if self._slot(number).next != slot.next:  # it has begun to read meanwhile
                return False
        return True

    async def quiesce(self) -> bool:
        """Wait until all that is captured by now has been delivered; False: it takes too long."""
        began = time.monotonic_ns()
        with trio.move_on_after(_LIMIT):
            while not self.quiet_since(began):  # noqa: ASYNC110  (memory tells of no change)
                await trio.sleep(_LOOK)
            return True
        return False

    def close(self) -> None:
        """Let go of it; the program keeps it."""
        self._page.close()
        os.close(self._fd)


async def accompanied(
    command: Sequence[str], environment: Mapping[str, str], socket: Path, nf: str | None
) -> int:
    """Run *command* to its end; its status, negative for a signal. The agent behind *socket* is
    told of it, again and again if it is away."""
    health = Health()
    try:
        with trio.open_signal_receiver(*_PASSED_ON) as signals:
            try:
                running = await trio.lowlevel.open_process(
                    command, env={**environment, "M2M_PCAP_HEALTH": health.path}
                )
            except OSError as error:
                raise M2MError(f"{command[0]} cannot be started: {error.strerror}") from error
            about = NfRun(Path(command[0]).name, running.pid, nf)
            async with trio.open_nursery() as nursery:

                async def pass_on() -> None:
                    async for number in signals:
                        running.send_signal(number)

                nursery.start_soon(pass_on)
                nursery.start_soon(_tell, socket, about, health)
                status = await running.wait()
                nursery.cancel_scope.cancel()
            return status
    finally:
        health.close()


async def _tell(socket: Path, about: NfRun, health: Health) -> None:
    while True:
        try:
            async with await trio.open_unix_socket(str(socket)) as stream:
                await _converse(stream, about, health)
        except (OSError, trio.BrokenResourceError, msgspec.DecodeError):
            pass  # it has gone, or is of another version; the next one wants to know as well
        await trio.sleep(_AGAIN)


async def _converse(stream: trio.SocketStream, about: NfRun, health: Health) -> None:
    turn = trio.Lock()

    async def say(what: NfRun | Quiet) -> None:
        async with turn:
            await stream.send_all(msgspec.json.encode(what) + b"\n")

    async def account() -> None:
        while True:
            await say(Quiet(quiet=False, delivered=health.delivered))
            await trio.sleep(_ACCOUNT)

    async def answer(number: int) -> None:
        quiet = await health.quiesce()
        await say(Quiet(quiet, health.delivered, number))

    await say(about)
    decoder, buffer = msgspec.json.Decoder[Item](Item), b""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(account)
            async for data in stream:
                *lines, buffer = (buffer + data).split(b"\n")
                for item in map(decoder.decode, lines):
                    if isinstance(item, Quiesce):
                        nursery.start_soon(answer, item.number)
            nursery.cancel_scope.cancel()
    except* trio.BrokenResourceError:
        pass  # the agent has gone
