"""Proxies: network functions that end a client's connection and begin another one.

The host's agent has to know which connection continues which. A proxy's process tells it, on a Unix
socket, in the messages of ``wire.h``:

======================  ============================================================================
``_codec``              the messages, as bytes and back
``m2m_nf``, m2m_nf.h    calls for programs that say themselves what they continue
preload.c               the library that is loaded into those that do not (``libm2m-sockets.so``)
``library``             where that is, and whether a program gets it
ask.h                   asking the agent, for both
table.h, stitch.h       which socket of a process continues which
leave.h, counts.h       leaving a session in the stead of a program, by the kernel's own counts
relay.h, http.h         when: what a program reads and writes at both connections
======================  ============================================================================
"""

from nf_adapters.sockets._codec import PATIENCE, SIZE, Kind, Message, decode, encode

__all__ = ["PATIENCE", "SIZE", "Kind", "Message", "decode", "encode"]
