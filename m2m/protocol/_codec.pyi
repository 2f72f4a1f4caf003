from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

from m2m._hmac import Hmac
from m2m.protocol.codec import Hop
from m2m.protocol.wire import Envelope, Message

Layout: TypeAlias = tuple[int, type[Any], str]
"""Type, message, and its parts in their order on the wire, each as ``field:part``. Parts are

=============================  =====================================================================
``u8 u16 u32 u64``             numbers
``change``                     8 bytes, not 0
``count``                      8 bytes, all ones for None
``mtu``                        2 bytes, at least MIN_MTU
``bool mode cause progress``   1 byte
``part parts``                 1 byte each, one behind the other: the number of a part, and of all
``address device flow``        16, 32 and 40 bytes
``blame``                      an address, all zero for None
``text data``                  a length of 1 or 2 bytes, and so many
``rest``                       all that is left
``hops steps``                 a number of 1 byte, and so many
``chain``                      hops, with 1 byte 0 behind their number, the last of them a server
=============================  =====================================================================
"""

Special: TypeAlias = tuple[int, type[Any], Callable[[Any], bytes], Callable[[int, bytes], Message]]
"""Type, message, how to pack it, and how to unpack it: what a layout cannot say."""

class Codec:
    """Messages to bytes and back. All methods raise :exc:`WireError` and nothing else."""

    def __init__(
        self, envelope: type[Envelope], layouts: Iterable[Layout], specials: Iterable[Special]
    ) -> None: ...
    def encode(self, envelope: Envelope) -> bytes:
        """Header and payload, without MAC."""

    def decode(self, data: bytes) -> Envelope:
        """The inverse of :meth:`encode`."""

    def seal(
        self, key: Hmac, sender: int, receiver: int, seq: int, message: Message, device: bytes
    ) -> bytes:
        """A datagram: header, payload and MAC; what is in the header as in :class:`Envelope`."""

    def open(self, datagram: bytes, key: Hmac) -> Envelope:
        """The inverse of :meth:`seal`. What is not sealed with *key* is not looked into."""

WINDOW: Final[int]
"""How far datagrams of one sender may overtake each other, in sequence numbers."""

class Window:
    """Which of one sender's last :data:`WINDOW` numbers were seen (as RFC 4303 §3.4.3)."""

    def accept(self, seq: int) -> bool:
        """Whether *seq* is new; it is not the next time."""

def check_chain(chain: tuple[Hop, ...]) -> None:
    """Raise :exc:`WireError` if *chain* is not one that a SYN can carry."""
