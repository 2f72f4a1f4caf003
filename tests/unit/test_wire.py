"""The wire format: the documented bytes, the round trip, and that nothing else gets in."""

from __future__ import annotations

import re
import struct
import typing
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2m.protocol import rebind, update, wire
from m2m.protocol.flow import Flow, Proto, parse_address
from m2m.protocol.splice import Splice
from m2m.protocol.translation import Position
from m2m.protocol.wire import (
    Ack,
    Cause,
    Challenge,
    Envelope,
    Fin,
    FinAck,
    Hop,
    Malformed,
    PathRep,
    PathReq,
    Rst,
    Syn,
    SynAck,
    WireError,
    decode,
    encode,
)

LEG = Flow.of(Proto.TCP, "10.0.0.1", 61000, "10.0.1.2", 63263)
SUPER = Flow.of(Proto.TCP, "10.0.0.1", 40000, "10.0.9.9", 80)
CHAIN = (
    Hop(parse_address("10.0.1.2"), Position.INLINE, "fw"),
    Hop(parse_address("10.0.9.9"), Position.SERVER),
)
SESSION = 0x0102030405060708
DEVICE, OTHER_DEVICE = bytes(range(32)), bytes(range(0x80, 0xA0))
SYN = Syn(SESSION, LEG, SUPER, CHAIN, 1500, policy=3, generation=9, patience=1000, client=DEVICE)
MOVED = rebind.Leg(SESSION, rebind.End.CLIENT, 6, 2, (61000, 63263), (61001, 63264), b"p" * 16)
REBIND = rebind.Rebind(SESSION, SUPER.src, SUPER.dst, LEG.dst, DEVICE, (MOVED,))
DONE = rebind.Bound(SESSION, rebind.End.SERVER, 2, rebind.Result.DONE, (61001, 63264), b"p" * 16)
REBOUND = rebind.Rebound(SESSION, SUPER.dst, LEG.dst, (DONE,))
JOIN = update.UpdateSyn(
    SESSION, LEG, 0xC4, update.Mode.OP, LEG.src, SUPER, CHAIN[:1], SUPER.dst, 1500, 3, 9
)

SPLICE = Splice((1, 2**32 - 1), (3, 4), (-14, 14))

