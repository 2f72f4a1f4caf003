"""TCP sequence numbers wrap (RFC 1982; RFC 9293 section 3.4)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2m.datapath._core import seq_after, seq_end

numbers = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    ("a", "b", "after"),
    [
        (1, 0, True),
        (0, 1, False),
        (0, 0, False),
        (0, 2**32 - 1, True),
        (2**32 - 1, 0, False),
        (2**31 - 1, 0, True),
        (2**31, 0, False),  # undefined in RFC 1982; neither is after the other
        (0, 2**31, False),
        (2**31 + 1, 0, False),
    ],
)
def test_order(a: int, b: int, after: bool) -> None:
    assert seq_after(a, b) is after


@given(numbers, st.integers(1, 2**31 - 1))
def test_what_is_ahead_by_less_than_half_is_after(base: int, ahead: int) -> None:
    later = (base + ahead) % 2**32
    assert seq_after(later, base)
    assert not seq_after(base, later)


@given(numbers, numbers, numbers)
def test_order_does_not_depend_on_where_numbers_start(a: int, b: int, shift: int) -> None:
    shifted = seq_after((a + shift) % 2**32, (b + shift) % 2**32)
    assert shifted is seq_after(a, b)


@given(numbers, st.integers(0, 65535), st.booleans(), st.booleans())
def test_end_of_a_segment(seq: int, payload: int, syn: bool, fin: bool) -> None:
    assert seq_end(seq, payload, syn, fin) == (seq + payload + syn + fin) % 2**32
