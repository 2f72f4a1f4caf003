"""Addresses of sessions stay addresses of this host, wherever its interfaces are.

Sockets keep using the address that their session began with. When no interface has it any more, the
kernel would neither send from it nor deliver to it, so as long as a session needs it there is a
route for it beside the kernel's own: ``local A/32 dev lo scope host``. An address on ``lo`` would
not do: a socket that joins a multicast group by that address would join it there.

With such a route the host would answer ARP requests for the address on all its interfaces, also
when it is somebody else's by now. ``arp_ignore=3`` on the interfaces that have no stricter setting
makes it answer only for addresses that an interface has. What is sent needs no setting: the kernel
asks by ARP only with addresses of the interface by which it asks.

What has been changed is in a file before it is, so that the next agent takes it back.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog
import trio

from m2m.datapath.rtnl import CREATE, EXCLUSIVE, Rtnl, attribute
from m2m.protocol.flow import V4_PREFIX, Address, format_address, is_ipv4, parse_address

__all__ = ["Keeping"]

_log = structlog.get_logger()

_NEWROUTE, _DELROUTE = 24, 25
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, lengths, tos, table, protocol, scope, type, flags
_LOCAL_TABLE, _PROTOCOL, _SCOPE_HOST, _LOCAL = 255, 77, 254, 2
_DST, _OIF, _PRIORITY = 1, 4, 6  # RTA_*
_METRIC = 19762  # after the kernel's own route, which has 0
_LINGER = 1.0  # s: the next session may use the same address
_CONF = Path("/proc/sys/net/ipv4/conf")
_ONLY_CONFIGURED = "3"  # ip-sysctl.rst, arp_ignore


class _Record(msgspec.Struct):
    addresses: list[str] = []
    quiet: list[str] = []  # interfaces whose arp_ignore was 0


class Keeping:
    """The addresses that are kept local. No call waits."""

    def __init__(self, record: Path, conf: Path = _CONF) -> None:
        """*record*: the file that tells what was changed, perhaps by an agent before."""
        self._record_file = record
        self._conf = conf
        self._rtnl = Rtnl()
        self._lo = socket.if_nametoindex("lo")
        found = _read(record)
        self._kept = {parse_address(text) for text in found.addresses}
        self._quiet = set(found.quiet)
        self._maybe_over = trio.Event()
        self.lasting: frozenset[Address] = frozenset()
        """Those of :attr:`kept` that stay until :meth:`nothing`, whatever becomes of sessions."""

    @property
    def kept(self) -> frozenset[Address]:
        """These now."""
        return frozenset(self._kept)

    def keep(self, address: Address, interfaces: Iterable[str]) -> None:
        """Keep *address*, which one of this host's *interfaces* has, whatever becomes of them.

        One that cannot be kept is only told of: its sessions end when it goes.
        """
        if address in self._kept or not is_ipv4(address):
            return
        self._kept.add(address)
        self.silence(interfaces)
        self._write()
        try:
            self._route(_NEWROUTE, address, CREATE | EXCLUSIVE)
        except OSError as error:
            if error.errno != errno.EEXIST:
                name = format_address(address)
                _log.warning("address not kept", address=name, why=error.strerror)

    def keep_lasting(self, address: Address, interfaces: Iterable[str]) -> None:
        """Keep *address*, which no interface need ever have, for as long as the agent runs."""
        self.lasting |= {address}
        self.keep(address, interfaces)

    def silence(self, interfaces: Iterable[str]) -> None:
        """Do not answer ARP requests there for addresses that no interface has, if any is kept."""
        if not self._kept or _value(self._conf / "all/arp_ignore") != "0":
            return
        for name in interfaces:
            setting = self._conf / name / "arp_ignore"
            if name not in self._quiet and _value(setting) == "0":
                self._quiet.add(name)
                self._write()
                _set(setting, _ONLY_CONFIGURED)

    def may_be_over(self) -> None:
        """A session has ended."""
        if self._kept:
            self._maybe_over.set()

    async def wait_until_some_may_go(self) -> None:
        """Return a while after a session has ended."""
        await self._maybe_over.wait()
        await trio.sleep(_LINGER)
        self._maybe_over = trio.Event()

    def only(self, addresses: Iterable[Address]) -> None:
        """Keep no others than these, and the lasting ones, any more."""
        for address in self._kept.difference(addresses, self.lasting):
            try:
                self._route(_DELROUTE, address)
            except OSError as error:
                if error.errno not in (errno.ESRCH, errno.ENOENT):
                    name = format_address(address)
                    _log.warning("address not let go", address=name, why=error.strerror)
            self._kept.discard(address)
        if not self._kept:
            for name in self._quiet:
                setting = self._conf / name / "arp_ignore"
                if _value(setting) == _ONLY_CONFIGURED:
                    _set(setting, "0")
            self._quiet.clear()
        self._write()

    def nothing(self) -> None:
        """Keep none any more."""
        self.lasting = frozenset()
        self.only(())

    def close(self) -> None:
        """Leave everything as it is."""
        self._rtnl.close()

    def _route(self, kind: int, address: Address, flags: int = 0) -> None:
        head = _RTMSG.pack(
            socket.AF_INET, 32, 0, 0, _LOCAL_TABLE, _PROTOCOL, _SCOPE_HOST, _LOCAL, 0
        )
        body = head + attribute(_DST, address[len(V4_PREFIX) :])
        body += attribute(_OIF, struct.pack("=I", self._lo))
        self._rtnl.ask(kind, body + attribute(_PRIORITY, struct.pack("=I", _METRIC)), flags)

    def _write(self) -> None:
        if not self._kept and not self._quiet:
            self._record_file.unlink(missing_ok=True)
            return
        record = _Record(sorted(map(format_address, self._kept)), sorted(self._quiet))
        self._record_file.write_bytes(msgspec.json.encode(record))


def _read(record: Path) -> _Record:
    try:
        return msgspec.json.decode(record.read_bytes(), type=_Record)
    except FileNotFoundError:
        return _Record()
    except (OSError, msgspec.MsgspecError) as error:  # torn when its writer was killed
        _log.warning("record of kept addresses not read", file=str(record), why=str(error))
        return _Record()


def _value(setting: Path) -> str:
    try:
        return setting.read_text().strip()
    except OSError:  # the interface is gone
        return ""


def _set(setting: Path, value: str) -> None:
    try:
        setting.write_text(value)
    except OSError as error:
        _log.warning("setting not changed", setting=str(setting), why=error.strerror)