addresses = st.binary(min_size=16, max_size=16)
ports = st.integers(0, 0xFFFF)
mtus = st.integers(68, 0xFFFF)
flows = st.builds(Flow, st.sampled_from(Proto), addresses, ports, addresses, ports)
u64 = st.integers(0, 2**64 - 1)
nonzero = st.integers(1, 2**64 - 1)
names = st.from_regex(r"[a-z][a-z0-9_-]{0,14}", fullmatch=True)
chains = st.builds(
    lambda middle, server: (*middle, server),
    st.lists(
        st.builds(Hop, addresses, st.sampled_from((Position.TAP, Position.INLINE)), names),
        max_size=wire.MAX_CHAIN - 1,
    ),
    st.builds(Hop, addresses, st.just(Position.SERVER)),
)
steps = st.builds(update.Step, addresses, st.none() | addresses.filter(any))
runs = st.lists(
    st.builds(Hop, addresses, st.sampled_from((Position.TAP, Position.INLINE)), names),
    max_size=update.MAX_RUN,
).map(tuple)
step_runs = st.lists(steps, max_size=update.MAX_RUN).map(tuple)
modes = st.sampled_from(update.Mode)
shifts = st.integers(-14, 14)
u32_pairs = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
splices = st.none() | st.builds(Splice, u32_pairs, u32_pairs, st.tuples(shifts, shifts))
counts = st.none() | st.integers(0, 2**64 - 2)
u32 = st.integers(0, 2**32 - 1)
devices = st.binary(min_size=32, max_size=32)
proofs = st.binary(min_size=16, max_size=16)
pairs = st.tuples(ports, ports)
ends = st.sampled_from(rebind.End)
moved = st.builds(rebind.Leg, nonzero, ends, st.sampled_from(Proto), u32, pairs, pairs, proofs)
bound = st.builds(
    rebind.Bound, nonzero, ends, u32, st.sampled_from(rebind.Result), pairs, proofs
)  # fmt: skip
moves = st.one_of(
    st.lists(moved, min_size=1, max_size=rebind.MAX_LEGS).flatmap(
        lambda legs: st.builds(
            rebind.Rebind, st.just(legs[0].session), addresses, addresses, addresses, devices,
            st.just(tuple(legs)),
        )
    ),
    st.lists(bound, min_size=1, max_size=rebind.MAX_LEGS).flatmap(
        lambda legs: st.builds(
            rebind.Rebound, st.just(legs[0].session), addresses, addresses, st.just(tuple(legs))
        )
    ),
)  # fmt: skip
reasons = (
    st.sampled_from(Cause), st.text().map(wire.clip), st.none() | addresses.filter(any)
)  # fmt: skip
updates = st.one_of(
    st.builds(
        update.UpdateSyn, nonzero, flows, nonzero, modes, addresses, flows, runs, addresses,
        mtus, u32, u32, devices, devices,
    ),
    st.builds(update.UpdateSynAck, nonzero, nonzero, mtus, splices),
    st.builds(update.UpdateAck, nonzero, flows, u64, st.integers(0, 255)),
    st.builds(update.UpdateFin, nonzero, flows, u64, counts),
    st.builds(update.UpdateFinAck, nonzero, flows, u64, counts, u32),
    st.builds(update.UpdateAsk, nonzero, flows, u64),
    st.builds(update.UpdateReject, nonzero, nonzero, *reasons),
    st.builds(
        update.Lock, nonzero, flows, nonzero, modes, addresses, step_runs, addresses, splices
    ),
    st.builds(update.UpdateSub, nonzero, nonzero),
    st.builds(update.UpdateSubAck, nonzero, nonzero),
    st.builds(update.UpdateDrain, nonzero, flows, nonzero, counts),
    st.builds(update.UpdateDrained, nonzero, flows, nonzero, counts),
    st.builds(update.UpdateEmpty, nonzero, flows, nonzero),
    st.builds(update.Join, nonzero, flows, nonzero, nonzero, devices, mtus),
    st.builds(update.Joined, nonzero, flows, nonzero),
    st.integers(1, update.MAX_PARTS).flatmap(
        lambda parts: st.builds(
            update.StatePart, nonzero, nonzero, st.integers(0, parts - 1), st.just(parts),
            st.binary(max_size=update.MAX_PART),
        )
    ),
    st.builds(
        update.StateAck, nonzero, nonzero, st.integers(0, 255), st.sampled_from(update.Progress)
    ),
    st.builds(update.Request, nonzero, nonzero, modes, step_runs, addresses, runs, splices),
    st.builds(update.Approve, nonzero, nonzero),
    st.builds(update.Reject, nonzero, nonzero, *reasons),
    st.builds(update.Done, nonzero, nonzero, u32, st.booleans()),
)  # fmt: skip
messages = updates | moves | st.one_of(
    st.builds(
        Syn, nonzero, flows, flows, chains,
        mtus, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), ports, devices,
    ),
    st.builds(SynAck, nonzero, flows, mtus, devices),
    st.builds(Ack, nonzero, flows),
    st.builds(Fin, nonzero, flows),
    st.builds(FinAck, nonzero, flows),
    st.builds(
        Rst, nonzero, flows, st.sampled_from(Cause), st.text().map(wire.clip),
        st.none() | addresses.filter(any),
    ),
    st.builds(Challenge, u64),
    st.builds(PathReq, nonzero),
    st.builds(PathRep, nonzero, st.binary(max_size=wire.MAX_REPORT)),
)  # fmt: skip
envelopes = st.builds(Envelope, nonzero, u64, nonzero, messages, devices)


def sealed(message: wire.Message) -> bytes:
    return encode(Envelope(0x11, 0x22, 1, message))


def refusal(data: bytes) -> Malformed:
    with pytest.raises(WireError) as caught:
        decode(data)
    return caught.value.reason


@pytest.mark.parametrize(
    ("example", "envelope"),
    [
        (0, Envelope(0x11, 0x22, 7, Ack(SESSION, LEG), DEVICE)),
        (1, Envelope(0x11, 0x22, 1, SYN, DEVICE)),
        (2, Envelope(0x11, 0x22, 1, REBIND, DEVICE)),
        (3, Envelope(0x22, 0x11, 1, REBOUND, OTHER_DEVICE)),
    ],
    ids=["ack", "syn", "rebind", "rebound"],
)
def test_documented_examples(example: int, envelope: Envelope) -> None:
    page = (Path(__file__).parents[2] / "docs" / "wire-format.md").read_text()
    blocks = re.findall(r"(?m)(?:^    [0-9a-f ]+\n)+", page.partition("## Examples")[2])
    documented = bytes.fromhex(blocks[example])
    assert encode(envelope) == documented
    assert decode(documented) == envelope


@given(envelopes)
def test_round_trip(envelope: Envelope) -> None:
    data = encode(envelope)
    assert decode(data) == envelope
    assert len(data) + wire.MAC_SIZE <= wire.MAX_DATAGRAM


