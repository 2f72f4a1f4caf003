"""Locked sessions: their packets are dropped before conntrack sees them.

One nftables set in a table of its own. Its elements end by themselves, so that an agent that is
killed in mid-move locks nothing for ever. The counter of its rule, shown by
``nft list table ip m2m_state``, tells of packets that came although none should have.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from functools import cache
from typing import Any, Final, Self

import trio
from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFT_MSG_DELSETELEM,
    NFT_MSG_NEWSETELEM,
    nft_set_elem_list_msg,
)

from m2m.errors import UnsupportedHost
from m2m.protocol.flow import Flow
from nf_adapters.state import LONGEST_LOCK, StateError
from nf_adapters.state.netlink import Netfilter, Refused

TABLE: Final = "m2m_state"
_SET: Final = "locked"

# Priority: after fragments are put together (-400), before conntrack (-200) and the raw tables.
_RULES: Final = f"""\
add table ip {TABLE}
delete table ip {TABLE}
table ip {TABLE} {{
    set {_SET} {{
        typeof ip saddr . ip daddr . meta l4proto . th sport . th dport
        flags timeout
    }}
    chain before_conntrack {{
        type filter hook prerouting priority -310
        ip saddr . ip daddr . meta l4proto . th sport . th dport @{_SET} counter drop
    }}
}}
"""

_KEY: Final = struct.Struct("!4s4sB3xH2xH2x")  # each part of the set's key fills words of 4 bytes
_THERE, _BACK = b"A" * _KEY.size, b"B" * _KEY.size  # no key's: those have zeros in them
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_NFGEN: Final = struct.Struct("=BBH")  # struct nfgenmsg
_BATCH_BEGIN, _BATCH_END = 16, 17
_CLOSING: Final = 5.0  # s that taking the table out may take


class Locks:
    """The set of the network namespace that the calling thread is in."""

    def __init__(self) -> None:
        self._namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._kernel = Netfilter()
        self._turn = trio.Lock()

    @classmethod
    async def open(cls) -> Self:
        """Put the table in, in place of a predecessor's. Raises :exc:`UnsupportedHost`."""
        locks = cls()
        try:
            await locks._nft(_RULES)
        except BaseException:
            locks._let_go()
            raise
        return locks

    async def close(self) -> None:
        """Take the table out, and with it every lock."""
        try:
            with trio.move_on_after(_CLOSING, shield=True):
                await self._nft(f"add table ip {TABLE}\ndelete table ip {TABLE}\n")
        finally:
            self._let_go()

    @classmethod
    async def take_out(cls) -> None:
        """Take out what an agent has left that was killed, if anything.

        Raises :exc:`UnsupportedHost` where nothing can be left.
        """
        await cls().close()

    async def add(self, flow: Flow) -> float:
        """Drop both directions of *flow*, and say until when at least, in Trio's time.

        Raises :exc:`StateError`.
        """
        async with self._turn:
            until = trio.current_time() + LONGEST_LOCK
            try:
                await self._add(flow)
            except Refused as refused:
                if refused.number == errno.EEXIST:
                    raise StateError(
                        f"the state of {flow} is locked already, for {LONGEST_LOCK:.0f} s at most:"
                        " a move of it is under way"
                    ) from None
                raise StateError(f"{flow} cannot be locked: {refused}") from None
            except UnsupportedHost as error:
                raise StateError(f"{flow} cannot be locked: {error}") from None
        return until

    async def remove(self, flow: Flow) -> None:
        """Undo :meth:`add`; no error when it is undone already."""
        async with self._turn:
            try:
                await self._change(NFT_MSG_DELSETELEM, 0, flow)
            except Refused as refused:
                if refused.number != errno.ENOENT:
                    raise StateError(f"{flow} cannot be unlocked: {refused}") from None

    async def _add(self, flow: Flow) -> None:
        kind, flags = NFT_MSG_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL
        try:
            await self._change(kind, flags, flow)
        except Refused as refused:
            if refused.number != errno.ENOENT:
                raise
            # Firewalls are reloaded by way of `flush ruleset`, which takes our table as well.
            await self._nft(_RULES)
            await self._change(kind, flags, flow)

    async def _change(self, kind: int, flags: int, flow: Flow) -> None:
        # In a thread: nftables makes each transaction wait for all others on this machine, such
        # as the loading of a large ruleset.
        batch = _batch(kind, flags, self._kernel.next_sequence(), flow)
        await trio.to_thread.run_sync(self._kernel.ask, batch)

    async def _nft(self, rules: str) -> None:
        # Threads and processes of Trio's need not be in our namespace.
        command = ["nsenter", f"--net=/proc/self/fd/{self._namespace}", "--", "nft", "-f", "-"]
        done = await trio.run_process(
            command,
            stdin=rules.encode(),
            pass_fds=[self._namespace],
            capture_stderr=True,
            check=False,
        )
        if done.returncode:
            said = (done.stderr.decode().strip().splitlines() or ["it does not say why"])[0]
            raise UnsupportedHost(
                f"the table that locks sessions cannot be put in ({said}); moving a firewall's"
                " state needs nft (install nftables) and a kernel with CONFIG_NF_TABLES"
            )

    def _let_go(self) -> None:
        self._kernel.close()
        os.close(self._namespace)


def _batch(kind: int, flags: int, sequence: int, flow: Flow) -> bytes:
    """Both directions, in one transaction."""
    message = _template(kind).replace(_THERE, _key(flow)).replace(_BACK, _key(flow.reverse()))
    length, kind, *_ = _HEADER.unpack_from(message)
    header = _HEADER.pack(length, kind, NLM_F_REQUEST | NLM_F_ACK | flags, sequence, 0)
    return _bound(_BATCH_BEGIN) + header + message[_HEADER.size :] + _bound(_BATCH_END)


@cache
def _template(kind: int) -> bytes:
    """The message, but for its keys, flags and number. The codec takes 0.25 ms for one, a good
    part of the time for which a change may hold packets back."""
    message = nft_set_elem_list_msg()
    message["nfgen_family"] = socket.AF_INET
    message["header"] = {"type": NFNL_SUBSYS_NFTABLES << 8 | kind, "flags": 0, "pid": 0}
    message["attrs"] = [
        ("NFTA_SET_ELEM_LIST_TABLE", TABLE),
        ("NFTA_SET_ELEM_LIST_SET", _SET),
        ("NFTA_SET_ELEM_LIST_ELEMENTS", [_element(kind, key) for key in (_THERE, _BACK)]),
    ]
    message.encode()
    return bytes(message.data)


def _element(kind: int, key: bytes) -> dict[str, Any]:
    attributes: list[tuple[str, Any]] = [
        ("NFTA_SET_ELEM_KEY", {"attrs": [("NFTA_DATA_VALUE", key)]})
    ]
    if kind == NFT_MSG_NEWSETELEM:
        attributes.append(("NFTA_SET_ELEM_TIMEOUT", round(LONGEST_LOCK * 1000)))  # ms
    return {"attrs": attributes}


def _key(flow: Flow) -> bytes:
    return _KEY.pack(flow.src[-4:], flow.dst[-4:], flow.proto, flow.sport, flow.dport)


def _bound(kind: int) -> bytes:
    """Where a transaction begins or ends."""
    size = _HEADER.size + _NFGEN.size
    subsystem = socket.htons(NFNL_SUBSYS_NFTABLES)
    return _HEADER.pack(size, kind, NLM_F_REQUEST, 0, 0) + _NFGEN.pack(
        socket.AF_UNSPEC, 0, subsystem
    )
