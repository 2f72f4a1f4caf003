"""The mapping of wire tuples to supersessions: writer, readers, files."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from m2m.protocol.flow import Flow
from nf_adapters.pcap import Mapping, MappingError
from nf_adapters.pcap._mapping import MIN_CELLS, Table, lay_out, size_of

WIRE = Flow.of(6, "10.0.2.1", 61001, "10.0.3.1", 62001)
NAME = Flow.of(6, "10.0.1.1", 40000, "10.0.9.1", 80)
OTHER = Flow.of(6, "10.0.1.7", 50000, "10.0.9.9", 443)
NETNS = (4, 4026531840)


def a_table(cells: int = MIN_CELLS) -> Table:
    memory = mmap.mmap(-1, size_of(cells))
    lay_out(memory, cells, *NETNS)
    return Table(memory)


def wire(number: int) -> Flow:
    return WIRE._replace(sport=61000 + number % 4000, dport=61000 + number // 4000)


def test_a_tuple_has_its_name_until_it_ends_and_for_two_sweeps() -> None:
    table = a_table()
    assert table.find(WIRE) is None
    assert table.publish(WIRE, NAME, False, 1000) == 1
    assert table.publish(WIRE, NAME, False, 2000) == 0
    assert table.find(WIRE) == (NAME, False)
    assert table.find(WIRE.reverse()) is None
    assert table.find(WIRE._replace(proto=17)) is None

    assert table.end(WIRE)
    assert not table.end(WIRE)
    assert table.find(WIRE) == (NAME, False), "what is delivered late has its name"
    table.sweep(len(table))
    assert table.find(WIRE) == (NAME, False)
    table.sweep(len(table))
    assert table.find(WIRE) is None
    assert table.count() == (0, 0)


def test_a_reused_tuple_has_each_sessions_name_at_its_time() -> None:
    table = a_table()
    table.publish(WIRE, NAME, False, 1000)
    table.end(WIRE)
    table.publish(WIRE, OTHER, True, 5000)
    assert table.find(WIRE, 4999) == (NAME, False)
    assert table.find(WIRE, 5000) == (OTHER, True)
    assert table.find(WIRE, 900) == (NAME, False), "before all: the earliest"
    assert table.find(WIRE) == (OTHER, True), "of another clock: the latest"
    table.end(WIRE)
    assert table.find(WIRE, 4000) == (NAME, False)
    assert table.find(WIRE, 6000) == (OTHER, True)


def test_a_tuple_that_never_ended_is_taken_by_its_next_session() -> None:
    table = a_table()
    table.publish(WIRE, NAME, False, 1000)
    table.publish(WIRE, OTHER, False, 2000)
    assert table.count() == (1, 1)
    assert table.find(WIRE, 3000) == (OTHER, False)


def test_the_clock_wraps() -> None:
    table = a_table()
    table.publish(WIRE, NAME, False, 0xFFFFFF00)
    table.end(WIRE)
    table.publish(WIRE, OTHER, False, 0x100)
    assert table.find(WIRE, 0xFFFFFF80) == (NAME, False)
    assert table.find(WIRE, 0x180) == (OTHER, False)


def test_ports_of_no_subsession_are_not_looked_up_but_all_others_are() -> None:
    table = a_table()
    for port in (1, 61000, 65535):
        flow = WIRE._replace(sport=port)
        table.publish(flow, NAME, False, 0)
        assert table.find(flow) == (NAME, False)


def test_a_full_table_refuses_and_says_so() -> None:
    table = a_table()
    count = 0
    while table.publish(wire(count), NAME, False, 0) == 1:
        count += 1
    assert count >= MIN_CELLS // 2
    assert table.refused == 1
    assert all(table.find(wire(number)) == (NAME, False) for number in range(count))


def test_many_come_and_go_and_nothing_is_left() -> None:
    table = a_table(1024)
    for turn in range(50):
        flows = [wire(turn * 100 + number) for number in range(300)]
        for flow in flows:
            assert table.publish(flow, NAME._replace(sport=flow.sport), False, turn) == 1
        for flow in flows:
            assert table.find(flow, turn) == (NAME._replace(sport=flow.sport), False)
            assert table.end(flow)
        table.sweep(len(table))
        table.sweep(len(table))
    assert table.refused == 0
    assert table.count() == (0, 0)


def test_the_next_agent_confirms_what_it_finds() -> None:
    table = a_table()
    table.publish(WIRE, NAME, True, 0)
    table.publish(WIRE.reverse(), NAME.reverse(), False, 0)
    table.take_over()
    assert table.find(WIRE) == (NAME, True), "packets go on meanwhile"
    assert table.publish(WIRE, NAME, True, 9) == 0
    assert table.taken_over() == 1
    assert table.count() == (1, 1)


def test_a_cell_that_a_killed_writer_left_open_ends_no_reader() -> None:
    memory = mmap.mmap(-1, size_of(MIN_CELLS))
    lay_out(memory, MIN_CELLS, *NETNS)
    table = Table(memory)
    table.publish(WIRE, NAME, False, 0)
    (at,) = (at for at in range(4096, len(memory), 32) if any(memory[at : at + 32]))
    memory[at] |= 1
    assert table.find(WIRE) is None
    table.take_over()
    assert table.publish(WIRE, NAME, False, 0) == 1
    assert table.find(WIRE) == (NAME, False)


_WRITER = """
import mmap, sys
from nf_adapters.pcap._mapping import Table
from tests.unit.test_pcap_mapping import NAME, OTHER, WIRE
table = Table(mmap.mmap(int(sys.argv[1]), 0))
print("ready", flush=True)
while True:
    for name in (NAME, OTHER):
        table.publish(WIRE, name, name is NAME, 0)
        table.end(WIRE)
        table.sweep(len(table))
        table.sweep(len(table))
