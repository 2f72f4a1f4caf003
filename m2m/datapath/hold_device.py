"""The device behind which packets of changing sessions wait (``m2m/bpf/change.h``).

A pair of virtual Ethernet interfaces without addresses. What is sent to an unknown neighbour there
stays in the kernel's queue for that neighbour, in order, until an ARP reply comes from the other
end (:meth:`HoldDevice.let_go`). Nothing but what the agent wants to look at ever goes to that end.

It stays when the agent goes, with what waits: ``m2m_held`` is attached, and lets that go.
"""

from __future__ import annotations

import errno
import re
import socket
import struct
import zlib

from m2m.datapath.rtnl import CREATE, EXCLUSIVE, NESTED, REPLACE, Rtnl, attribute
from m2m.errors import UnsupportedHost

__all__ = ["HoldDevice", "is_hold_device"]

_NEWLINK, _DELLINK, _SETLINK, _DELNEIGH, _SETNEIGHTBL = 16, 17, 19, 29, 67
_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, mask of flags
_NDMSG = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_IFF_UP = 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_AF_SPEC = 1, 3, 4, 18, 26
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_ADDR_GEN_MODE, _ADDR_GEN_NONE = 8, 1
_NDTA_NAME, _NDTA_PARMS = 1, 6
_NDTPA_IFINDEX, _NDTPA_RETRANS, _NDTPA_PROBES, _NDTPA_BYTES = 1, 5, 11, 16
_NDA_DST = 1

_NAME = re.compile(r"m2m[hp][0-9a-f]{8}")
_MAC = bytes.fromhex("024d32040000")  # of kind 4: no other one has it (change.h)
_ANY_MAC = bytes.fromhex("024d32030000")  # M2M_MAC_OTHER
# An ARP reply (RFC 826) as far as the addresses: Ethernet header, kinds and sizes of addresses.
_REPLY = _MAC + _ANY_MAC + bytes.fromhex("0806 0001 0800 06 04 0002")
_NOBODY = bytes(4)  # asked: an address that announces itself may be disbelieved
_MTU = 65535
_ASK_AGAIN = 250  # ms; how soon m2m_held finds that the agent is away, or time over
_FOR_EVER = 1 << 30  # times asked, before the kernel would throw away what waits
_BYTES = (1 << 31) - 1  # in one queue; what bounds it is the number of packets


def is_hold_device(name: str) -> bool:
    """Whether an interface of this name is an end of such a pair, of whatever agent."""
    return _NAME.fullmatch(name) is not None


class HoldDevice:
    """The pair of one agent in the calling thread's network namespace; taken over if there."""

    def __init__(self, name: str) -> None:
        """Raises :exc:`~m2m.errors.UnsupportedHost`."""
        number = zlib.crc32(name.encode())
        self.name, self.peer = f"m2mh{number:08x}", f"m2mp{number:08x}"
        self._rtnl = Rtnl()
        try:
            self._make()
            self._answers = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._answers.bind((self.peer, 0))
        except OSError as error:
            self._rtnl.close()
            raise UnsupportedHost(
                f"the device {self.name}, where packets of changing sessions wait, cannot be made"
                f" ({error.strerror}); M2M needs virtual Ethernet interfaces (CONFIG_VETH)"
            ) from error

    def _make(self) -> None:
        try:
            self.ifindex = socket.if_nametoindex(self.name)
        except OSError:
            self._create()
            self.ifindex = socket.if_nametoindex(self.name)
        self.peer_ifindex = socket.if_nametoindex(self.peer)
        for ifindex in (self.peer_ifindex, self.ifindex):
            self._rtnl.ask(_SETLINK, _IFINFO.pack(0, 0, ifindex, _IFF_UP, _IFF_UP))
        parameters = (
            attribute(_NDTPA_IFINDEX, struct.pack("=I", self.ifindex))
            + attribute(_NDTPA_RETRANS, struct.pack("=Q", _ASK_AGAIN))
            + attribute(_NDTPA_PROBES, struct.pack("=I", _FOR_EVER))
            + attribute(_NDTPA_BYTES, struct.pack("=I", _BYTES))
        )
        self._rtnl.ask(
            _SETNEIGHTBL,
            struct.pack("=Bxxx", socket.AF_INET)
            + attribute(_NDTA_NAME, b"arp_cache\0")
            + attribute(_NDTA_PARMS | NESTED, parameters),
            REPLACE,
        )

    def _create(self) -> None:
        peer = _IFINFO.pack(0, 0, 0, 0, 0) + attribute(_IFLA_IFNAME, self.peer.encode() + b"\0")
        peer += attribute(_IFLA_MTU, struct.pack("=I", _MTU))
        data = attribute(_VETH_PEER | NESTED, peer)
        info = attribute(_INFO_KIND, b"veth\0") + attribute(_INFO_DATA | NESTED, data)
        self._rtnl.ask(
            _NEWLINK,
            _IFINFO.pack(0, 0, 0, 0, 0)
            + attribute(_IFLA_IFNAME, self.name.encode() + b"\0")
            + attribute(_IFLA_ADDRESS, _MAC)
            + attribute(_IFLA_MTU, struct.pack("=I", _MTU))
            + attribute(_IFLA_LINKINFO | NESTED, info),
            CREATE | EXCLUSIVE,
        )
        # No addresses of its own, or it would announce them and itself be announced.
        mode = attribute(_ADDR_GEN_MODE, bytes((_ADDR_GEN_NONE,)))
        family = attribute(socket.AF_INET6 | NESTED, mode)
        for each in (self.name, self.peer):
            body = _IFINFO.pack(0, 0, socket.if_nametoindex(each), 0, 0)
            try:
                self._rtnl.ask(_SETLINK, body + attribute(_IFLA_AF_SPEC | NESTED, family))
            except OSError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):  # no IPv6 at all
                    raise

    def let_go(self, address: bytes) -> None:
        """Let all that waits at *address* go, in order. As a rule they have left when this returns,
        but the kernel may do it a little later."""
        self._answers.send(_REPLY + _ANY_MAC + address + _MAC + _NOBODY)

    def forget(self, address: bytes) -> None:
        """Have the kernel forget a place, which must be empty."""
        body = _NDMSG.pack(socket.AF_INET, self.ifindex, 0, 0, 0)
        try:
            self._rtnl.ask(_DELNEIGH, body + attribute(_NDA_DST, address))
        except OSError as error:
            if error.errno != errno.ENOENT:  # nothing has waited there
                raise

    def close(self, *, keep: bool) -> None:
        self._answers.close()
        if not keep:
            try:
                self._rtnl.ask(_DELLINK, _IFINFO.pack(0, 0, self.ifindex, 0, 0))
            except OSError as error:
                if error.errno != errno.ENODEV:  # taken out by somebody else
                    raise
        self._rtnl.close()
