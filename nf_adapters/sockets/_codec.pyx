"""Messages between a proxy's process and its host's agent; see ``_codec.pyi``."""

from enum import IntEnum
from typing import NamedTuple

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from m2m.protocol.flow import Flow


cdef extern from *:
    """
    #include "wire.h"
    """
    struct m2m_flow:
        uint8_t src[16]

    struct m2m_say:
        uint32_t magic
        uint32_t kind
        uint32_t number
        uint64_t session
        m2m_flow flow
        char text[64]

    uint32_t M2M_SAY_MAGIC
    uint32_t M2M_SAY_TEXT
    int M2M_SAY_PATIENCE_MS
    int M2M_SAY_ACCEPTED, M2M_SAY_CONNECTING, M2M_SAY_REVOKED, M2M_SAY_LEAVE, M2M_SAY_PASSED
    int M2M_SAY_FOUND, M2M_SAY_UNKNOWN, M2M_SAY_READY, M2M_SAY_REFUSED, M2M_SAY_GONE
    int M2M_SAY_LEAVING, M2M_SAY_STAYS, M2M_SAY_MORE, M2M_SAY_LEFT


SIZE = sizeof(m2m_say)
PATIENCE = M2M_SAY_PATIENCE_MS / 1000


class Kind(IntEnum):
    ACCEPTED = M2M_SAY_ACCEPTED
    CONNECTING = M2M_SAY_CONNECTING
    REVOKED = M2M_SAY_REVOKED
    FOUND = M2M_SAY_FOUND
    UNKNOWN = M2M_SAY_UNKNOWN
    READY = M2M_SAY_READY
    REFUSED = M2M_SAY_REFUSED
    GONE = M2M_SAY_GONE
    LEAVE = M2M_SAY_LEAVE
    PASSED = M2M_SAY_PASSED
    LEAVING = M2M_SAY_LEAVING
    STAYS = M2M_SAY_STAYS
    MORE = M2M_SAY_MORE
    LEFT = M2M_SAY_LEFT


class Message(NamedTuple):
    kind: Kind
    number: int
    session: int = 0
    flow: Flow | None = None
    text: str = ""


cdef bytes _NO_FLOW = bytes(sizeof(m2m_flow))


def encode(message):
    cdef m2m_say said
    cdef bytes packed
    kind, number, session, flow, text = message
    memset(&said, 0, sizeof(said))
    said.magic = M2M_SAY_MAGIC
    said.kind = kind
    said.number = number
    said.session = session
    if flow is not None:
        packed = flow.pack()
        memcpy(&said.flow, <const char *>packed, sizeof(said.flow))
    # what is cut in the middle of a character is left out as a whole
    packed = text.encode()[:M2M_SAY_TEXT - 1].decode(errors="ignore").encode()
    memcpy(said.text, <const char *>packed, len(packed))
    return (<const char *>&said)[:sizeof(said)]


def decode(bytes data not None):
    cdef m2m_say said
    cdef bytes packed
    if len(data) != sizeof(said):
        raise ValueError(f"{len(data)} bytes are no message")
    memcpy(&said, <const char *>data, sizeof(said))
    if said.magic != M2M_SAY_MAGIC:
        raise ValueError("it is of another version")
    packed = (<const char *>&said.flow)[:sizeof(said.flow)]
    return Message(
        Kind(said.kind),
        said.number,
        said.session,
        None if packed == _NO_FLOW else Flow.unpack(packed),
        said.text[:sizeof(said.text)].split(b"\0")[0].decode(errors="replace"),
    )
