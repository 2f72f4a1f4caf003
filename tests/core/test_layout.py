"""What Python packs is what C reads: sizes and offsets as the compiler has them."""

import pytest

from m2m.datapath import Reason, _core
from m2m.protocol.flow import PACKED_SIZE, Flow
from m2m.protocol.translation import Hook
from tests.support.core import LAYOUT, key

FLOW = Flow.of(17, "10.1.2.3", 0x1234, "2001:db8::9", 0xFEDC)


def test_a_packed_flow_is_a_tuple() -> None:
    size, places = LAYOUT["m2m_key"]
    assert size == PACKED_SIZE
    data = key(Hook.OUT, FLOW)
    at = {name: data[offset : offset + length] for name, (offset, length) in places.items()}
    assert at == {
        "tuple.src": FLOW.src,
        "tuple.dst": FLOW.dst,
        "tuple.sport": b"\x12\x34",
        "tuple.dport": b"\xfe\xdc",
        "tuple.proto": b"\x11",
        "tuple.hook": b"\x01",
        "tuple.zero": b"\0\0",
    }


@pytest.mark.parametrize("structure", LAYOUT)
def test_fields_cover_the_structure_without_holes(structure: str) -> None:
    """A hole would carry whatever was in memory into a key or a map."""
    size, places = LAYOUT[structure]
    end = 0
    for offset, length in sorted(places.values()):
        assert offset == end
        end = offset + length
    assert end == size


def test_tags_tell_keys_apart_and_are_never_zero() -> None:
    flows = [FLOW, FLOW.reverse(), FLOW._replace(proto=6), FLOW._replace(sport=1)]
    tags = {_core.key_tag(key(hook, flow)) for flow in flows for hook in Hook}
    assert len(tags) == 8
    assert 0 not in tags


def test_an_entry_is_sealed_for_one_key() -> None:
    sealed = _core.seal(key(Hook.IN, FLOW), bytes(LAYOUT["m2m_entry"][0]))
    with pytest.raises(ValueError, match="not sealed for this key"):
        _core.Translation(key(Hook.OUT, FLOW), sealed)


@pytest.mark.parametrize("wrong", [b"", b"\0" * 39, b"\0" * 41])
def test_another_length_is_refused(wrong: bytes) -> None:
    with pytest.raises(ValueError, match=f"a key: {len(wrong)} bytes, not 40"):
        _core.key_tag(wrong)


def test_reasons_have_the_numbers_of_the_core() -> None:
    assert [reason.value for reason in Reason] == list(range(_core.REASONS))
