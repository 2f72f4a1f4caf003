"""Incremental Internet checksums against sums computed in full (RFC 1071, RFC 1624)."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2m.datapath import _core
from tests.support.packets import checksum

ports = st.integers(0, 0xFFFF) | st.sampled_from([0, 1, 0xFFFE, 0xFFFF])
addresses = st.binary(min_size=4, max_size=4) | st.sampled_from([bytes(4), b"\xff" * 4])
wide_addresses = st.binary(min_size=16, max_size=16) | st.sampled_from([bytes(16), b"\xff" * 16])
rest = st.binary(min_size=2, max_size=64).filter(lambda data: len(data) % 2 == 0 and any(data))


def test_example_of_rfc_1624() -> None:
    # Section 4: the field goes from 0x5555 to 0x3285 under a checksum of 0xDD2F.
    difference = _core.csum_diff_ports(0x5555, 0x3285, 0, 0)
    assert _core.csum_apply(0xDD2F, difference) == 0x0000


@given(rest, ports, ports, ports, ports)
def test_ports(data: bytes, old_s: int, new_s: int, old_d: int, new_d: int) -> None:
    before = checksum(data + struct.pack("!HH", old_s, old_d))
    after = checksum(data + struct.pack("!HH", new_s, new_d))
    difference = _core.csum_diff_ports(old_s, new_s, old_d, new_d)
    assert _core.csum_apply(before, difference) == after


@given(rest, addresses, addresses, addresses, addresses)
def test_addresses(data: bytes, old_s: bytes, new_s: bytes, old_d: bytes, new_d: bytes) -> None:
    before, after = checksum(data + old_s + old_d), checksum(data + new_s + new_d)
    difference = _core.csum_diff_addresses(old_s, new_s, old_d, new_d)
    assert _core.csum_apply(before, difference) == after


@given(st.integers(0, 0xFFFF), ports, ports)
def test_a_wrong_checksum_stays_wrong(check: int, old: int, new: int) -> None:
    data = b"\x12\x34" + old.to_bytes(2, "big")
    right = checksum(data)
    changed = _core.csum_apply(check, _core.csum_diff_ports(old, new, 0, 0))
    is_right = changed == checksum(b"\x12\x34" + new.to_bytes(2, "big"))
    # 0x0000 and 0xffff are one and the same value of the sum.
    assert is_right == (check % 0xFFFF == right % 0xFFFF)


def test_an_address_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="an IPv4 address: 16 bytes, not 4"):
        _core.csum_diff_addresses(bytes(4), bytes(4), bytes(16), bytes(4))


@given(wide_addresses, wide_addresses)
def test_addresses_are_ordered_as_numbers(a: bytes, b: bytes) -> None:
    assert _core.address_compare(a, b) == (a > b) - (a < b)
