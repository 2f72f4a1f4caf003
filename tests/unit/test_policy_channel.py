"""The policy channel: whatever is not exactly what the other side sent breaks it."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from m2m.auth import MAC_SIZE, DomainKey
from m2m.policy.channel import Channel, ChannelError, Codec, Fault, Side

KEY = DomainKey(b"k" * 32)
OTHER_KEY = DomainKey(b"o" * 32)
GREETING = 36
PROOF = 4 + MAC_SIZE


class Note(msgspec.Struct, tag=True):
    text: str


def pair(limit: int = 1 << 16) -> tuple[Codec, Codec]:
    """A client's and a server's codec that have shaken hands."""
    client, server = Codec(KEY, Side.CLIENT, limit=limit), Codec(KEY, Side.SERVER, limit=limit)
    client.feed(server.take())
    server.feed(client.take())
    assert not client.shake_hands()
    assert not server.shake_hands()
    client.feed(server.take())
    server.feed(client.take())
    assert client.shake_hands()
    assert server.shake_hands()
    return client, server


def drain(codec: Codec) -> list[bytes]:
    payloads = []
    while (payload := codec.next_payload()) is not None:
        payloads.append(payload)
    return payloads


def fault_of(action: Callable[[], Any]) -> Fault:
    with pytest.raises(ChannelError) as caught:
        action()
    return caught.value.fault


@given(st.lists(st.binary(max_size=300), max_size=6), st.integers(1, 50))
def test_payloads_arrive_as_sent_however_the_bytes_are_cut(
    payloads: list[bytes], step: int
) -> None:
    client, server = pair()
    wire = b"".join(client.seal(payload) for payload in payloads)
    received = []
    for start in range(0, len(wire), step):
        server.feed(wire[start : start + step])
        received += drain(server)
    assert received == payloads
    server.end()


@given(st.data())
def test_any_changed_bit_breaks_the_channel(data: st.DataObject) -> None:
    client, server = pair()
    payloads = [b"one", b"two", b"six"]
    wire = bytearray(b"".join(client.seal(payload) for payload in payloads))
    bit = data.draw(st.integers(0, 8 * len(wire) - 1))
    wire[bit // 8] ^= 1 << bit % 8
    server.feed(bytes(wire))
    received = []

    def read_to_the_end() -> None:
        while (payload := server.next_payload()) is not None:
            received.append(payload)
        server.end()  # a length made longer shows here at the latest

    assert fault_of(read_to_the_end) in {Fault.BAD_MAC, Fault.OVERSIZE, Fault.TRUNCATED}
    changed_frame = bit // 8 // (len(wire) // 3)
    assert received == payloads[:changed_frame]


@given(st.data())
def test_a_frame_cut_short_is_noticed_at_the_end(data: st.DataObject) -> None:
    client, server = pair()
    wire = client.seal(b"payload")
    server.feed(wire[: data.draw(st.integers(1, len(wire) - 1))])
    assert drain(server) == []
    assert fault_of(server.end) is Fault.TRUNCATED


def test_a_frame_sent_twice_is_refused_the_second_time() -> None:
    client, server = pair()
    frame = client.seal(b"load")
    server.feed(frame + frame)
    assert server.next_payload() == b"load"
    assert fault_of(server.next_payload) is Fault.BAD_MAC


def test_a_lost_or_swapped_frame_is_noticed() -> None:
    client, server = pair()
    first, second = client.seal(b"1"), client.seal(b"2")
    server.feed(second + first)
    assert fault_of(server.next_payload) is Fault.BAD_MAC


def test_a_frame_of_another_connection_does_not_fit() -> None:
    client, _ = pair()
    _, server = pair()
    server.feed(client.seal(b"load"))
    assert fault_of(server.next_payload) is Fault.BAD_MAC


def test_a_frame_sent_back_to_its_sender_does_not_fit() -> None:
    client, _ = pair()
    client.feed(client.seal(b"load"))
    assert fault_of(client.next_payload) is Fault.BAD_MAC


def test_a_replayed_connection_proves_nothing() -> None:
    client, server = Codec(KEY, Side.CLIENT), Codec(KEY, Side.SERVER)
    recorded = client.take()
    client.feed(server.take())
    client.shake_hands()
    recorded += client.take() + client.seal(b"load")
    fresh = Codec(KEY, Side.SERVER)
    fresh.feed(recorded)
    assert fault_of(fresh.shake_hands) is Fault.BAD_MAC
    assert not fresh.ready


def test_another_key_is_told_apart_from_damage() -> None:
    client, server = Codec(OTHER_KEY, Side.CLIENT), Codec(KEY, Side.SERVER)
    client.feed(server.take())
    client.shake_hands()
    server.feed(client.take())
    with pytest.raises(ChannelError, match="do not have the same key file"):
        server.shake_hands()


def test_nothing_longer_than_a_proof_is_taken_from_a_stranger() -> None:
    server = Codec(KEY, Side.SERVER)
    server.feed(Codec(OTHER_KEY, Side.CLIENT).take() + struct.pack("!I", 1))
    assert fault_of(server.shake_hands) is Fault.NO_PROOF


def test_an_announced_length_over_the_limit_is_refused_before_it_is_buffered() -> None:
    _, server = pair(limit=100)
    server.feed(struct.pack("!I", 101))
    assert fault_of(server.next_payload) is Fault.OVERSIZE


def test_the_limit_itself_is_allowed_and_one_more_is_not_sent() -> None:
    client, server = pair(limit=100)
    server.feed(client.seal(b"x" * 100))
    assert server.next_payload() == b"x" * 100
    assert fault_of(lambda: client.seal(b"x" * 101)) is Fault.OVERSIZE
    server.feed(client.seal(b"the refused one has taken no number"))
    assert drain(server) == [b"the refused one has taken no number"]


@pytest.mark.parametrize(
    ("greeting", "fault"),
    [
        (b"GET / HTTP/1.1\r\n", Fault.NOT_M2M),
        (b"M3", Fault.NOT_M2M),
        (b"M2P\x02" + bytes(32), Fault.VERSION),
    ],
)
def test_a_stranger_is_told_from_another_version(greeting: bytes, fault: Fault) -> None:
    server = Codec(KEY, Side.SERVER)
    server.feed(greeting)
    assert fault_of(server.shake_hands) is fault


@given(st.binary(max_size=200))
def test_no_noise_is_taken_for_a_proof(noise: bytes) -> None:
    server = Codec(KEY, Side.SERVER)
    server.feed(noise)
    with contextlib.suppress(ChannelError):
        assert not server.shake_hands()
    assert not server.ready


# --- over Trio streams


async def connected() -> tuple[Channel[Note], Channel[Note]]:
    left, right = trio.testing.memory_stream_pair()
    channels: dict[Side, Channel[Note]] = {}

    async def shake(stream: trio.abc.Stream, side: Side) -> None:
        channels[side] = await Channel.open(stream, KEY, side, Note)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shake, left, Side.CLIENT)
        nursery.start_soon(shake, right, Side.SERVER)
    return channels[Side.CLIENT], channels[Side.SERVER]


async def test_messages_go_both_ways_and_the_end_is_told() -> None:
    client, server = await connected()
    await client.send(Note("there"))
    await server.send(Note("and back"))
    assert await server.receive() == Note("there")
    assert await client.receive() == Note("and back")
    await client.aclose()
    assert await server.receive() is None


async def test_frames_sent_at_once_by_many_tasks_stay_in_order() -> None:
    client, server = await connected()
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(client.send, Note(str(number)))
        received = [await server.receive() for _ in range(20)]
    assert sorted(int(note.text) for note in received if note) == list(range(20))


async def test_an_authentic_message_of_an_unknown_type_is_malformed() -> None:
    class Newer(msgspec.Struct, tag=True):
        text: str

    client, server = await connected()
    await client.send(Newer("?"))
    with pytest.raises(ChannelError, match="same M2M on both hosts") as caught:
        await server.receive()
    assert caught.value.fault is Fault.MALFORMED


async def test_a_silent_stranger_is_given_up_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    left, right = trio.testing.memory_stream_pair()
    began = trio.current_time()
    with pytest.raises(ChannelError, match="within 5 s") as caught:
        await Channel.open(left, KEY, Side.SERVER, Note)
    assert caught.value.fault is Fault.TIMEOUT
    assert trio.current_time() - began == 5.0
    await right.receive_some(GREETING)
    assert await right.receive_some(1) == b""


async def test_wrong_keys_end_the_handshake_on_both_sides() -> None:
    left, right = trio.testing.memory_stream_pair()
    faults = []

    async def shake(stream: trio.abc.Stream, key: DomainKey, side: Side) -> None:
        with pytest.raises(ChannelError, match=r"key") as caught:
            await Channel.open(stream, key, side, Note)
        faults.append(caught.value.fault)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shake, left, KEY, Side.CLIENT)
            nursery.start_soon(shake, right, OTHER_KEY, Side.SERVER)
    assert len(faults) == 2
    assert set(faults) <= {Fault.BAD_MAC, Fault.NO_PROOF}
