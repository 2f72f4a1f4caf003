"""Requests to a netlink socket and their answers. Unprivileged they are refused, which will do."""

from __future__ import annotations

import errno
import struct

import pytest

from nf_adapters.state.netlink import Netfilter, Refused

NO_SUCH_SUBSYSTEM = 200 << 8


def request(sequence: int) -> bytes:
    return struct.pack("=IHHII4x", 20, NO_SUCH_SUBSYSTEM, 1, sequence, 0)


def test_an_error_is_raised_and_an_earlier_answer_is_not_taken_for_it() -> None:
    kernel = Netfilter()
    try:
        earlier, sequence = kernel.next_sequence(), kernel.next_sequence()
        with pytest.raises(Refused) as caught:
            kernel.ask(request(earlier) + request(sequence))
        assert caught.value.number in (errno.EINVAL, errno.EPERM)
        assert "(" in str(caught.value)
        with pytest.raises(Refused, match="EAGAIN"):
            kernel.ask(request(earlier))  # answered, but to another question
    finally:
        kernel.close()


def test_a_request_that_cannot_be_sent_is_refused() -> None:
    kernel = Netfilter()
    kernel.close()
    with pytest.raises(Refused, match="EBADF"):
        kernel.ask(request(kernel.next_sequence()))
