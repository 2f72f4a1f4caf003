"""Sealing and opening datagrams: who sent this, to whom, and is it new?

Anyone can put a datagram into the network, or record one and send it again. A MAC under the
domain key answers the first half. For the second, an agent picks a random *epoch* when it
starts, and every datagram carries the epochs of both ends and a sequence number:

* A datagram that does not carry the receiver's current epoch is not looked into. The receiver
  answers with a CHALLENGE that tells the epoch, and the sender seals the message again and sends
  it at once. This is how two agents meet, and how they meet again after either has restarted.
* Of each sender epoch, the receiver remembers which of the last 1024 sequence numbers it has
  seen; what is older or seen is refused. Sequence numbers count over all peers of a sender, so
  one window serves a sender under all its addresses.
* The table of windows is bounded. When it is full the receiver takes a new epoch and forgets
  all windows: nothing recorded before can carry the new epoch, so nothing can be replayed.

A CHALLENGE is believed only if it carries the epoch of its receiver and answers a datagram that
was sent lately and not challenged before. It must also be the last one about its session, and
unanswered: else a SYN that was recorded long ago, repeated to an agent that has restarted since,
would have its sender set up a session anew that is over. Neither side needs a clock, and the
receiver keeps no state for anybody who has not proved to know its epoch.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import NamedTuple

from m2m._hmac import Hmac
from m2m.identity import ANONYMOUS
from m2m.protocol._codec import WINDOW, Window
from m2m.protocol.flow import Address
from m2m.protocol.wire import (
    CODEC,
    Challenge,
    FinAck,
    Malformed,
    Message,
    WireError,
)

__all__ = ["WINDOW", "Association", "Opened"]

_SENDERS = 1024  # sender epochs remembered before a new epoch is taken
_PEERS = 1024  # peers whose epoch is remembered; a forgotten one costs a challenge
_RECENT = 64  # sessions per peer that a challenge can still be about; others are retransmitted


class Opened(NamedTuple):
    """What came of a datagram: a message to process, or a datagram to send back, or neither."""

    message: Message | None
    reply: bytes | None
    device: bytes = ANONYMOUS  # the sender's


class _Peer:
    __slots__ = ("epoch", "recent")

    def __init__(self) -> None:
        self.epoch = 0
        self.recent: dict[int, tuple[int, Message]] = {}  # by session: what was said last, as what


# A FINACK answers a message that has just told the peer's epoch, and comes again with the next FIN.
_NOT_SENT_AGAIN = (Challenge, FinAck)


class Association:
    """One agent's end of all its conversations.

    ``rejected`` counts refused datagrams by reason; ``challenged`` those answered by CHALLENGE.
    *rng* should be :class:`random.SystemRandom` outside tests.
    """

    def __init__(
        self,
        key: Hmac,
        rng: random.Random,
        *,
        device: bytes = ANONYMOUS,
        senders: int = _SENDERS,
    ) -> None:
        """*device* is this host's, as all others are told."""
        self._key = key
        self._device = device
        self._rng = rng
        self._max_senders = senders
        self._seq = 0
        self._peers: dict[Address, _Peer] = {}
        self._windows: dict[int, Window] = {}
        self._epoch = self._new_epoch()
        # Whose device was last seen at an address: to be proved to, never trusted.
        self.devices: dict[Address, bytes] = {}
        self.rejected: Counter[Malformed] = Counter()
        self.challenged = 0

    @property
    def epoch(self) -> int:
        """The epoch a datagram must carry to be processed here."""
        return self._epoch

    def seal(self, peer: Address, message: Message) -> bytes:
        """The datagram that carries *message* to *peer*. Sending it twice is of no use: seal
        again. Raises :exc:`WireError` when the message breaks a bound of the wire format."""
        known = self._peers.get(peer) or self._new_peer(peer)
        data = self._seal(known.epoch, message)
        if not isinstance(message, _NOT_SENT_AGAIN):
            recent = known.recent
            recent.pop(message.session, None)
            recent[message.session] = self._seq, message
            if len(recent) > _RECENT:
                del recent[next(iter(recent))]
        return data

    def open(self, peer: Address, datagram: bytes) -> Opened:
        """What a datagram from *peer* holds. A reply, if there is one, goes back to *peer*.

        Raises :exc:`WireError`, already counted, for whatever is forged, malformed or old.
        """
        try:
            sender, receiver, seq, message, device = CODEC.open(datagram, self._key)
            if self.devices.get(peer) != device:
                self._note_device(peer, device)
            if isinstance(message, Challenge):
                return Opened(None, self._met(peer, sender, receiver, message))
            if receiver != self._epoch:
                self.challenged += 1
                return Opened(None, self._seal(sender, Challenge(seq)))
            window = self._windows.get(sender) or self._new_window(sender)
            if not window.accept(seq):
                raise WireError(Malformed.REPLAYED, f"sequence number {seq} is not new")
        except WireError as error:
            self.rejected[error.reason] += 1
            raise
        known = self._peers.get(peer) or self._new_peer(peer)
        known.epoch = sender
        known.recent.pop(message.session, None)
        return Opened(message, None, device)

    def _note_device(self, peer: Address, device: bytes) -> None:
        if len(self.devices) >= _PEERS:
            del self.devices[next(iter(self.devices))]
        self.devices[peer] = device

    def _seal(self, receiver: int, message: Message) -> bytes:
        self._seq += 1
        return CODEC.seal(self._key, self._epoch, receiver, self._seq, message, self._device)

    def _new_window(self, sender: int) -> Window:
        if len(self._windows) >= self._max_senders:
            self._epoch = self._new_epoch()
            self._windows.clear()
            # This one is new still: it carried the epoch that was current until now.
        window = self._windows[sender] = Window()
        return window

    def _met(self, peer: Address, sender: int, receiver: int, challenge: Challenge) -> bytes:
        """Learn the peer's epoch, and seal what it could not accept again."""
        known = self._peers.get(peer)
        if known is not None and receiver == self._epoch:
            for seq, message in known.recent.values():
                if seq == challenge.seq:
                    known.epoch = sender
                    return self.seal(peer, message)
        raise WireError(Malformed.REPLAYED, f"a challenge to {challenge.seq}, which is not recent")

    def _new_peer(self, address: Address) -> _Peer:
        if len(self._peers) >= _PEERS:
            del self._peers[next(iter(self._peers))]
        known = self._peers[address] = _Peer()
        return known

    def _new_epoch(self) -> int:
        return self._rng.randrange(1, 1 << 64)
