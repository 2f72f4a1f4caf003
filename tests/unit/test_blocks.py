"""Blocks of a checked stream: every wrong byte shows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from m2m.lab.traffic import blocks
from m2m.lab.traffic.blocks import Kind


def test_a_right_block_has_no_wrong_bytes() -> None:
    assert blocks.wrong_bytes(bytearray(blocks.data(3, 7)), 3, 7) == 0
    assert len(blocks.data(3, 7)) == blocks.SIZE


@given(at=st.sets(st.integers(0, blocks.SIZE - 1), max_size=20), flip=st.integers(1, 255))
def test_changed_bytes_are_counted_one_by_one(at: set[int], flip: int) -> None:
    got = bytearray(blocks.data(1, 2))
    for index in at:
        got[index] ^= flip
    assert blocks.wrong_bytes(got, 1, 2) == len(at)


@given(
    st.tuples(st.integers(0, 2000), st.integers(0, 1 << 40)),
    st.tuples(st.integers(0, 2000), st.integers(0, 1 << 40)),
)
def test_the_block_of_another_flow_or_number_is_wrong(
    one: tuple[int, int], other: tuple[int, int]
) -> None:
    assert (blocks.wrong_bytes(bytearray(blocks.data(*one)), *other) == 0) == (one == other)


def test_bytes_moved_by_one_are_wrong_almost_everywhere() -> None:
    block = blocks.data(0, 0)
    moved = bytearray(block[1:] + block[:1])
    assert blocks.wrong_bytes(moved, 0, 0) > blocks.SIZE * 0.9


def test_the_next_block_is_another_one_throughout() -> None:
    assert blocks.wrong_bytes(bytearray(blocks.data(0, 1)), 0, 0) > blocks.SIZE * 0.9
    assert blocks.wrong_bytes(bytearray(blocks.data(1, 0)), 0, 0) > blocks.SIZE * 0.9


def test_what_was_said_is_heard() -> None:
    block = bytearray(blocks.said(Kind.END, 5, "done"))
    assert len(block) == blocks.SIZE
    assert blocks.kind_of(block) == Kind.END
    assert blocks.heard(block) == (5, b"\xa4done")
