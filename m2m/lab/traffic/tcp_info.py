"""What the kernel tells about a TCP socket (``struct tcp_info`` of linux/tcp.h)."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

# Up to tcpi_rcv_ooopack, which Linux 5.4 brought.
_LAYOUT = struct.Struct("8B24I4Q6I4Q2I2Q3I")
_RTT, _RETRANSMITTED = 8 + 15, 8 + 23
_DSACKS, _OUT_OF_ORDER = 8 + 24 + 4 + 6 + 4 + 2 + 2, 8 + 24 + 4 + 6 + 4 + 2 + 2 + 2


class TcpInfo(NamedTuple):
    """Of one end of a connection, since it was opened."""

    retransmitted: int  # segments sent again
    unneeded: int  # of those, how many the peer had already (it said so: DSACK)
    out_of_order: int  # packets received behind a gap
    rtt: float  # s, smoothed


def read(sock: socket.socket) -> TcpInfo:
    """The present state of *sock*. Raises :exc:`OSError` when it is no TCP socket."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAYOUT.size)
    fields = _LAYOUT.unpack(raw.ljust(_LAYOUT.size, b"\0"))
    return TcpInfo(
        fields[_RETRANSMITTED], fields[_DSACKS], fields[_OUT_OF_ORDER], fields[_RTT] / 1e6
    )
