class Hmac:
    """HMAC-SHA256 under *secret*, its first 16 bytes (RFC 2104, RFC 4868)."""

    def __init__(self, secret: bytes) -> None: ...
    def mac(self, data: bytes) -> bytes:
        """The 16 bytes that prove *data* comes from a holder of this key."""

    def verify(self, data: bytes, mac: bytes) -> bool:
        """Whether *mac* belongs to *data*; takes the same time wherever the two differ."""
