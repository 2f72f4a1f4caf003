"""The parts of a payload, read. Included by ``_codec.pyx``."""

cdef object read_flow(Buffer *data):
    cdef uint8_t *at = take(data, FLOW_SIZE)
    if at[37] | at[38] | at[39]:
        raise wrong("padding of a flow is not zero")
    if at[36] != TCP and at[36] != UDP:
        raise wrong(f"flow of protocol {at[36]}, neither TCP nor UDP")
    return tuple.__new__(Flow, (
        at[36], bytes_at(at, 16), number_at(at + 32, 2), bytes_at(at + 16, 16),
        number_at(at + 34, 2)))


cdef object read_text(Buffer *data, Py_ssize_t size, str what):
    cdef const uint8_t *at = take(data, size)
    cdef bint plain = True
    for i in range(size):
        plain &= 0x20 <= at[i] < 0x7F
    if plain:
        return PyUnicode_DecodeASCII(<const char *>at, size, NULL)
    try:
        text = PyUnicode_DecodeUTF8(<const char *>at, size, NULL)
    except UnicodeDecodeError:
        raise wrong(f"{what} is not UTF-8: {bytes_at(at, size)!r}") from None
    if not text.isprintable():  # it ends up in logs and on terminals
        raise wrong(f"{what} holds control characters: {text!r}")
    return text


cdef object read_hop(Buffer *data):
    cdef uint8_t *at = take(data, ADDRESS_SIZE + 2)
    cdef uint8_t kind = at[ADDRESS_SIZE], size = at[ADDRESS_SIZE + 1]
    if not TAP <= kind <= PROXY:
        raise wrong(f"hop of unknown kind {kind}")
    if size > MAX_NAME:
        raise WireError(Malformed.OVERSIZED, f"NF name of {size} bytes, at most {MAX_NAME}")
    return Hop(bytes_at(at, ADDRESS_SIZE), POSITIONS[kind], read_text(data, size, "NF name"))


cdef object read_address(Buffer *data, bint or_none):
    cdef uint8_t *at = take(data, ADDRESS_SIZE)
    if or_none and memcmp(at, PyBytes_AS_STRING(NO_ADDRESS), ADDRESS_SIZE) == 0:
        return None
    return bytes_at(at, ADDRESS_SIZE)


cdef tuple read_run(Buffer *data, uint8_t kind):
    """Hops or steps, behind their number."""
    cdef uint8_t count = take(data, 1)[0]
    cdef list found = []
    if kind == CHAIN:
        if take(data, 1)[0]:
            raise wrong("padding of a SYN is not zero")
        if count > MAX_CHAIN:
            raise WireError(
                Malformed.OVERSIZED, f"a chain of {count} hops, at most {MAX_CHAIN}")
    else:
        check_run(count)
    for _ in range(count):
        if kind == STEPS:
            found.append(Step(read_address(data, False), read_address(data, True)))
        else:
            hop = read_hop(data)
            if kind == HOPS:
                check_middlebox(hop)
            found.append(hop)
    return tuple(found)


cdef object member(tuple members, uint8_t value):
    if value >= len(members):
        raise wrong(f"unknown {type(members[0]).__name__.lower()} {value}")
    return members[value]


cdef object read_part(Buffer *data, uint8_t kind):
    cdef uint64_t value
    cdef uint8_t *at
    cdef Py_ssize_t size
    if kind <= NUMBER_8:
        return number_at(take(data, kind), kind)
    elif kind == CHANGE:
        value = number_at(take(data, 8), 8)
        if not value:
            raise wrong("a change without its number")
        return value
    elif kind == COUNT:
        value = number_at(take(data, 8), 8)
        return None if value == <uint64_t>-1 else value
    elif kind == MTU:
        value = number_at(take(data, 2), 2)
        check_mtu(value)
        return value
    elif kind == BOOL:
        at = take(data, 1)
        if at[0] > 1:
            raise wrong(f"{at[0]} is neither yes nor no")
        return at[0] == 1
    elif kind == PARTS_OF:
        at = take(data, 1)
        check_parts(at)
        return at[0]
    elif kind == MODE:
        return member(MODES, take(data, 1)[0])
    elif kind == CAUSE:
        return member(CAUSES, take(data, 1)[0])
    elif kind == PROGRESS:
        return member(PROGRESSES, take(data, 1)[0])
    elif kind == ADDRESS or kind == BLAME:
        return read_address(data, kind == BLAME)
    elif kind == DEVICE:
        return bytes_at(take(data, DEVICE_SIZE), DEVICE_SIZE)
    elif kind == FLOW:
        return read_flow(data)
    elif kind == TEXT:
        size = take(data, 1)[0]
        if size > MAX_TEXT:
            raise too_long("text", size, MAX_TEXT)
        return read_text(data, size, "text")
    elif kind == DATA:
        size = number_at(take(data, 2), 2)
        if size > MAX_PART:
            raise too_long("part of a state", size, MAX_PART)
        return bytes_at(take(data, size), size)
    elif kind == REST:
        size = data.end - data.at
        if size > MAX_REPORT:
            raise too_long("report", size, MAX_REPORT)
        return bytes_at(take(data, size), size)
    elif kind == SPLICE:  # the last part, or nothing
        if data.end == data.at:
            return None
        try:
            return Splice.of_wire(bytes_at(take(data, SPLICE_SIZE), SPLICE_SIZE))
        except ValueError as error:
            raise wrong(str(error)) from None
    return read_run(data, kind)
