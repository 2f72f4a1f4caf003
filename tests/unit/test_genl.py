"""The names and numbers of :mod:`m2m.datapath.genl` are those of ``kmod/uapi/m2m.h``."""

from __future__ import annotations

import re
import socket
import struct
from pathlib import Path

import pytest

from m2m.datapath import NOTE_SIZE, genl, layout
from m2m.datapath.genl import GenlError, Message

HEADER = (Path(__file__).parents[2] / "kmod/uapi/m2m.h").read_text()
CODE = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.DOTALL)
TYPES = {
    "uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64", "flag": "flag",
}  # fmt: skip


def enum(name: str) -> list[tuple[str, int]]:
    """The names and numbers of an enumeration, without those that begin with two underscores."""
    (body,) = re.findall(rf"enum {name} \{{(.*?)\}};", CODE, flags=re.DOTALL)
    found, number = [], 0
    for item in filter(None, map(str.strip, body.split(","))):
        word, _, value = (part.strip() for part in item.partition("="))
        number = int(value) if value else number
        if not word.startswith("__"):
            found.append((word, number))
        number += 1
    return found


def constant(name: str) -> str:
    (value,) = re.findall(rf"#define {name} (\S+)", CODE)
    return str(value).strip('"')


def test_commands() -> None:
    expected = [(f"M2M_CMD_{name}", number) for number, name in enumerate(genl.COMMANDS)]
    assert enum("m2m_cmd") == expected


def test_attributes_and_their_types() -> None:
    names = [name for name, _ in Message.nla_map]
    assert enum("m2m_attr") == [(f"M2M_A_{name}", number) for number, name in enumerate(names)]
    said = dict(re.findall(r"M2M_A_(\w+),\s*/\* (\S+?)[,:;]?\s", HEADER))
    for name, kind in Message.nla_map[2:]:
        if kind == "cdata":
            assert said[name].endswith("[]") or said[name] in {"struct", "{", "u64[M2M_REASONS]"}
        else:
            assert said[name] == TYPES[kind], name


def test_events_and_verdicts() -> None:
    assert enum("m2m_event") == [
        ("M2M_EVENT_HELD", genl.HELD),
        ("M2M_EVENT_ENDED", genl.ENDED),
        ("M2M_EVENT_OVERFLOW", genl.OVERFLOW),
        ("M2M_EVENT_ACKED", genl.ACKED),
        ("M2M_EVENT_REACHED", genl.REACHED),
    ]
    from m2m.datapath import kmod

    names = {verdict.name: number for verdict, number in kmod._VERDICTS.items()}
    assert enum("m2m_release") == [(f"M2M_RELEASE_{name}", n) for name, n in names.items()]


def test_names_and_sizes() -> None:
    assert constant("M2M_GENL_NAME") == genl.NAME
    assert constant("M2M_GENL_EVENTS") == genl.EVENTS
    numbers = {
        "M2M_GENL_VERSION": genl.VERSION,
        "M2M_MAX_ROWS": genl.MAX_ROWS,
        "M2M_MAX_KEYS": genl.MAX_KEYS,
        "M2M_MAX_RULES_EACH": genl.MAX_RULES_EACH,
        "M2M_MAX_NOTES": genl.MAX_NOTES,
        "M2M_NOTE_SIZE": NOTE_SIZE,
    }
    assert {name: int(constant(name)) for name in numbers} == numbers


def test_an_array_fits_into_an_attribute() -> None:
    largest = (1 << 16) - 1 - 4
    row = layout.KEY4_SIZE + layout.FLAT_SIZE
    assert genl.MAX_ROWS * row <= largest
    assert largest >= genl.MAX_KEYS * layout.KEY4_SIZE
    assert largest >= genl.MAX_RULES_EACH * layout.RULE_SIZE
    assert largest >= genl.MAX_NOTES * (8 + NOTE_SIZE)


def test_the_first_array_begins_where_errors_count_from() -> None:
    message = Message()
    message["cmd"], message["version"] = 1, 1
    message["attrs"] = [("KEYS", b"0123456789abcdef" * 2), ("SERIAL", 7)]
    message["header"] = {"type": 30, "flags": 5, "sequence_number": 1, "pid": 0}
    message.encode()
    assert bytes(message.data[genl.ARRAY :]).startswith(b"0123456789abcdef")


def test_an_error_names_the_element() -> None:
    def attribute(kind: int, value: bytes) -> bytes:
        return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)

    said = attribute(1, b"there is no such row\0")
    said += attribute(2, struct.pack("=I", genl.ARRAY + 2 * 16))
    body = bytes(16) + struct.pack("=i", -2) + bytes(16) + said
    with pytest.raises(GenlError) as caught:
        genl._raise_if_refused(body)
    assert (caught.value.errno, caught.value.strerror) == (2, "there is no such row")
    assert caught.value.element(16) == 2
    assert GenlError(1, "", None).element(16) == 0


def test_events_are_read_until_there_are_none() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.setblocking(False)
        for number in (1, 2):
            message = Message()
            message["cmd"], message["version"] = 21, 1
            message["attrs"] = [("EVENT", number), ("SESSION", 1 << 63)]
            message["header"] = {"type": 30, "flags": 0, "sequence_number": 0, "pid": 0}
            message.encode()
            theirs.send(message.data)
        found = list(genl.heard(ours))
    assert [each.get_attr("EVENT") for each in found] == [1, 2]
    assert {each.get_attr("SESSION") for each in found} == {1 << 63}
