"""Files of deeds: as they are written, and whatever else may be in a file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2m.agent import deeds
from m2m.auth import DomainKey
from m2m.errors import M2MError
from m2m.protocol.codec import Malformed, WireError
from m2m.protocol.deed import MAX_DEEDS, Deed, pack_deeds, unpack_deeds
from m2m.protocol.flow import Flow, Proto, parse_address
from m2m.protocol.rebind import End

KEY = DomainKey(bytes(range(32)))
FLOW = Flow.of(Proto.TCP, "10.0.0.1", 40000, "10.0.9.9", 80)
LEG = Flow.of(Proto.TCP, "10.0.1.2", 61000, "10.0.9.9", 63263)
DEED = Deed(7, End.SERVER, FLOW, LEG, 1460, 1500, 3, 9, b"c" * 32, b"s" * 32, (1, 4), b"k" * 32)


def test_what_is_written_is_read() -> None:
    others = [DEED, DEED._replace(session=8, end=End.CLIENT)]
    assert unpack_deeds(KEY, pack_deeds(KEY, others)) == others


def test_what_follows_from_a_deed() -> None:
    assert DEED.number == 5
    assert DEED.address == parse_address("10.0.9.9")
    assert DEED.hop == parse_address("10.0.1.2")
    assert DEED.device == b"s" * 32
    client = DEED._replace(end=End.CLIENT)
    assert (client.number, client.device) == (2, b"c" * 32)
    assert (client.address, client.hop) == (FLOW.src, LEG.dst)


def test_bounds() -> None:
    for count in (0, MAX_DEEDS + 1):
        with pytest.raises(WireError):
            pack_deeds(KEY, [DEED] * count)


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [(0, 0x58, Malformed.MAGIC), (5, 2, Malformed.VERSION), (7, 2, Malformed.VALUE),
     (16, 2, Malformed.VALUE)],
)  # fmt: skip
def test_sealed_nonsense_is_told_from_deeds(at: int, value: int, reason: Malformed) -> None:
    data = bytearray(pack_deeds(KEY, [DEED]))
    data[at] = value
    sealed = bytes(data[:-16]) + KEY.mac(bytes(data[:-16]))
    with pytest.raises(WireError) as caught:
        unpack_deeds(KEY, sealed)
    assert caught.value.reason is reason


@given(st.data())
def test_no_bit_of_it_can_be_changed(data: st.DataObject) -> None:
    whole = bytearray(pack_deeds(KEY, [DEED]))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(WireError):
        unpack_deeds(KEY, bytes(whole))


@given(st.binary(max_size=300))
def test_nor_does_anything_else_pass(data: bytes) -> None:
    with pytest.raises(WireError):
        unpack_deeds(KEY, data)


def test_another_domains_deeds_are_refused() -> None:
    with pytest.raises(WireError, match="this domain's key"):
        unpack_deeds(DomainKey(b"x" * 32), pack_deeds(KEY, [DEED]))


def test_a_file_is_its_owners_alone_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "deeds"
    deeds.write(path, KEY, [DEED])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert deeds.read(path, KEY) == [DEED]
    with pytest.raises(FileExistsError):
        deeds.write(path, KEY, [DEED])
    assert deeds.read(path, KEY) == [DEED]


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "deeds"
    with pytest.raises(M2MError, match="No such file"):
        deeds.read(path, KEY)
    os.mkfifo(path)
    with pytest.raises(M2MError, match="not a regular file"):
        deeds.read(path, KEY)
    path.unlink()
    path.write_bytes(b"\0" * ((1 << 24) + 1))
    with pytest.raises(M2MError, match="some other file"):
        deeds.read(path, KEY)
    path.write_bytes(b"#!/bin/sh\necho these are no deeds at all\n")
    with pytest.raises(M2MError, match="no file of deeds"):
        deeds.read(path, KEY)
