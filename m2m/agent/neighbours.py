"""Packets that wait for a neighbour on an interface that is down.

An entry sends by the old interface until its session has moved. If that interface is down, the
kernel asks in vain for the neighbour's hardware address, for seconds, and keeps these packets
meanwhile. TCP does not send a segment again while an earlier copy of it waits in a queue of this
host (``TCPSpuriousRtxHostQueues``), so the connection would stand still for as long. When they are
given up it hears that the host was not reached, and sends again at once (RFC 6069).
"""

from __future__ import annotations

import socket
import struct

from m2m.datapath.rtnl import Rtnl, attribute
from m2m.protocol.flow import V4_PREFIX
from m2m.protocol.translation import NextHop

__all__ = ["forget_neighbour"]

_DELNEIGH = 29
_NDMSG = struct.Struct("=B3xiHBB")  # family, interface, state, flags, type
_DST = 1  # NDA_DST


def forget_neighbour(hop: NextHop) -> None:
    """Give up what waits for this next hop; nothing if there is no such neighbour."""
    rtnl = Rtnl()
    try:
        body = _NDMSG.pack(socket.AF_INET, hop.ifindex, 0, 0, 0)
        rtnl.ask(_DELNEIGH, body + attribute(_DST, hop.gateway[len(V4_PREFIX) :]))
    except OSError:  # it, or the interface, is not there any more
        pass
    finally:
        rtnl.close()
