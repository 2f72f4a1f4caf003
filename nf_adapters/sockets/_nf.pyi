"""The calls of ``m2m_nf.h``, by the numbers of descriptors and the bytes of addresses."""

from m2m.protocol.flow import Address

def accepted(fd: int) -> tuple[int, Address, int, Address, int] | None:
    """Session, the client's address and port, those of the destination."""

def connecting(session: int, fd: int, address: Address, port: int) -> bytes | None:
    """What :func:`failed` wants; None: as without M2M. Raises :exc:`ConnectionRefusedError`."""

def failed(connection: bytes) -> None:
    """The connection that was announced has failed."""