"""


def test_a_reader_never_sees_half_a_name(tmp_path: Path) -> None:
    """A writer that does nothing else; each look-up sees one name, wholly, or none."""
    with (tmp_path / "table").open("w+b") as file:
        file.truncate(size_of(MIN_CELLS))
        memory = mmap.mmap(file.fileno(), 0)
        lay_out(memory, MIN_CELLS, *NETNS)
        table = Table(memory)
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(file.fileno())], pass_fds=[file.fileno()],
            stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            seen = {table.find(WIRE) for _ in range(300_000)}
        finally:
            writer.kill()
            writer.wait()
            writer.stdout.close()
    assert seen <= {None, (NAME, True), (OTHER, False)}
    assert len(seen) == 3


def test_the_file_is_kept_by_the_next_agent_and_replaced_by_one_of_another_size(
    tmp_path: Path,
) -> None:
    path = tmp_path / "fw.map"
    first = Mapping(path, 100)
    first.table.publish(WIRE, NAME, False, 0)
    assert path.stat().st_mode & 0o777 == 0o640
    again = Mapping(path, 100)
    assert again.table.find(WIRE) == (NAME, False)
    inode = path.stat().st_ino
    larger = Mapping(path, 10_000)
    assert path.stat().st_ino != inode
    assert larger.table.find(WIRE) is None
    with path.open("rb") as file:
        assert int.from_bytes(file.read(48)[44:48], sys.byteorder) == 0, "the new one is valid"
    # what the readers of the first file have
    assert first.table.find(WIRE) == (NAME, False)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 10_000, bytes(100_000)])
def test_what_is_no_mapping_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fw.map"
    path.write_bytes(content)
    assert Mapping(path, 10).table.count() == (0, 0)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MappingError, match=r"cannot make the mapping .*Not a directory"):
        Mapping(tmp_path / "file" / "fw.map", 10)


def test_memory_that_is_no_mapping_is_refused() -> None:
    good = bytearray(size_of(MIN_CELLS))
    lay_out(good, MIN_CELLS, *NETNS)
    Table(good)
    for at, value, why in (
        (0, 1, "no mapping"),
        (8, 9, "another version"),
        (12, 31, "another version"),
        (16, 0x81, "size is wrong"),
        (18, 1, "size is wrong"),
        (19, 0xFF, "size is wrong"),
    ):
        bad = bytearray(good)
        bad[at] = value
        with pytest.raises(ValueError, match=why):
            Table(bad)
    with pytest.raises(ValueError, match="size is wrong"):
        Table(good[:-1])
    with pytest.raises(ValueError):
        Table(os.urandom(0) or bytearray())
