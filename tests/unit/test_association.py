"""Sealing and opening: meeting, restarting, and everything an attacker can record or forge."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2m.auth import DomainKey
from m2m.protocol.association import WINDOW, Association, Opened
from m2m.protocol.flow import Flow, Proto, parse_address
from m2m.protocol.translation import Position
from m2m.protocol.wire import (
    Ack,
    Cause,
    Challenge,
    Envelope,
    Fin,
    Hop,
    Malformed,
    Message,
    Rst,
    Syn,
    SynAck,
    WireError,
    encode,
)

A, B, C = (parse_address(f"10.0.0.{n}") for n in (1, 2, 3))
LEG = Flow.of(Proto.TCP, "10.0.0.1", 61000, "10.0.0.2", 63263)
KEY = DomainKey(b"k" * 32)
SYN = Syn(9, LEG, LEG, (Hop(B, Position.SERVER),), 1500, 0, 1, 1000)


def agent(seed: int, key: DomainKey = KEY, **options: int) -> Association:
    return Association(key, random.Random(seed), **options)


def deliver(sender: Association, receiver: Association, message: Message) -> list[Message]:
    """Send *message* from A to B, with whatever challenges that takes; what B processes."""
    processed, datagram = [], sender.seal(B, message)
    while True:
        got, reply, _ = receiver.open(A, datagram)
        if got is not None:
            processed.append(got)
        if reply is None:
            return processed
        got, again, _ = sender.open(B, reply)
        assert got is None
        assert again is not None
        datagram = again


def met() -> tuple[Association, Association]:
    a, b = agent(1), agent(2)
    assert deliver(a, b, Ack(1, LEG)) == [Ack(1, LEG)]
    return a, b


def refused(receiver: Association, peer: bytes, datagram: bytes) -> Malformed:
    before = receiver.rejected.copy()
    with pytest.raises(WireError) as caught:
        receiver.open(peer, datagram)
    before[caught.value.reason] += 1
    assert receiver.rejected == before
    return caught.value.reason


def test_strangers_meet_by_one_challenge() -> None:
    a, b = agent(1), agent(2)
    message, challenge, _ = b.open(A, a.seal(B, Ack(1, LEG)))
    assert message is None
    assert challenge is not None
    message, again, _ = a.open(B, challenge)
    assert message is None
    assert again is not None
    assert b.open(A, again) == Opened(Ack(1, LEG), None)
    assert b.challenged == 1


def test_once_met_both_directions_need_no_challenge() -> None:
    a, b = met()
    assert b.open(A, a.seal(B, Fin(2, LEG))) == Opened(Fin(2, LEG), None)
    assert a.open(B, b.seal(A, Fin(3, LEG))) == Opened(Fin(3, LEG), None)
    assert a.challenged == 0
    assert b.challenged == 1


def test_each_of_a_burst_to_a_stranger_gets_through() -> None:
    a, b = agent(1), agent(2)
    burst = [Ack(n, LEG) for n in range(1, 50)]
    challenges = [b.open(A, a.seal(B, message)).reply for message in burst]
    again = [a.open(B, challenge).reply for challenge in challenges if challenge]
    assert [b.open(A, datagram).message for datagram in again if datagram] == burst


def test_a_restarted_peer_is_met_again() -> None:
    a, _gone = met()
    b = agent(3)
    assert deliver(a, b, Ack(5, LEG)) == [Ack(5, LEG)]
    assert b.challenged == 1


def test_what_was_recorded_before_a_restart_is_challenged_not_processed() -> None:
    a, b = met()
    recorded = a.seal(B, Fin(1, LEG))
    assert b.open(A, recorded).message
    b = agent(3)
    message, challenge, _ = b.open(A, recorded)
    assert message is None
    assert challenge is not None
    assert len(challenge) <= len(recorded)  # of no use as an amplifier


def test_replayed_and_too_old() -> None:
    a, b = met()
    old = a.seal(B, Ack(1, LEG))
    first = a.seal(B, Ack(2, LEG))
    b.open(A, first)
    assert refused(b, A, first) is Malformed.REPLAYED
    for _ in range(WINDOW):
        b.open(A, a.seal(B, Ack(3, LEG)))
    assert refused(b, A, first) is Malformed.REPLAYED
    assert refused(b, A, old) is Malformed.REPLAYED


def test_one_sender_under_two_addresses_shares_a_window() -> None:
    a, b = met()
    datagram = a.seal(B, Ack(2, LEG))
    assert b.open(C, datagram).message
    assert refused(b, A, datagram) is Malformed.REPLAYED


@given(st.lists(st.integers(1, 3 * WINDOW), max_size=60))
def test_window_accepts_each_number_once(order: list[int]) -> None:
    b = agent(2)
    seen: set[int] = set()
    top = 0
    for seq in order:
        data = encode(Envelope(77, b.epoch, seq, Ack(1, LEG)))
        try:
            accepted = b.open(A, data + KEY.mac(data)).message is not None
        except WireError:
            accepted = False
        assert accepted == (seq not in seen and seq > top - WINDOW)
        if accepted:
            seen.add(seq)
            top = max(top, seq)


def test_a_full_table_takes_a_new_epoch_and_forgets() -> None:
    b = agent(2, senders=4)
    senders = [agent(10 + n) for n in range(5)]
    recorded = []
    for sender in senders[:4]:
        assert deliver(sender, b, Ack(1, LEG))
        recorded.append(sender.seal(B, Ack(2, LEG)))
        b.open(A, recorded[-1])
    before = b.epoch
    assert deliver(senders[4], b, Ack(1, LEG)) == [Ack(1, LEG)]
    assert b.epoch != before
    for datagram in recorded:  # windows are gone, and still nothing is processed twice
        assert b.open(A, datagram).message is None
    assert all(deliver(sender, b, Ack(3, LEG)) == [Ack(3, LEG)] for sender in senders)


def test_a_challenge_is_believed_once_and_only_to_what_was_sent() -> None:
    a, b = agent(1), agent(2)
    challenge = b.open(A, a.seal(B, Ack(1, LEG))).reply
    assert challenge is not None
    assert refused(a, C, challenge) is Malformed.REPLAYED  # nothing was sent there
    assert a.open(B, challenge).reply is not None
    assert refused(a, B, challenge) is Malformed.REPLAYED
    restarted = agent(3)
    restarted.seal(B, Ack(1, LEG))
    assert refused(restarted, B, challenge) is Malformed.REPLAYED  # of another epoch


@pytest.mark.parametrize("outcome", ["answered", "given up"])
def test_what_was_said_and_done_is_not_said_again_to_a_restarted_peer(outcome: str) -> None:
    """Whoever has recorded it could have an old session set up anew."""
    a, b = met()
    recorded = a.seal(B, SYN)
    if outcome == "answered":
        assert b.open(A, recorded).message == SYN
        assert a.open(B, b.seal(A, SynAck(SYN.session, LEG, 1500))).message
    else:
        a.seal(B, Rst(SYN.session, LEG, Cause.TIMEOUT, ""))
    b = agent(3)
    challenge = b.open(A, recorded).reply
    assert challenge is not None
    assert refused(a, B, challenge) is Malformed.REPLAYED


def test_nobody_answers_a_challenge_with_a_challenge() -> None:
    a, b = agent(1), agent(2)
    data = encode(Envelope(9, 9, 9, Challenge(1)))
    assert refused(a, B, data + KEY.mac(data)) is Malformed.REPLAYED
    assert a.challenged == b.challenged == 0


def test_a_foreign_key_and_every_flipped_bit_fail_the_mac() -> None:
    a, b = met()
    assert refused(b, A, agent(4, DomainKey(b"x" * 32)).seal(B, Ack(1, LEG))) is Malformed.BAD_MAC
    datagram = a.seal(B, Ack(1, LEG))
    for at in range(len(datagram)):
        changed = bytearray(datagram)
        changed[at] ^= 0x40
        assert refused(b, A, bytes(changed)) is Malformed.BAD_MAC
    assert b.open(A, datagram).message == Ack(1, LEG)  # and none of them changed anything


def test_lengths_come_before_the_mac_and_the_rest_after_it() -> None:
    a, b = met()
    datagram = a.seal(B, Ack(1, LEG))
    assert refused(b, A, datagram[:55]) is Malformed.TRUNCATED
    assert refused(b, A, datagram + bytes(1080)) is Malformed.OVERSIZED
    unknown = datagram[:2] + b"\x07" + datagram[3:-16]
    assert refused(b, A, unknown + bytes(16)) is Malformed.BAD_MAC
    assert refused(b, A, unknown + KEY.mac(unknown)) is Malformed.VERSION


@given(st.binary(max_size=1200))
def test_noise(data: bytes) -> None:
    b = agent(2)
    assert refused(b, A, data) in (Malformed.TRUNCATED, Malformed.OVERSIZED, Malformed.BAD_MAC)


def test_forgotten_peers_are_met_again() -> None:
    a, b = met()
    for n in range(2000):
        a.seal(n.to_bytes(16), Ack(1, LEG))
    assert deliver(a, b, Ack(2, LEG)) == [Ack(2, LEG)]


def test_whose_device_speaks_is_told_and_remembered() -> None:
    a = Association(KEY, random.Random(1), device=b"a" * 32)
    b = Association(KEY, random.Random(2), device=b"b" * 32)
    assert deliver(a, b, Ack(1, LEG))
    assert b.open(A, a.seal(B, Ack(2, LEG))).device == b"a" * 32
    assert b.devices == {A: b"a" * 32} and a.devices == {B: b"b" * 32}
    assert b.open(C, a.seal(B, Ack(3, LEG))).device == b"a" * 32  # it has moved
    assert b.devices == {A: b"a" * 32, C: b"a" * 32}
