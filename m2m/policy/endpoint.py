"""Where the policy server listens, as people write it."""

from __future__ import annotations

import re
from typing import NamedTuple

from m2m.errors import ConfigError

__all__ = ["POLICY_PORT", "Endpoint"]

POLICY_PORT = 5263
"""TCP port of the policy server unless another one is given."""

_WRITTEN = re.compile(r"(?:\[(?P<bracketed>[^][]+)\]|(?P<host>[^][:\s]*))(?::(?P<port>\d{1,5}))?")


class Endpoint(NamedTuple):
    """A host name or address, and a TCP port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, *, host: str | None = None) -> Endpoint:
        """Read ``HOST``, ``HOST:PORT`` or ``[IPv6]:PORT``; *host* stands for one left out.

        Raises :exc:`ConfigError`.
        """
        match = _WRITTEN.fullmatch(text)
        named = match and (match["bracketed"] or match["host"] or host)
        if match is None or not named:
            raise ConfigError(f"{text!r} is not HOST, HOST:PORT or [IPv6]:PORT")
        port = int(match["port"] or POLICY_PORT)
        if not 0 < port < 65536:
            raise ConfigError(f"port {port} in {text!r} is not between 1 and 65535")
        return cls(named, port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
