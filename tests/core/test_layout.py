"""What Python packs is what C reads: sizes and offsets as the compiler has them."""

import pytest

from m2m.datapath import DatapathError, Reason, _core, layout
from m2m.policy.rules import Fail, FlatRule, Policy, PolicySet
from m2m.protocol.flow import PACKED_SIZE, Flow
from m2m.protocol.translation import Action, Entry, Hook, NextHop, Position, Toward
from tests.support.core import LAYOUT, field, key, raw_field

FLOW = Flow.of(17, "10.1.2.3", 0x1234, "2001:db8::9", 0xFEDC)
FLOW4 = Flow.of(17, "10.1.2.3", 0x1234, "10.9.8.7", 0xFEDC)


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


OTHER = Flow.of(17, "192.0.2.1", 0xABCD, "192.0.2.2", 0x4321)
SUPER = Flow.of(17, "198.51.100.1", 0x1111, "198.51.100.2", 0x2222)
GATEWAY = OTHER.dst


def entry() -> Entry:
    """Every field different, so that none can stand in another's place."""
    return Entry(
        session=0x1122334455667788, hook=Hook.OUT, match=FLOW4, rewrite=OTHER, action=Action.SEND,
        toward=Toward.LEFT, position=Position.INLINE, supersession=SUPER, mss=1357, chain=77,
        generation=99, hop=NextHop(12, GATEWAY, 9000),
    )  # fmt: skip


def test_an_entry_as_python_packs_it() -> None:
    packed_key, value = layout.pack_entry(entry(), now=0xCAFE)
    assert packed_key == key(Hook.OUT, FLOW4)
    assert len(value) == LAYOUT["m2m_entry"][0] == layout.ENTRY_SIZE
    numbers = {
        "session": 0x1122334455667788, "ifindex": 12, "packets": 0, "bytes": 0,
        "last_seen": 0xCAFE, "max_seq": 0, "max_ack": 0, "chain": 77, "generation": 99, "flags": 0,
        "mss": 1357, "mtu": 9000, "tag": _core.key_tag(packed_key),
        "zero": 0, "role": Action.SEND | Toward.LEFT << 2 | Position.INLINE << 3,
    }  # fmt: skip
    assert {name: field("m2m_entry", value, name) for name in numbers} == numbers
    raw = {
        "src": OTHER.src[12:], "dst": OTHER.dst[12:], "sport": b"\xab\xcd", "dport": b"\x43\x21",
        "next_hop": GATEWAY[12:], "super_src": SUPER.src[12:], "super_dst": SUPER.dst[12:],
        "super_sport": b"\x11\x11", "super_dport": b"\x22\x22",
    }  # fmt: skip
    assert {name: raw_field("m2m_entry", value, name) for name in raw} == raw
    # These are all there is, beside the checksum difference, which the rewrite tests hold.
    assert numbers.keys() | raw.keys() | {"addr_diff"} == LAYOUT["m2m_entry"][1].keys()


def test_the_table_of_ipv4_leaves_prefixes_out() -> None:
    wide = key(Hook.OUT, FLOW4)
    narrow = layout.narrow(wide)
    assert len(narrow) == layout.KEY4_SIZE
    assert narrow == bytes((10, 1, 2, 3, 10, 9, 8, 7, 0x12, 0x34, 0xFE, 0xDC, 17, 1, 0, 0))
    assert layout.widen(narrow) == wide


@pytest.mark.parametrize("what", ["match", "rewrite", "supersession"])
def test_a_flow_of_ipv6_has_no_entry(what: str) -> None:
    with pytest.raises(DatapathError, match=r"10\.1\.2\.3 and 2001:db8::9 cannot be steered"):
        layout.pack_entry(entry()._replace(**{what: FLOW}), now=5)


def test_what_was_packed_is_read_back() -> None:
    row = layout.unpack_row(*layout.pack_entry(entry(), now=5), 5)
    assert row.entry == entry()
    assert (row.counters.packets, row.counters.max_seq, row.counters.idle) == (0, None, 0)


def test_a_rule_as_python_packs_it() -> None:
    rule = FlatRule(0xDD, b"\1" * 16, b"\2" * 16, b"\3" * 16, b"\4" * 16, 5, 6, 7, 8, 9, 10)
    policy = Policy(0xDD, "", 1, (), Fail.CLOSED)
    packed = layout.pack_rules(PolicySet(1, (policy,), (rule,), ()))
    assert len(packed) == LAYOUT["m2m_rule"][0] == layout.RULE_SIZE
    numbers = {
        "sport_lo": 5, "sport_hi": 6, "dport_lo": 7, "dport_hi": 8, "proto_lo": 9,
        "proto_hi": 10, "fail": 1, "exempt": 1, "policy": 0xDD,
    }  # fmt: skip
    assert {name: field("m2m_rule", packed, name) for name in numbers} == numbers
    raw = {f"{end}_{side}": raw_field("m2m_rule", packed, f"{end}_{side}")
           for end in ("src", "dst") for side in ("lo", "hi")}  # fmt: skip
    assert raw == {
        "src_lo": rule.src_lo, "src_hi": rule.src_hi, "dst_lo": rule.dst_lo,
        "dst_hi": rule.dst_hi,
    }  # fmt: skip
    assert numbers.keys() | raw.keys() == LAYOUT["m2m_rule"][1].keys()


def test_fields_of_the_configuration_as_python_has_them() -> None:
    sizes = {"H": 2, "I": 4, "Q": 8}

    def place(*fields: layout.Field) -> tuple[int, int]:
        return fields[0].offset, sum(sizes[each.format] for each in fields)

    assert LAYOUT["m2m_config"] == (
        layout.CONFIG_SIZE,
        {
            "heartbeat": place(layout.HEARTBEAT),
            "heartbeat_limit": place(layout.HEARTBEAT_LIMIT),
            "clock": place(layout.CLOCK),
            "jiffy": place(layout.JIFFY),
            "active_rules": place(layout.ACTIVE_RULES),
            "rule_count": place(*layout.RULE_COUNT),
            "generation": place(*layout.GENERATION),
            "linger": place(layout.LINGER),
            "tcp_idle": place(layout.TCP_IDLE),
            "udp_idle": place(layout.UDP_IDLE),
            "port_lo": place(layout.PORT_LO),
            "port_hi": place(layout.PORT_HI),
            "in_port_lo": place(layout.IN_PORT_LO),
            "in_port_hi": place(layout.IN_PORT_HI),
            "version": place(layout.LAYOUT_VERSION),
        },
    )