@given(st.binary(max_size=1200) | st.builds(lambda e, t: encode(e) + t, envelopes, st.binary()))
def test_decode_raises_nothing_but_wire_errors(data: bytes) -> None:
    try:
        envelope = decode(data)
    except WireError:
        return
    assert encode(envelope) == data  # one message, one encoding


@given(envelopes, st.data())
def test_a_changed_byte_is_noticed(envelope: Envelope, data: st.DataObject) -> None:
    good = bytearray(encode(envelope))
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] ^= data.draw(st.integers(1, 255))
    try:
        changed = decode(bytes(good))
    except WireError:
        return
    assert changed != envelope
    assert encode(changed) == good


@given(envelopes, st.data())
def test_every_prefix_is_truncated(envelope: Envelope, data: st.DataObject) -> None:
    good = encode(envelope)
    cut = data.draw(st.integers(0, len(good) - 1))
    assert refusal(good[:cut]) is Malformed.TRUNCATED
    assert refusal(good + b"\0") is Malformed.OVERSIZED


@given(st.data())
def test_payloads_that_are_nearly_right(data: st.DataObject) -> None:
    """Header and length fit, and of the payload all but some bytes: every part is looked into."""
    good = encode(data.draw(envelopes))
    payload = bytearray(good[wire.HEADER_SIZE :])
    for at in data.draw(st.lists(st.integers(0, max(0, len(payload) - 1)), max_size=4)):
        payload[at : at + 1] = data.draw(st.binary(max_size=3))
    whole = bytearray(good[: wire.HEADER_SIZE] + payload)
    whole[3] = data.draw(st.sampled_from((whole[3], *range(64))))
    struct.pack_into("!H", whole, 6, len(payload))
    try:
        found = decode(bytes(whole))
    except WireError:
        return
    assert encode(found) == whole


