"""The calls of ``m2m_nf.h``, by the numbers of descriptors and the bytes of addresses."""

from m2m.protocol.flow import Address

def accepted(fd: int) -> tuple[int, Address, int, Address, int] | None:
    """Session, the client's address and port, those of the destination."""

def connecting(session: int, fd: int, address: Address, port: int) -> bytes | None:
    """What :func:`failed` wants; None: as without M2M. Raises :exc:`ConnectionRefusedError`."""

def failed(connection: bytes) -> None:
    """The connection that was announced has failed."""

class Leaving:
    """A session that the proxy would leave; one of these is used by one thread at a time."""

    def __init__(self, client: int, server: int) -> None:
        """Raises :exc:`ValueError` telling why it stays."""

    def passed(self) -> bool:
        """Whether it has left. Raises :exc:`ValueError` telling why it stays."""

    def stay(self) -> None:
        """It has thought better of it."""
