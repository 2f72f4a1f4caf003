"""The kernel's table of connections, by pyroute2's codecs over a plain netlink socket.

pyroute2's own calls block or run asyncio. These here do neither: ctnetlink answers inside the
send call, in some 15 us, so that a Trio task can make them.
"""

from __future__ import annotations

import errno
from typing import Any, NamedTuple

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, nla
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_CTNETLINK
from pyroute2.netlink.nfnetlink.nfctsocket import (
    IP_CT_TCP_FLAG_BE_LIBERAL,
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_GET,
    IPCTNL_MSG_CT_NEW,
    IPS_EXPECTED,
    IPS_NAT_MASK,
    IPS_OFFLOAD,
    IPS_SEQ_ADJUST,
    NFCTAttrTuple,
    nfct_msg,
)

from m2m.errors import UnsupportedHost
from m2m.protocol.flow import Flow, Proto, format_address
from nf_adapters.state import StateError
from nf_adapters.state.entry import STATUS, TCP_FLAGS, Entry, Tcp, TcpSide
from nf_adapters.state.netlink import Netfilter, Refused

_AF_INET = 2
_IPS_HW_OFFLOAD = 1 << 15
_NOWHERE = Flow.of(Proto.UDP, "0.0.0.0", 0, "0.0.0.0", 0)


class Found(NamedTuple):
    """An entry, as it is in the table."""

    entry: Entry
    obstacle: str | None  # why it cannot be moved


class AlreadyThere(StateError):
    """The table has an entry for these packets."""


class Conntrack:
    """The table of the network namespace that the calling thread is in."""

    def __init__(self) -> None:
        """Raises :exc:`~m2m.errors.UnsupportedHost`."""
        self._kernel = Netfilter()
        try:
            self.get(_NOWHERE, 0)
        except StateError as error:
            self._kernel.close()
            raise UnsupportedHost(
                f"connections cannot be read from the kernel: {error}; it needs CAP_NET_ADMIN and"
                " a kernel with CONFIG_NF_CT_NETLINK (modprobe nf_conntrack_netlink)"
            ) from error

    def close(self) -> None:
        self._kernel.close()

    def get(self, flow: Flow, zone: int) -> Found | None:
        """The entry for the packets of *flow*. Raises :exc:`StateError`."""
        answer = self._ask(IPCTNL_MSG_CT_GET, 0, f"the entry of {flow}", **_name(flow, zone))
        return _decode(answer) if answer is not None else None

    def create(self, entry: Entry) -> None:
        """Raises :exc:`AlreadyThere`, :exc:`StateError`."""
        flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
        what = f"a new entry for {entry.flow}"
        self._ask(IPCTNL_MSG_CT_NEW, flags, what, **_attributes(entry))

    def delete(self, flow: Flow, zone: int) -> bool:
        """Whether there was an entry. Raises :exc:`StateError`."""
        what = f"to delete the entry of {flow}"
        answer = self._ask(IPCTNL_MSG_CT_DELETE, NLM_F_ACK, what, **_name(flow, zone))
        return answer is not None

    def _ask(self, kind: int, flags: int, what: str, **attributes: Any) -> bytes | None:
        """The answer; None when there is no such entry."""
        sequence = self._kernel.next_sequence()
        try:
            return self._kernel.ask(_encode(kind, flags | NLM_F_REQUEST, sequence, attributes))
        except Refused as refused:
            if refused.number == errno.ENOENT:
                return None
            error = AlreadyThere if refused.number == errno.EEXIST else StateError
            raise error(f"the kernel refuses {what}: {refused}{_hint(refused)}") from None


def _hint(refused: Refused) -> str:
    return {
        errno.EOPNOTSUPP: "; load the module of its helper (nf_conntrack_...)",
        errno.ENOMEM: "; the table is full, raise net.netfilter.nf_conntrack_max",
    }.get(refused.number, "")


class _Message(nfct_msg):  # type: ignore[misc]  # pyroute2 has no types
    """pyroute2's codec takes the helper for a string; it is a nest of name and private data."""

    nla_map = tuple(
        (name, "cta_help" if name == "CTA_HELP" else kind) for name, kind in nfct_msg.nla_map
    )

    class cta_help(nla):  # type: ignore[misc]  # noqa: N801 - named as pyroute2 names them
        nla_map = (
            ("CTA_HELP_UNSPEC", "none"),
            ("CTA_HELP_NAME", "asciiz"),
            ("CTA_HELP_INFO", "cdata"),
        )


def _encode(kind: int, flags: int, sequence: int, attributes: dict[str, Any]) -> bytes:
    message = _Message.create_from(**attributes)
    message["nfgen_family"] = _AF_INET
    message["header"] = {
        "type": NFNL_SUBSYS_CTNETLINK << 8 | kind,
        "flags": flags,
        "sequence_number": sequence,
        "pid": 0,
    }
    message.encode()
    return bytes(message.data)