def patched(message: wire.Message, offset: int, new: bytes) -> bytes:
    data = sealed(message)
    return data[:offset] + new + data[offset + len(new) :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Malformed.TRUNCATED),
        (patched(SYN, 0, b"M3"), Malformed.MAGIC),
        (patched(SYN, 2, b"\x03"), Malformed.VERSION),
        (patched(SYN, 3, b"\x00"), Malformed.TYPE),
        (patched(SYN, 3, b"\x0a"), Malformed.TYPE),
        (patched(SYN, 4, b"\x00\x01"), Malformed.VALUE),  # flags
        (patched(SYN, 8, bytes(8)), Malformed.VALUE),  # sender epoch
        (patched(SYN, 24, bytes(8)), Malformed.VALUE),  # sequence number
        (patched(SYN, 32, bytes(8)), Malformed.VALUE),  # session
        (patched(Challenge(1), 32, b"\x01"), Malformed.VALUE),  # session of none
        (patched(SYN, 72 + 36, b"\x01"), Malformed.VALUE),  # ICMP
        (patched(SYN, 72 + 37, b"\x01"), Malformed.VALUE),  # padding of a flow
        (patched(SYN, 72 + 120, b"\x00\x43"), Malformed.VALUE),  # an MTU of 67
        (patched(SynAck(1, LEG, 68), 72 + 40, b"\x00\x43"), Malformed.VALUE),
        (patched(SYN, 72 + 124, b"\x00"), Malformed.OVERSIZED),  # no hops, but bytes of them
        (patched(SYN, 72 + 124, b"\x01"), Malformed.OVERSIZED),
        (patched(SYN, 72 + 124, b"\x03"), Malformed.TRUNCATED),
        (patched(SYN, 72 + 124, b"\x11"), Malformed.OVERSIZED),  # 17 hops
        (patched(SYN, 72 + 125, b"\x01"), Malformed.VALUE),  # padding
        (patched(SYN, 72 + 126 + 16, b"\x00"), Malformed.VALUE),  # a client in the chain
        (patched(SYN, 72 + 126 + 16, b"\x03"), Malformed.VALUE),  # a server in the middle
        (patched(SYN, 72 + 126 + 17, b"\x10"), Malformed.OVERSIZED),  # a name of 16 bytes
        (patched(SYN, 72 + 126 + 18, b"\xff"), Malformed.VALUE),  # not UTF-8
        (patched(SYN, 72 + 126 + 18, b"\x1b"), Malformed.VALUE),  # an escape sequence
        (patched(SYN, len(sealed(SYN)) - 2, b"\x01"), Malformed.VALUE),  # ends at a tap
        (patched(Rst(1, LEG, Cause.LOOP, "x"), 72 + 56, b"\xee"), Malformed.VALUE),
        (patched(Rst(1, LEG, Cause.LOOP, "x" * 200), 72 + 57, b"\xc9"), Malformed.OVERSIZED),
        (patched(JOIN, 72 + 40, bytes(8)), Malformed.VALUE),  # no number of the change
        (patched(JOIN, 72 + 48, b"\x03"), Malformed.VALUE),  # mode
        (patched(JOIN, 72 + 65 + 36, b"\x01"), Malformed.VALUE),  # a supersession of ICMP
        (patched(JOIN, 72 + 105, b"\x09"), Malformed.OVERSIZED),  # nine hosts
        (patched(JOIN, 72 + 106 + 16, b"\x03"), Malformed.VALUE),  # a server among them
        (patched(JOIN, 72 + 106 + 36, b"\x00\x43"), Malformed.VALUE),  # an MTU of 67
        (patched(update.UpdateSynAck(1, 2, 68), 72 + 8, b"\x00\x00"), Malformed.VALUE),
        (patched(update.UpdateSynAck(1, 2, 68, SPLICE), 72 + 26, b"\x0f"), Malformed.VALUE),
        (patched(update.Join(1, LEG, 2, 3, bytes(32), 68), 72 + 48, bytes(8)), Malformed.VALUE),
        (patched(update.Reject(1, 2, Cause.BUSY, "x"), 72 + 8, b"\xee"), Malformed.VALUE),
        (patched(update.Reject(1, 2, Cause.BUSY, "x"), 72 + 10, b"\x1b"), Malformed.VALUE),
        (patched(update.Reject(1, 2, Cause.BUSY, "x"), 72 + 9, b"\xc8"), Malformed.TRUNCATED),
        (patched(update.StatePart(1, 2, 0, 1, b"x"), 72 + 8, b"\x01"), Malformed.VALUE),
        (patched(update.StatePart(1, 2, 0, 1, b"x"), 72 + 9, b"\x41"), Malformed.VALUE),
        (
            patched(update.StateAck(1, 2, 0, update.Progress.FAILED), 72 + 9, b"\x03"),
            Malformed.VALUE,
        ),
        (patched(update.Done(1, 2, 0, True), 72 + 12, b"\x02"), Malformed.VALUE),  # yes or no?
        (patched(REBIND, 72 + 80, b"\x00"), Malformed.VALUE),  # no legs
        (patched(REBIND, 72 + 80, b"\x02"), Malformed.TRUNCATED),
        (patched(REBIND, 72 + 80, b"\x19"), Malformed.OVERSIZED),  # 25 legs
        (patched(REBIND, 72 + 81, b"\x09"), Malformed.VALUE),  # not the header's session
        (patched(REBIND, 72 + 81 + 8, b"\x02"), Malformed.VALUE),  # an end
        (patched(REBIND, 72 + 81 + 9, b"\x01"), Malformed.VALUE),  # ICMP
        (patched(REBOUND, 72 + 32, b"\x00"), Malformed.VALUE),
        (patched(REBOUND, 72 + 32, b"\x02"), Malformed.TRUNCATED),
        (patched(REBOUND, 72 + 33 + 8, b"\x02"), Malformed.VALUE),
        (patched(REBOUND, 72 + 33 + 13, b"\x05"), Malformed.VALUE),  # a result
    ],
)
def test_refusals(data: bytes, reason: Malformed) -> None:
    assert refusal(data) is reason


def test_no_hops_at_all() -> None:
    data = bytearray(sealed(SYN)[: 72 + 126])
    struct.pack_into("!H", data, 6, 126)
    data[72 + 124] = 0
    assert refusal(bytes(data)) is Malformed.VALUE


def test_a_report_has_a_bound() -> None:
    data = bytearray(sealed(PathRep(1, bytes(1024))) + b"\0")
    struct.pack_into("!H", data, 6, 1025)
    assert refusal(bytes(data)) is Malformed.OVERSIZED


