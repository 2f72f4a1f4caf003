# cython: boundscheck=False, wraparound=False
"""Control messages to bytes and back, in one pass; ``_codec.pyi`` says what layouts are made of.

Messages are far apart: when one comes, little of what it needs is in the processor's caches, and
what counts is how much code and how many objects are touched once. So a layout is a few bytes, and
one function reads all parts of a payload. Nothing is read but through :func:`take` and nothing
written but through :func:`room`, which know where the buffer ends.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from cpython.unicode cimport PyUnicode_DecodeASCII, PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from m2m._hmac cimport Hmac

from msgspec.structs import astuple

from m2m.protocol import codec, update
from m2m.protocol.codec import Cause, Hop, Malformed, WireError
from m2m.protocol.flow import Flow, Proto
from m2m.protocol.splice import Splice
from m2m.protocol.translation import Position
from m2m.protocol.update import Mode, Progress, Step

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef enum:
    HEADER_SIZE = 72
    MAC_SIZE = 16
    MAX_DATAGRAM = 1112
    FLOW_SIZE = 40
    SPLICE_SIZE = 18
    DEVICE_SIZE = 32
    ADDRESS_SIZE = 16
    VERSION = 2
    TYPES = 64  # more than the largest type of a message
    PARTS = 12  # of one message, at most
    TCP = 6
    UDP = 17
    TAP = 1
    SERVER = 3
    PROXY = 4

cdef enum Kind:  # of a part; that of a number is its size
    NUMBER_1 = 1, NUMBER_2 = 2, NUMBER_4 = 4, NUMBER_8 = 8
    CHANGE = 16, COUNT, MTU, BOOL, PARTS_OF, MODE, CAUSE, PROGRESS
    ADDRESS, DEVICE, FLOW, BLAME, TEXT, DATA, REST, SPLICE, HOPS, STEPS, CHAIN

_KINDS = {
    "u8": NUMBER_1, "u16": NUMBER_2, "u32": NUMBER_4, "u64": NUMBER_8, "change": CHANGE,
    "count": COUNT, "mtu": MTU, "bool": BOOL, "part": NUMBER_1, "parts": PARTS_OF, "mode": MODE,
    "cause": CAUSE, "progress": PROGRESS, "address": ADDRESS, "device": DEVICE, "flow": FLOW,
    "blame": BLAME, "text": TEXT, "data": DATA, "rest": REST, "hops": HOPS, "steps": STEPS,
    "chain": CHAIN, "splice": SPLICE,
}

cdef const char *MAGIC = b"M2"
cdef bytes NO_ADDRESS = codec.NO_ADDRESS
cdef tuple MODES = tuple(Mode), CAUSES = tuple(Cause), PROGRESSES = tuple(Progress)
cdef tuple POSITIONS = tuple(Position)
cdef int MAX_CHAIN = codec.MAX_CHAIN, MAX_NAME = codec.MAX_NAME, MAX_TEXT = codec.MAX_TEXT
cdef int MAX_REPORT = codec.MAX_REPORT, MIN_MTU = codec.MIN_MTU
cdef int MAX_RUN = update.MAX_RUN, MAX_PART = update.MAX_PART, MAX_PARTS = update.MAX_PARTS

assert (HEADER_SIZE, MAC_SIZE, MAX_DATAGRAM, FLOW_SIZE) == (
    codec.HEADER_SIZE, codec.MAC_SIZE, codec.MAX_DATAGRAM, codec.FLOW_SIZE)
assert (TCP, UDP) == tuple(Proto)
assert (TAP, SERVER, PROXY) == (Position.TAP, Position.SERVER, Position.PROXY)
for _members in (MODES, CAUSES, PROGRESSES, POSITIONS):
    assert _members == tuple(range(len(_members)))  # a value is its member's place


cdef struct Layout:
    uint8_t parts  # how many
    uint8_t fields  # of the message; 0: it is a special one, or there is none
    bint has_session  # as its first field
    uint8_t kind[PARTS]
    uint8_t field[PARTS]  # which one the part is


cdef struct Buffer:
    uint8_t *start
    uint8_t *at
    uint8_t *end


cdef object wrong(str text):
    return WireError(Malformed.VALUE, text)


cdef object too_long(str what, Py_ssize_t size, Py_ssize_t limit):
    return WireError(Malformed.OVERSIZED, f"{what} has {size} bytes, at most {limit}")


cdef uint8_t *take(Buffer *data, Py_ssize_t size) except NULL:
    """The next *size* bytes of what is read."""
    cdef uint8_t *at = data.at
    if data.end - at < size:
        raise WireError(
            Malformed.TRUNCATED,
            f"payload ends after {data.end - data.start} of {at - data.start + size} bytes")
    data.at = at + size
    return at


cdef uint8_t *room(Buffer *out, Py_ssize_t size) except NULL:
    """Where the next *size* bytes are to be written."""
    cdef uint8_t *at = out.at
    if out.end - at < size:
        raise WireError(Malformed.OVERSIZED, f"a datagram of more than {MAX_DATAGRAM} bytes")
    out.at = at + size
    return at


cdef uint64_t number_at(const uint8_t *at, int size) noexcept:
    cdef uint64_t value = 0
    for i in range(size):
        value = value << 8 | at[i]
    return value


cdef void store(uint8_t *at, uint64_t value, int size) noexcept:
    while size:
        size -= 1
        at[size] = value & 0xFF
        value >>= 8


cdef bytes bytes_at(const uint8_t *at, Py_ssize_t size):
    return PyBytes_FromStringAndSize(<const char *>at, size)


cdef tuple fields_of(record):
    """A named tuple as a tuple, whose parts C looks up by their place."""
    if not isinstance(record, tuple):
        raise TypeError(f"{record!r} is no named tuple")
    return <tuple>record


# --- bounds ------------------------------------------------------------------------------------

cdef int check_mtu(uint64_t mtu) except -1:
    if mtu < <uint64_t>MIN_MTU:
        raise wrong(f"an MTU of {mtu}, IPv4 needs {MIN_MTU}")
    return 0


cdef int check_parts(const uint8_t *parts) except -1:
    """The number of this part stands in front of how many there are."""
    cdef uint8_t part = (parts - 1)[0]
    if not part < parts[0] <= MAX_PARTS:
        raise wrong(f"part {part} of {parts[0]} of a state, at most {MAX_PARTS}")
    return 0


cdef int check_run(Py_ssize_t count) except -1:
    if count > MAX_RUN:
        raise WireError(Malformed.OVERSIZED, f"a run of {count} hosts, at most {MAX_RUN}")
    return 0


cdef int check_middlebox(hop) except -1:
    if not TAP <= hop.kind < SERVER:
        raise wrong(f"a {hop.kind.name.lower()} in a run of middleboxes")
    return 0


def check_chain(tuple chain not None):
    cdef Py_ssize_t size, last = len(chain) - 1
    if not 0 <= last < MAX_CHAIN:
        reason = Malformed.OVERSIZED if chain else Malformed.VALUE
        raise WireError(reason, f"a chain of {last + 1} hops, allowed are 1 to {MAX_CHAIN}")
    for i, hop in enumerate(chain):
        if (hop.kind >= SERVER) != (i == last):
            raise wrong("a server or a proxy stands at the end of a chain and only there")
        PyUnicode_AsUTF8AndSize(hop.nf, &size)
        if size > MAX_NAME:
            raise too_long(f"NF name {hop.nf}", size, MAX_NAME)


cdef int check_size(str what, Py_ssize_t size, Py_ssize_t right) except -1:
    if size != right:
        reason = Malformed.TRUNCATED if size < right else Malformed.OVERSIZED
        raise WireError(reason, f"{what} has {size} bytes instead of {right}")
    return 0


include "_reading.pxi"
include "_writing.pxi"
include "_window.pxi"


cdef class Codec:
    cdef Layout layouts[TYPES]
    cdef list kinds  # by type: the message's class, None where there is no such type
    cdef dict types  # and back
    cdef dict specials
    cdef object envelope

    def __init__(self, envelope, layouts, specials):
        self.envelope = envelope
        self.kinds, self.types, self.specials = [None] * TYPES, {}, {}
        memset(self.layouts, 0, sizeof(self.layouts))
        for type_, kind, parts in layouts:
            self.name(type_, kind)
            self.learn(&self.layouts[<int>type_], list(kind.__struct_fields__), parts.split())
        for type_, kind, pack, unpack in specials:
            self.name(type_, kind)
            self.specials[type_] = pack, unpack

    cdef int name(self, int type_, kind) except -1:
        assert 0 < type_ < TYPES and self.kinds[type_] is None, type_
        self.kinds[type_], self.types[kind] = kind, type_
        return 0

    cdef int learn(self, Layout *layout, list fields, list parts) except -1:
        cdef list names = [part.partition(":")[0] for part in parts]
        layout.has_session = fields[0] == "session"
        layout.fields, layout.parts = len(fields), len(parts)
        # Each field once: what is read is put into the places of a tuple without another look.
        assert len(parts) <= PARTS and sorted(fields[layout.has_session:]) == sorted(names), fields
        for i, part in enumerate(parts):
            layout.field[<int>i] = fields.index(names[i])
            layout.kind[<int>i] = _KINDS[part.partition(":")[2]]
        return 0

    def encode(self, envelope):
        cdef uint8_t datagram[MAX_DATAGRAM]
        sender, receiver, seq, message, device = fields_of(envelope)
        return bytes_at(datagram, self.write(sender, receiver, seq, message, device, datagram))

    def seal(self, Hmac key not None, sender, receiver, seq, message, device):
        cdef uint8_t datagram[MAX_DATAGRAM]
        cdef Py_ssize_t size = self.write(sender, receiver, seq, message, device, datagram)
        key.over(datagram, size, datagram + size)
        return bytes_at(datagram, size + MAC_SIZE)

    def decode(self, bytes data not None):
        return self.read(<uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    def open(self, bytes datagram not None, Hmac key not None):
        cdef uint8_t *data = <uint8_t *>PyBytes_AS_STRING(datagram)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(datagram) - MAC_SIZE
        if size < HEADER_SIZE:
            raise WireError(Malformed.TRUNCATED, f"a datagram of {len(datagram)} bytes")
        if size > MAX_DATAGRAM - MAC_SIZE:
            raise WireError(Malformed.OVERSIZED, f"a datagram of {len(datagram)} bytes")
        if not key.fits(data, size, data + size):
            raise WireError(Malformed.BAD_MAC, "not sealed with this domain's key")
        return self.read(data, size)

    cdef Py_ssize_t write(self, sender, receiver, seq, message, device, uint8_t *to) except -1:
        """Header and payload, which leave room for the MAC; how many bytes."""
        cdef Buffer out = Buffer(to, to, to + MAX_DATAGRAM - MAC_SIZE)
        cdef uint8_t type_ = self.types[type(message)]
        cdef Layout *layout = &self.layouts[type_ % TYPES]
        cdef tuple values = astuple(message)
        memcpy(room(&out, 8), MAGIC, 2)
        to[2], to[3], to[4], to[5] = VERSION, type_, 0, 0
        write_number(&out, sender, 8)
        write_number(&out, receiver, 8)
        write_number(&out, seq, 8)
        if layout.fields:
            write_number(&out, values[0] if layout.has_session else 0, 8)
            write_bytes(&out, device, DEVICE_SIZE)
            for i in range(layout.parts):
                write_part(&out, values[layout.field[i]], layout.kind[i])
        else:
            write_number(&out, message.session, 8)
            write_bytes(&out, device, DEVICE_SIZE)
            payload = self.specials[type_][0](message)
            write_bytes(&out, payload, len(payload))
        store(to + 6, out.at - to - HEADER_SIZE, 2)
        return out.at - to

    cdef object read(self, uint8_t *data, Py_ssize_t size):
        """The envelope that these bytes are, without MAC."""
        if size < HEADER_SIZE:
            raise WireError(
                Malformed.TRUNCATED, f"{size} bytes, the header alone has {HEADER_SIZE}")
        if memcmp(data, MAGIC, 2):
            magic = bytes_at(data, 2)
            raise WireError(Malformed.MAGIC, f"starts with {magic!r} instead of {MAGIC!r}")
        if data[2] != VERSION:
            text = f"version {data[2]}, this agent speaks {VERSION}"
            raise WireError(Malformed.VERSION, text)
        cdef uint8_t type_ = data[3]
        kind = self.kinds[type_] if type_ < TYPES else None
        if kind is None:
            raise WireError(Malformed.TYPE, f"unknown message type {type_}")
        check_size("payload", size - HEADER_SIZE, number_at(data + 6, 2))
        if data[4] | data[5]:
            raise wrong(f"reserved flags are {number_at(data + 4, 2):#06x} instead of 0")
        cdef Layout *layout = &self.layouts[type_]
        cdef uint64_t sender = number_at(data + 8, 8), seq = number_at(data + 24, 8)
        cdef uint64_t session = number_at(data + 32, 8)
        if sender == 0 or seq == 0:
            raise wrong("sender epoch and sequence number must not be 0")
        if (session != 0) != (layout.has_session or not layout.fields):
            raise wrong(f"session {session:016x} in a message of type {type_}")
        cdef Buffer payload = Buffer(data + HEADER_SIZE, data + HEADER_SIZE, data + size)
        if layout.fields:
            message = self.read_message(kind, layout, session, &payload)
        else:
            message = self.specials[type_][1](session, bytes_at(payload.at, size - HEADER_SIZE))
        return tuple.__new__(self.envelope, (
            sender, number_at(data + 16, 8), seq, message, bytes_at(data + 40, DEVICE_SIZE)))

    cdef object read_message(self, kind, const Layout *layout, uint64_t session, Buffer *payload):
        cdef tuple values = PyTuple_New(layout.fields)
        cdef tuple chain = None
        if layout.has_session:
            put(values, 0, session)
        for i in range(layout.parts):
            value = read_part(payload, layout.kind[i])
            put(values, layout.field[i], value)
            if layout.kind[i] == CHAIN:
                chain = value
        check_size(kind.__name__, payload.end - payload.start, payload.at - payload.start)
        if chain is not None:
            check_chain(chain)
        return kind(*values)


cdef inline void put(tuple values, Py_ssize_t at, value):
    Py_INCREF(value)
    PyTuple_SET_ITEM(values, at, value)
