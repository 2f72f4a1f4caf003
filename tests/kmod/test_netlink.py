"""The module's interface against whoever speaks to it: refusals, and garbage."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from m2m.datapath import DatapathError, Limits, genl, layout
from m2m.datapath.genl import Family, Genl, GenlError
from m2m.datapath.hold_rules import Where
from m2m.datapath.kmod import KmodDatapath, has_state, is_loaded
from m2m.errors import UnsupportedHost
from m2m.protocol.flow import Flow
from m2m.protocol.translation import Hook
from tests.support.namespaces import NamespaceFactory

pytestmark = pytest.mark.skipif(not is_loaded(), reason="the module m2m is not loaded here")

_HEADER = struct.Struct("=IHHII")
_FAILSLAB = Path("/sys/kernel/debug/failslab")
_ROUNDS = int(os.environ.get("M2M_FUZZ_ROUNDS", "3000"))
_KEY = layout.narrow(layout.pack_key(Hook.OUT, Flow.of(6, "10.0.0.1", 1, "10.0.0.2", 2)))


@pytest.fixture
def inside(netns: NamespaceFactory) -> Iterator[None]:
    with netns("kmod").entered():
        yield


async def test_one_agent_for_each_namespace(inside: None, netns: NamespaceFactory) -> None:
    assert not has_state()
    first = await KmodDatapath.open()
    assert has_state()
    with pytest.raises(DatapathError, match="another agent"):
        await KmodDatapath.open()
    with netns("other").entered():
        second = await KmodDatapath.open()
        await second.close(keep=False)
    await first.close(keep=True)
    assert has_state()
    third = await KmodDatapath.open()
    await third.close(keep=False)
    assert not has_state()


async def test_nobody_but_the_agent_changes_anything(inside: None) -> None:
    datapath = await KmodDatapath.open()
    stranger = Genl()
    family = genl.find_family()
    for command, *attributes in (
        ("BEAT",),
        ("CLOSE",),
        ("DEL_ROWS", ("KEYS", _KEY)),
        ("RELEASE", ("KEYS", _KEY), ("VERDICT", 0)),
    ):
        with pytest.raises(GenlError) as caught:
            stranger.ask(family, command, *attributes)
        assert caught.value.errno == errno.EPERM
    stranger.ask(family, "GET_REASONS")
    stranger.close()
    await datapath.close(keep=False)


async def test_what_is_wrong_is_said(inside: None) -> None:
    family, control = genl.find_family(), Genl()

    def refused(command: str, *attributes: tuple[str, object]) -> GenlError:
        with pytest.raises(GenlError) as caught:
            control.ask(family, command, *attributes)
        return caught.value

    assert refused("BEAT").errno == errno.ENODATA
    datapath = await KmodDatapath.open()
    control.close()
    control = datapath._control
    assert "not whole" in str(refused("DEL_ROWS", ("KEYS", _KEY[:-1])))
    assert "missing" in str(refused("DEL_ROWS"))
    assert "does not know" in str(refused("BEAT", ("SERIAL", 1)))
    assert refused("HOLD", ("KEYS", _KEY + _KEY), ("SERIAL", 1)).element(16) == 0
    assert refused("RELEASE", ("KEYS", _KEY), ("VERDICT", 3)).errno == errno.ERANGE
    row = _KEY + bytes(layout.FLAT_SIZE)
    assert "no session" in str(refused("SET_ROWS", ("ROWS", row)))
    wrong = _KEY[:-3] + b"\7" + _KEY[-2:] + bytes(layout.FLAT_SIZE)
    assert "unknown hook" in str(refused("SET_ROWS", ("ROWS", wrong)))
    await datapath.close(keep=False)


def _attribute(draw: random.Random) -> bytes:
    kind = draw.choice([draw.randrange(0, 40), draw.randrange(0, 1 << 16)])
    size = draw.choice([0, 1, 2, 4, 8, 15, 16, 17, 80, 104, 208, draw.randrange(0, 3000)])
    value = draw.choice([bytes(size), draw.randbytes(size), (_KEY * (size // 16 + 1))[:size]])
    length = draw.choice([4 + size] * 8 + [draw.randrange(0, 1 << 16)])
    return struct.pack("=HH", length, kind) + value + bytes(-size % 4)


def _sound(draw: random.Random, ifindex: int) -> bytes:
    """A row that can be installed, or nearly."""
    key = bytearray(_KEY)
    key[draw.randrange(12)] = draw.randrange(4)
    key[13] = draw.randrange(2)
    entry = bytearray(draw.randbytes(layout.FLAT_SIZE))
    entry[4:8] = struct.pack("=I", draw.choice([0, ifindex, ifindex, 12345]))
    entry[8] = draw.choice([0, 1, 5, 0x11, draw.randrange(256)])
    return bytes(key + entry)


def _message(draw: random.Random, family: Family, sequence: int, ifindex: int) -> bytes:
    command = draw.randrange(0, len(genl.COMMANDS) + 2)
    if command == genl.COMMANDS.index("OPEN") and draw.random() < 0.9:
        command = genl.COMMANDS.index("SET_ROWS")
    if command == genl.COMMANDS.index("CLOSE"):
        command = genl.COMMANDS.index("HOLD")
    if draw.random() < 0.6:  # of the right shape, with random contents
        keys = b"".join(_sound(draw, ifindex)[:16] for _ in range(draw.randrange(4)))
        rows = b"".join(_sound(draw, ifindex) for _ in range(draw.randrange(4)))
        chosen: list[tuple[str, object]] = []
        for name, value in (
            ("KEYS", keys), ("ROWS", rows), ("SERIAL", draw.randrange(1 << 32)),
            ("NUMBER", draw.randrange(1 << 64)), ("VERDICT", draw.randrange(4)),
            ("NOTES", draw.randbytes(80 * draw.randrange(3))), ("LINKS", draw.randbytes(8)),
            ("SESSIONS", draw.randbytes(16)), ("ADDRESSES", draw.randbytes(32)),
            ("GENERATION", 1), ("RULES", draw.randbytes(80 * draw.randrange(3))),
        ):  # fmt: skip
            if name in _USED.get(command, ()):
                chosen.append((name, value))
        message = genl.Message()
        message["cmd"], message["version"] = command, 1
        message["attrs"] = chosen
        message["header"] = {
            "type": family.number, "flags": 5, "sequence_number": sequence, "pid": 0,
        }  # fmt: skip
        message.encode()
        data = bytearray(message.data)
    else:
        body = b"".join(_attribute(draw) for _ in range(draw.randrange(5)))
        flags = draw.choice([5, 5, 0x301])
        data = bytearray(
            _HEADER.pack(20 + len(body), family.number, flags, sequence, 0)
            + struct.pack("=BBH", command, 1, 0)
            + body
        )
    if draw.random() < 0.2:
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(16, len(data))] = draw.randrange(256)
    return bytes(data)


_USED = {
    genl.COMMANDS.index(command): names
    for command, names in {
        "SET_LINKS": ("LINKS",), "SET_ADDRESSES": ("ADDRESSES",),
        "SET_RULES": ("GENERATION", "RULES"), "SET_ROWS": ("ROWS",), "DEL_ROWS": ("KEYS",),
        "GET_ROWS": ("KEYS",), "REDIRECT": ("ROWS",), "HOLD": ("KEYS", "SERIAL"),
        "RESUME": ("KEYS",), "WATCH_ACK": ("KEYS", "SERIAL", "NUMBER"),
        "WATCH_COUNT": ("KEYS", "SERIAL", "NUMBER"), "INHERIT": ("KEYS",),
        "RELEASE": ("KEYS", "VERDICT"), "SET_NOTES": ("NOTES",), "DEL_NOTES": ("SESSIONS",),
    }.items()
}  # fmt: skip


@contextmanager
def failing(one_in: int) -> Iterator[None]:
    """Of the memory that the kernel takes on behalf of this thread, now and then there is none."""
    values = {"probability": 100 // one_in, "interval": 1, "times": -1, "verbose": 0}
    for name, value in {**values, "task-filter": "Y", "ignore-gfp-wait": "N"}.items():
        (_FAILSLAB / name).write_text(str(value))
    Path("/proc/thread-self/make-it-fail").write_text("1")
    try:
        yield
    finally:
        Path("/proc/thread-self/make-it-fail").write_text("0")


@pytest.mark.parametrize("seed", [1, 2])
async def test_garbage_is_refused_or_harmless(inside: None, seed: int) -> None:
    """Random and mutated commands by the agent itself; tests/vm/with-module hears complaints."""
    datapath = await KmodDatapath.open()
    answered = await _garbage(datapath, random.Random(seed))
    assert answered > _ROUNDS // 2
    await _still_works(datapath)


@pytest.mark.skipif(not _FAILSLAB.is_dir(), reason="this kernel's allocations do not fail at will")
@pytest.mark.parametrize("seed", [1, 2])
async def test_no_memory_is_refused_or_harmless(inside: None, seed: int) -> None:
    datapath = await KmodDatapath.open()
    with failing(10):
        await _garbage(datapath, random.Random(seed))
    await _still_works(datapath)


async def _garbage(datapath: KmodDatapath, draw: random.Random) -> int:
    """Send it, and reset now and then what a mutated command may have done; how many answers."""
    sock = datapath._control._socket
    ifindex = socket.if_nametoindex("lo")
    answered = 0
    for number in range(1, _ROUNDS):
        with suppress(OSError):  # no memory for the message itself
            sock.send(_message(draw, datapath._family, number, ifindex))
        with_answer = True
        while with_answer:
            try:
                answered += bool(sock.recv(1 << 20))
            except OSError:
                with_answer = False
        if number % 256 == 0:  # a mutated one may have closed it
            with suppress(OSError, DatapathError, UnsupportedHost):
                datapath._open(Limits(sessions=64), (61000, 65535), Where.OUTPUT)
                datapath._ask("BEAT")
            await trio.lowlevel.checkpoint()
    return answered


async def _still_works(datapath: KmodDatapath) -> None:
    datapath._let_go()  # as a killed agent's sockets
    after = await KmodDatapath.open()
    assert await after.reasons()
    await after.close(keep=False)
