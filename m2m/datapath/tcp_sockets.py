"""What the kernel knows of a TCP socket, all of it at one moment (``m2m/bpf/tcp.bpf.c``).

``TCP_INFO`` and repair mode tell less, and the latter is heard by the peer.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from m2m.datapath._bpf import BpfError, Object, Program
from m2m.errors import UnsupportedHost
from m2m.protocol.flow import V4_PREFIX, Flow, is_ipv4

__all__ = ["State", "TcpSocket", "TcpSockets"]

_PROGRAM = Path(__file__).parent.parent / "bpf" / "tcp.bpf.o"
_ETHERNET = bytes(14)
_QUESTION = struct.Struct("=4s4sHH4x")  # struct m2m_tcp_question
_ANSWER = struct.Struct("=9IHHBB2x")  # struct m2m_tcp_answer
_STAMPS, _SACK, _ECN, _URGENT = 1, 2, 4, 8


class State(IntEnum):
    """Of a connection (net/tcp_states.h)."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12


class TcpSocket(NamedTuple):
    """One end of a connection; numbers are sequence numbers, modulo 2**32."""

    state: State
    receives: int  # the next that it would get,
    read: int  # that its program would,
    told: int  # and that it has told its peer
    sends: int  # the next that it would send,
    acked: int  # the first that is not acknowledged,
    written: int  # and the next that its program would write
    peer_clock: int  # TSval of what came last, in order
    peer_window: int  # octets: the largest that its peer has announced
    mss: int  # that it has announced
    peer_mss: int
    scale: int  # of windows that it announces
    peer_scale: int
    stamps: bool
    sack: bool
    ecn: bool
    urgent: bool

    @property
    def at_rest(self) -> bool:
        """Whether all that came is read and acknowledged, and all that was written, too."""
        return self.receives == self.read == self.told and self.acked == self.written == self.sends


class TcpSockets:
    """Those of the calling thread's network namespace. Opened when it is needed first."""

    def __init__(self) -> None:
        self._loaded: Object | None = None
        self._look: Program | None = None

    def prepare(self) -> None:
        """Load the program, so that who asks first need not wait. Raises as :meth:`find`."""
        if self._look is not None:
            return
        try:
            self._loaded = Object(_PROGRAM)
            self._loaded.load()
            self._look = self._loaded.program("m2m_look_at_tcp")
        except BpfError as error:
            raise UnsupportedHost(f"this kernel does not tell of its sockets: {error}") from error

    def find(self, flow: Flow) -> TcpSocket | None:
        """The one that sends *flow*; None: there is none, or it is over.

        Raises :exc:`~m2m.errors.UnsupportedHost`.
        """
        if not (is_ipv4(flow.src) and is_ipv4(flow.dst)):
            return None
        self.prepare()
        assert self._look is not None
        cut = len(V4_PREFIX)
        question = _QUESTION.pack(
            flow.src[cut:], flow.dst[cut:], _network(flow.sport), _network(flow.dport)
        )
        frame = _ETHERNET + question + bytes(_ANSWER.size)
        answer = self._look.run(data=frame)[1]
        assert answer is not None
        (
            state, receives, read, told, sends, acked, written, peer_clock, peer_window, mss,
            peer_mss, scales, options,
        ) = _ANSWER.unpack_from(answer, len(_ETHERNET) + _QUESTION.size)  # fmt: skip
        if not state:
            return None
        stamps, sack, ecn, urgent = (bool(options & one) for one in (_STAMPS, _SACK, _ECN, _URGENT))
        return TcpSocket(
            State(state), receives, read, told, sends, acked, written, peer_clock, peer_window,
            mss, peer_mss, scales & 15, scales >> 4, stamps, sack, ecn, urgent,
        )  # fmt: skip

    def close(self) -> None:
        if self._loaded is not None:
            self._loaded.close()


def _network(port: int) -> int:
    """As a 16-bit number in the machine's order, of which the octets lie in the network's."""
    return int.from_bytes(port.to_bytes(2, "big"), "little")
