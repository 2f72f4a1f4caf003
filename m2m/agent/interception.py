"""Which port sessions are led to that end at this host's proxy.

The rule outlives the agent, as sessions do. That there is one is in a file before it is, so that
the next agent follows it up or takes it out, and hosts without a proxy need not ask iptables.

Two connections from one port of a client to two servers are led to one port, and connection
tracking gives the later one another source port: on the way in, after Linux 6.1 has looked for its
socket and has found the other's. So it is told not to look that early (``tcp_early_demux``).
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path

import structlog

from m2m.datapath import proxy_rules
from m2m.errors import UnsupportedHost
from m2m.policy.rules import Kind, PolicySet
from m2m.protocol.flow import Address

__all__ = ["Interception"]

_log = structlog.get_logger()

_EARLY_DEMUX = Path("/proc/sys/net/ipv4/tcp_early_demux")


class Interception:
    """The rule of one network namespace. Calls block for as long as iptables takes."""

    def __init__(self, record: Path, early_demux: Path = _EARLY_DEMUX) -> None:
        """*record*: the file that tells of a rule, perhaps of an agent before, and what the setting
        *early_demux* was before it."""
        self._record = record
        self._early_demux = early_demux
        self._port: int | None = None if record.exists() else 0  # None: there may be a rule

    def follow(self, policy: PolicySet, own: Container[Address]) -> None:
        """Lead them where *policy* says that the proxy at one of the *own* addresses listens."""
        port = _port_at(policy, own)
        if port == self._port:
            return
        if not port:
            self.remove()
            return
        if not self._record.exists():
            self._record.write_text(self._early_demux.read_text())
        try:
            self._early_demux.write_text("0\n")
            proxy_rules.install(port)
        except UnsupportedHost as error:
            _log.error("sessions do not get to the proxy", port=port, why=str(error))
            self._port = None
            return
        self._port = port
        _log.info("sessions are led to the proxy", port=port)

    def listens(self, own: Iterable[Address]) -> list[tuple[Address, int]]:
        """Where they may be led to, on a host with these *own* addresses."""
        return [(address, self._port) for address in own] if self._port else []

    def remove(self) -> None:
        """Lead nothing any more."""
        if self._port != 0:
            proxy_rules.remove()
            self._early_demux.write_text(self._record.read_text())
            self._record.unlink()
            self._port = 0


def _port_at(policy: PolicySet, own: Container[Address]) -> int:
    for nf in policy.nfs:
        if nf.kind is Kind.PROXY and any(one.address in own for one in nf.instances):
            return nf.port
    return 0
