"""Numbered datagrams and the account of what became of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2m.lab.traffic import numbered
from m2m.lab.traffic.numbered import HEADER, Account, Ledger, Number, burst, stamp


def datagram(number: int, flow: int = 1, size: int = 100) -> bytes:
    made = burst(size, 1)
    stamp(made, 0, Number(size, flow, number))
    return bytes(made)


def account(order: list[int], sent: int) -> Account:
    ledger = Ledger()
    for now, number in enumerate(order):
        assert ledger.enter(datagram(number), float(now))
    return ledger.account(sent)


def counts(found: Account) -> tuple[int, int, int, int]:
    return found.arrived, found.lost, found.duplicated, found.reordered


@pytest.mark.parametrize("size", [HEADER, HEADER + 1, 1400, numbered.LARGEST])
def test_what_was_stamped_is_read(size: int) -> None:
    assert numbered.read(datagram(7, flow=9, size=size)) == Number(size, 9, 7)


@given(at=st.integers(0, 99), flip=st.integers(1, 255))
def test_any_changed_byte_is_found(at: int, flip: int) -> None:
    data = bytearray(datagram(5))
    data[at] ^= flip
    assert numbered.read(bytes(data)) is None


def test_a_shortened_or_lengthened_datagram_is_found() -> None:
    assert numbered.read(datagram(5)[:-1]) is None
    assert numbered.read(datagram(5) + b"\0") is None
    assert numbered.read(b"") is None


def test_a_captures_headers_are_enough_for_the_number() -> None:
    assert numbered.header_of(datagram(5, size=1400)[:HEADER]) == Number(1400, 1, 5)
    assert numbered.header_of(datagram(5)[: HEADER - 1]) is None


def test_datagrams_of_a_burst_have_their_own_numbers() -> None:
    made = burst(50, 3)
    for i in range(3):
        stamp(made, 50 * i, Number(50, 0, 10 + i))
    parts = [bytes(made[50 * i : 50 * (i + 1)]) for i in range(3)]
    assert [numbered.read(part) for part in parts] == [Number(50, 0, n) for n in (10, 11, 12)]


def test_a_size_that_cannot_be_is_refused() -> None:
    for size in (HEADER - 1, numbered.LARGEST + 1):
        with pytest.raises(ValueError, match=str(size)):
            burst(size, 1)


def test_all_in_order() -> None:
    assert counts(account([0, 1, 2, 3], 4)) == (4, 0, 0, 0)


def test_lost_ones_in_the_middle_and_at_the_end() -> None:
    assert counts(account([0, 2], 5)) == (2, 3, 0, 0)
    assert counts(account([], 5)) == (0, 5, 0, 0)


def test_a_datagram_that_is_overtaken_counts_once() -> None:
    assert counts(account([0, 2, 3, 1, 4], 5)) == (5, 0, 0, 1)


def test_each_that_comes_behind_a_later_one_counts() -> None:
    assert counts(account([3, 0, 1, 2], 4)) == (4, 0, 0, 3)


def test_a_datagram_that_comes_again_is_no_reordered_one() -> None:
    assert counts(account([0, 1, 2, 0, 0], 3)) == (3, 0, 2, 0)


def test_a_corrupted_datagram_is_lost_as_well() -> None:
    ledger = Ledger()
    ledger.enter(datagram(0), 0.0)
    assert ledger.enter(datagram(1)[:-1] + b"?", 0.0) is None
    found = ledger.account(2)
    assert (found.corrupted, found.lost) == (1, 1)


def test_the_longest_silence() -> None:
    ledger = Ledger()
    for number, now in enumerate((100.0, 100.25, 101.0, 101.1)):
        ledger.count(number, now)
    assert ledger.account(4).stall == 0.75


@given(st.permutations(range(12)), st.lists(st.integers(0, 11), max_size=4))
def test_the_account_adds_up(order: list[int], again: list[int]) -> None:
    found = account([*order, *again], 15)
    assert found.arrived == 12 and found.lost == 3 and found.duplicated == len(again)
    late = sum(any(n > number for n in order[:i]) for i, number in enumerate(order))
    assert found.reordered == late


def test_flows_add_up_but_for_the_longest_silence() -> None:
    total = Account(sent=3, arrived=2, lost=1, stall=0.5)
    total.add(Account(sent=5, arrived=5, reordered=1, stall=0.25))
    assert total == Account(sent=8, arrived=7, lost=1, reordered=1, stall=0.5)
