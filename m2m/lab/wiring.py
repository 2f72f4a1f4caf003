"""Links, addresses and routes of a lab's host, changed by rtnetlink at once.

A process of ``ip`` takes milliseconds to start, which would count as the link's own outage.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import time
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

from m2m.datapath.rtnl import CREATE, REPLACE, Rtnl, attribute
from m2m.lab.netns import LabError, inside

_NEWLINK, _NEWADDR, _DELADDR, _NEWROUTE, _DELROUTE, _NEWNEIGH = 16, 20, 21, 24, 25, 28
_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFADDR = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, lengths, tos, table, protocol, scope, type, flags
_NDMSG = struct.Struct("=B3xiHBB")  # family, index, state, flags, type
_LOCAL, _ADDRESS, _BROADCAST = 2, 1, 4  # IFA_*
_DST, _OIF, _GATEWAY, _PRIORITY = 1, 4, 5, 6  # RTA_*
_NDA_DST, _NDA_LLADDR, _REACHABLE = 1, 2, 0x02
_MAIN, _BOOT, _UNIVERSE, _UNICAST = 254, 3, 0, 1
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_SIOCGIFFLAGS, _SIOCGIFHWADDR = 0x8913, 0x8927
_LOOK = 2e-5  # s
_LINK_LIMIT = 2.0  # s until a link that is up at both ends carries packets


class Wiring:
    """One host's interfaces. Every call returns when the kernel has done it; none waits long.

    Raises :exc:`OSError` with the kernel's answer.
    """

    def __init__(self, namespace: Path) -> None:
        self._namespace = namespace
        self._rtnl = inside(namespace, Rtnl)
        self._carrier = inside(namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._indices: dict[str, int] = {}

    def close(self) -> None:
        """Give the sockets back."""
        self._rtnl.close()
        self._carrier.close()

    def up(self, device: str) -> None:
        """Bring an interface up; it carries nothing before its other end is up as well."""
        self._set_flags(device, _IFF_UP)

    def down(self, device: str) -> None:
        """Take an interface down, and with it all routes that lead there."""
        self._set_flags(device, 0)

    def add(self, device: str, address: IPv4Interface) -> None:
        """Give an interface an address, with the route to its subnet."""
        flags = CREATE | REPLACE
        self._rtnl.ask(_NEWADDR, self._address(device, address), flags)

    def remove(self, device: str, address: IPv4Interface) -> None:
        """Take an address, and the routes that need it."""
        self._rtnl.ask(_DELADDR, self._address(device, address))

    def route(
        self, to: str, gateway: str | None, device: str, *, metric: int = 0
    ) -> None:  # fmt: skip
        """Lead ``default`` or a prefix by *device*, instead of where it led with this metric."""
        body = self._route(to, gateway, device, metric)
        self._rtnl.ask(_NEWROUTE, body, CREATE | REPLACE)

    def unroute(self, to: str, gateway: str | None, device: str, *, metric: int = 0) -> None:
        """Take a route out."""
        self._rtnl.ask(_DELROUTE, self._route(to, gateway, device, metric))

    def neighbour(self, device: str, address: IPv4Address, hardware: bytes) -> None:
        """Know the hardware address of a neighbour without asking for it by ARP."""
        body = _NDMSG.pack(socket.AF_INET, self._index(device), _REACHABLE, 0, 0)
        body += attribute(_NDA_DST, address.packed) + attribute(_NDA_LLADDR, hardware)
        self._rtnl.ask(_NEWNEIGH, body, CREATE | REPLACE)

    def hardware(self, device: str) -> bytes:
        """The interface's own hardware address."""
        request = struct.pack("16sH22x", device.encode(), 0)
        return fcntl.ioctl(self._carrier, _SIOCGIFHWADDR, request)[18:24]

    def carries(self, device: str) -> bool:
        """Whether packets can leave by *device*: up, with a carrier, and its queue at work."""
        request = struct.pack("16sH22x", device.encode(), 0)
        (flags,) = struct.unpack_from("16xH", fcntl.ioctl(self._carrier, _SIOCGIFFLAGS, request))
        return bool(flags & _IFF_RUNNING)

    def wait_until_it_carries(self, device: str) -> None:
        """Look until :meth:`carries`, for some tenths of a millisecond; :exc:`LabError` if never.

        The kernel has no finer event for it than a message that others would have to read. What
        makes the link carry may be about to run on this processor, so it is let in between.
        """
        limit = time.monotonic() + _LINK_LIMIT
        while not self.carries(device):
            if time.monotonic() > limit:
                raise LabError(f"{device} in {self._namespace.name} has no carrier after"
                               f" {_LINK_LIMIT:g} s; is its other end up?")  # fmt: skip
            time.sleep(_LOOK)

    def _index(self, device: str) -> int:
        if device not in self._indices:
            self._indices[device] = inside(self._namespace, lambda: socket.if_nametoindex(device))
        return self._indices[device]

    def _set_flags(self, device: str, flags: int) -> None:
        body = _IFINFO.pack(socket.AF_UNSPEC, 0, self._index(device), flags, _IFF_UP)
        self._rtnl.ask(_NEWLINK, body)

    def _address(self, device: str, address: IPv4Interface) -> bytes:
        head = _IFADDR.pack(
            socket.AF_INET, address.network.prefixlen, 0, _UNIVERSE, self._index(device)
        )
        return (
            head
            + attribute(_LOCAL, address.ip.packed)
            + attribute(_ADDRESS, address.ip.packed)
            + attribute(_BROADCAST, address.network.broadcast_address.packed)
        )

    def _route(self, to: str, gateway: str | None, device: str, metric: int) -> bytes:
        network = IPv4Interface("0.0.0.0/0" if to == "default" else to).network
        scope = _UNIVERSE if gateway else 253  # RT_SCOPE_LINK
        head = _RTMSG.pack(
            socket.AF_INET, network.prefixlen, 0, 0, _MAIN, _BOOT, scope, _UNICAST, 0
        )
        body = head + attribute(_OIF, struct.pack("=I", self._index(device)))
        if network.prefixlen:
            body += attribute(_DST, network.network_address.packed)
        if gateway is not None:
            body += attribute(_GATEWAY, IPv4Address(gateway).packed)
        if metric:
            body += attribute(_PRIORITY, struct.pack("=I", metric))
        return body