def _name(flow: Flow, zone: int) -> dict[str, Any]:
    return {"tuple_orig": _tuple(flow), "zone": zone or None}


def _tuple(flow: Flow) -> NFCTAttrTuple:
    return NFCTAttrTuple(
        saddr=format_address(flow.src),
        daddr=format_address(flow.dst),
        proto=flow.proto,
        sport=flow.sport,
        dport=flow.dport,
    )


def _attributes(entry: Entry) -> dict[str, Any]:
    """What ctnetlink makes an entry from."""
    return {
        **_name(entry.flow, entry.zone),
        "tuple_reply": _tuple(entry.flow.reverse()),
        "status": entry.status,
        "timeout": entry.timeout,
        "mark": entry.mark or None,
        "labels": int.from_bytes(entry.labels, "little") or None,
        "help": _nest(CTA_HELP_NAME=entry.helper) if entry.helper else None,
        "protoinfo": _nest(CTA_PROTOINFO_TCP=_tcp(entry.tcp)) if entry.tcp is not None else None,
    }


def _tcp(tcp: Tcp) -> dict[str, Any]:
    """The new entry begins with no window known, and takes each direction's first packet for it.

    That is too little: an acknowledgement of what went through the old firewall, or data beyond
    the sender's own window, would be INVALID and dropped. So this entry is liberal about windows,
    as the kernel makes those that it picks up in mid-connection itself.
    """
    return _nest(
        CTA_PROTOINFO_TCP_STATE=tcp.state,
        CTA_PROTOINFO_TCP_WSCALE_ORIGINAL=tcp.original.scale,
        CTA_PROTOINFO_TCP_WSCALE_REPLY=tcp.reply.scale,
        CTA_PROTOINFO_TCP_FLAGS_ORIGINAL=_flags(tcp.original),
        CTA_PROTOINFO_TCP_FLAGS_REPLY=_flags(tcp.reply),
    )


def _flags(side: TcpSide) -> dict[str, Any]:
    return {"value": (side.flags | IP_CT_TCP_FLAG_BE_LIBERAL, 0xFF)}  # and which of them to set


def _nest(**attributes: Any) -> dict[str, Any]:
    return {"attrs": list(attributes.items())}


def _decode(data: bytes) -> Found:
    message = _Message(data)
    message.decode()
    flow = _flow(message.get_attr("CTA_TUPLE_ORIG"))
    status: int = message.get_attr("CTA_STATUS")
    labels: int = message.get_attr("CTA_LABELS") or 0
    helper = message.get_attr("CTA_HELP")
    entry = Entry(
        flow=flow,
        status=status & STATUS,
        timeout=max(message.get_attr("CTA_TIMEOUT") or 0, 1),  # the last second reads as 0
        tcp=_read_tcp(message) if flow.proto == Proto.TCP else None,
        mark=message.get_attr("CTA_MARK") or 0,
        labels=labels.to_bytes(16, "little") if labels else b"",
        zone=message.get_attr("CTA_ZONE") or 0,
        helper=helper.get_attr("CTA_HELP_NAME") if helper is not None else "",
    )
    return Found(entry, _obstacle(flow, _flow(message.get_attr("CTA_TUPLE_REPLY")), status))


def _flow(found: Any) -> Flow:
    ends, ports = found.get_attr("CTA_TUPLE_IP"), found.get_attr("CTA_TUPLE_PROTO")
    return Flow.of(
        ports.get_attr("CTA_PROTO_NUM"),
        ends.get_attr("CTA_IP_V4_SRC"),
        ports.get_attr("CTA_PROTO_SRC_PORT"),
        ends.get_attr("CTA_IP_V4_DST"),
        ports.get_attr("CTA_PROTO_DST_PORT"),
    )


def _read_tcp(message: Any) -> Tcp:
    tcp = message.get_attr("CTA_PROTOINFO").get_attr("CTA_PROTOINFO_TCP")

    def side(name: str) -> TcpSide:
        flags, _ = tcp.get_attr(f"CTA_PROTOINFO_TCP_FLAGS_{name}")
        return TcpSide(tcp.get_attr(f"CTA_PROTOINFO_TCP_WSCALE_{name}"), flags & TCP_FLAGS)

    return Tcp(tcp.get_attr("CTA_PROTOINFO_TCP_STATE"), side("ORIGINAL"), side("REPLY"))


def _obstacle(original: Flow, reply: Flow, status: int) -> str | None:
    if status & (IPS_NAT_MASK | IPS_SEQ_ADJUST) or reply != original.reverse():
        return (
            "this host translates its addresses or sequence numbers (NAT, SYN proxy), and only"
            " here are they right"
        )
    if status & IPS_EXPECTED:
        return "it belongs to another connection, by which a helper expected it"
    if status & (IPS_OFFLOAD | _IPS_HW_OFFLOAD):
        return "a flowtable forwards it past conntrack, which cannot be stopped"
    return None