@pytest.mark.parametrize(
    "message",
    [
        Syn(1, LEG, SUPER, (), 1500, 0, 0, 0),
        Syn(1, LEG, SUPER, CHAIN[:1], 1500, 0, 0, 0),
        Syn(1, LEG, SUPER, CHAIN[:1] * 16 + CHAIN[1:], 1500, 0, 0, 0),
        Syn(1, LEG, SUPER, (Hop(LEG.dst, Position.TAP, "x" * 16), CHAIN[1]), 1500, 0, 0, 0),
        Rst(1, LEG, Cause.LOOP, "x" * 201),
        PathRep(1, bytes(1025)),
        update.Request(1, 2, update.Mode.LF, (), SUPER.dst, CHAIN[:1] * 9),
        update.Request(1, 2, update.Mode.LF, (), SUPER.dst, CHAIN),
        update.Request(1, 0, update.Mode.LF, (), SUPER.dst, CHAIN[:1]),
        update.Reject(1, 2, Cause.BUSY, "x" * 201),
        update.StatePart(1, 2, 0, 1, bytes(961)),
        update.StatePart(1, 2, 0, 65, b""),
        update.Done(1, 2, 2**32, True),
        update.Done(1, -2, 0, True),
        update.Done(2**64, 2, 0, True),
        update.UpdateSynAck(1, 2, 67),
        update.UpdateSynAck(1, 2, 2**70),
        update.StatePart(1, 2, 1, 1, b""),
        Ack(1, LEG._replace(sport=0x10000)),
        Ack(1, LEG._replace(src=bytes(15))),
        SynAck(1, LEG, 1500, bytes(33)),
        msgspec.structs.replace(REBIND, legs=()),
        msgspec.structs.replace(REBIND, legs=(MOVED,) * 25),
        msgspec.structs.replace(REBIND, session=1),
        msgspec.structs.replace(REBOUND, legs=()),
    ],
    ids=[
        "empty", "no server", "17 hops", "long name", "long text", "long report", "nine hosts",
        "a server in a run", "no number", "long reason", "long part", "65 parts", "too many held",
        "a negative number", "a wide session", "small MTU", "wide MTU", "part 1 of 1", "wide port",
        "short address", "long device",
        "no legs", "25 legs", "another session", "no answers",
    ],
)  # fmt: skip
def test_what_cannot_be_sent(message: wire.Message) -> None:
    with pytest.raises(WireError):
        sealed(message)


@pytest.mark.parametrize(
    "message",
    [
        Ack(1, None),
        Ack("1", LEG),
        Rst(1, LEG, Cause.LOOP, None),
        SynAck(1, LEG, 1500, None),
        PathRep(1, "report"),
        update.StatePart(1, 2, 0, 1, "part"),
        update.Request(1, 2, update.Mode.LF, None, SUPER.dst, CHAIN[:1]),
        Syn(1, LEG, SUPER, None, 1500, 0, 0, 0),
        Syn(1, LEG, SUPER, (LEG,), 1500, 0, 0, 0),
        LEG,
    ],
)  # fmt: skip
def test_what_is_no_message_does_no_harm(message: typing.Any) -> None:
    with pytest.raises((TypeError, AttributeError, KeyError, WireError)):
        sealed(message)


def test_clip_keeps_text_printable_and_whole() -> None:
    assert wire.clip("a\x1b[31m\n" + "é" * 300) == "a?[31m?" + "é" * 96


def test_every_message_has_its_strategy() -> None:
    """What is not drawn above is not tested above."""
    drawn = {branch.__name__ for branch in typing.get_args(wire.Message)}
    page = Path(__file__).read_text()
    for name in drawn:
        assert re.search(rf"st\.builds\(\s*((update|rebind)\.)?{name}\b", page), name


def test_next_host_is_the_one_after_the_receiver() -> None:
    two = (CHAIN[0], Hop(parse_address("10.0.2.2"), Position.TAP, "ids"))
    assert wire.next_host(SYN) == CHAIN[1].address
    assert wire.next_host(JOIN) == SUPER.dst
    assert wire.next_host(msgspec.structs.replace(JOIN, hops=two)) == two[1].address
    assert wire.next_host(msgspec.structs.replace(JOIN, hops=())) is None
    assert wire.next_host(update.Request(1, 2, update.Mode.LF, (), SUPER.dst, two)) == LEG.dst
    assert wire.next_host(update.Request(1, 2, update.Mode.LF, (), SUPER.dst, ())) == SUPER.dst
    assert wire.next_host(Ack(1, LEG)) is None


@given(st.binary(max_size=update.MAX_PART * 3))
def test_a_state_is_cut_and_put_together(state: bytes) -> None:
    parts = update.parts_of(state)
    assert b"".join(parts) == state
    assert 1 <= len(parts) <= 4
    assert all(len(part) <= update.MAX_PART for part in parts)


def test_a_state_has_a_bound() -> None:
    most = update.MAX_PART * update.MAX_PARTS
    assert len(update.parts_of(bytes(most))) == update.MAX_PARTS
    with pytest.raises(WireError, match="at most"):
        update.parts_of(bytes(most + 1))
