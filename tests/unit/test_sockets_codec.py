"""Messages between proxies and the agent."""

import pytest

from m2m.protocol.flow import Flow
from nf_adapters.sockets import SIZE, Kind, Message, decode, encode

FLOW = Flow.of(6, "10.0.1.2", 40000, "10.0.4.2", 80)


@pytest.mark.parametrize(
    "message",
    [
        Message(Kind.ACCEPTED, 1, flow=FLOW),
        Message(Kind.FOUND, 2**32 - 1, 2**64 - 1, FLOW),
        Message(Kind.UNKNOWN, 3),
        Message(Kind.CONNECTING, 4, 5, Flow.of(6, "2001:db8::1", 1, "2001:db8::2", 2)),
        Message(Kind.REFUSED, 5, 6, FLOW, "no instance of ids answers"),
    ],
)
def test_a_message_is_the_same_after_a_journey(message: Message) -> None:
    data = encode(message)
    assert len(data) == SIZE
    assert decode(data) == message


def test_a_text_that_is_too_long_is_cut_between_characters() -> None:
    assert decode(encode(Message(Kind.REFUSED, 1, text="é" * 100))).text == "é" * 31


def test_what_is_no_message_is_told() -> None:
    data = encode(Message(Kind.READY, 1))
    for wrong in (b"", data[:-1], data + b"x", b"\0" + data[1:], data[:4] + b"\x63" + data[5:]):
        with pytest.raises(ValueError, match=r"no message|another version|not a valid Kind"):
            decode(wrong)
