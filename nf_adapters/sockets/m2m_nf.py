"""For proxies in Python that say themselves which connection they continue::

    from nf_adapters.sockets import m2m_nf

    client, _ = listener.accept()
    session = m2m_nf.accepted(client)
    server = socket.socket()
    if session is None:
        server.connect(usual)
    else:
        with session.connecting(server, session.destination):
            server.connect(session.destination)

Each call waits for the agent, for two seconds at most, and lets other threads run meanwhile; in an
event loop it belongs in a thread (``trio.to_thread.run_sync``). Where there is no agent, or the
connection is of no session, the proxy goes on as without M2M. In C it is ``m2m_nf.h``.
"""

from __future__ import annotations

import socket
from types import TracebackType
from typing import NamedTuple, Self

from m2m.protocol.flow import format_address, parse_address
from nf_adapters.sockets import _nf

__all__ = ["Announced", "Leaving", "Session", "Stays", "accepted"]


class Session(NamedTuple):
    """A session of which the proxy has accepted the connection."""

    id: int
    client: tuple[str, int]
    destination: tuple[str, int]  # where the client meant to go

    def leave(self, client: socket.socket, server: socket.socket) -> Leaving:
        """The proxy only copies between the two connections of this session from now on, and would
        leave it (``docs/splicing.md``). What comes is held: read and pass on what there is.

        Raises :exc:`Stays`.
        """
        try:
            return Leaving(_nf.Leaving(client.fileno(), server.fileno()))
        except ValueError as error:
            raise Stays(str(error)) from None

    def connecting(self, sock: socket.socket, address: tuple[str, int]) -> Announced:
        """*sock* is about to continue this session at *address*, an IP address and a port. It is
        bound then, and may connect; in the returned block, or outside of it.

        Raises :exc:`ConnectionRefusedError` when the policy fails closed, and the rest of the chain
        cannot be had.
        """
        host, port = address
        connection = _nf.connecting(self.id, sock.fileno(), parse_address(host), port)
        return Announced(connection)


class Announced:
    """A connection that the agent knows of. As a block: it fails if that raises."""

    def __init__(self, connection: bytes | None) -> None:
        self._connection = connection

    def __bool__(self) -> bool:
        """Whether it continues the session; else it will be as without M2M."""
        return self._connection is not None

    def failed(self) -> None:
        """It has failed, or is given up. One that stood ends by itself."""
        if self._connection is not None:
            _nf.failed(self._connection)
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, BlockingIOError):
            self.failed()


class Stays(Exception):
    """The proxy stays in the session, and goes on as before; why."""


class Leaving:
    """A session that the proxy is about to leave."""

    def __init__(self, leaving: _nf.Leaving) -> None:
        """Use :meth:`Session.leave`."""
        self._leaving = leaving

    def passed(self) -> bool:
        """All that was read has been passed on. True: the proxy has left, and closes both
        connections, of which nobody hears. False: there is something to be read again. Neither is
        touched meanwhile. Raises :exc:`Stays`."""
        try:
            return self._leaving.passed()
        except ValueError as error:
            raise Stays(str(error)) from None

    def stay(self) -> None:
        """It has thought better of it."""
        self._leaving.stay()


def accepted(sock: socket.socket) -> Session | None:
    """Which session *sock*, an accepted connection, is of; None: of none."""
    found = _nf.accepted(sock.fileno())
    if found is None:
        return None
    session, client, client_port, destination, port = found
    return Session(
        session, (format_address(client), client_port), (format_address(destination), port)
    )
