"""Proxies: network functions that end a client's connection and begin another one.

The host's agent has to know which connection continues which. A proxy's process tells it, on a Unix
socket, in the messages of ``wire.h``:

======================  ============================================================================
``_codec``              the messages, as bytes and back
======================  ============================================================================
"""

from nf_adapters.sockets._codec import PATIENCE, SIZE, Kind, Message, decode, encode

__all__ = ["PATIENCE", "SIZE", "Kind", "Message", "decode", "encode"]
