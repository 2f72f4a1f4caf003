"""The parts of a payload, written. Included by ``_codec.pyx``."""

cdef object misfit(object value):
    return wrong(f"{value!r} does not fit its field")


cdef int write_number(Buffer *out, object value, int size) except -1:
    cdef uint64_t number
    try:
        number = value
    except OverflowError:
        raise misfit(value) from None
    if size < 8 and number >> (8 * size):
        raise misfit(value)
    store(room(out, size), number, size)
    return 0


cdef int write_bytes(Buffer *out, bytes value, Py_ssize_t size) except -1:
    if value is None or PyBytes_GET_SIZE(value) != size:
        raise misfit(value)
    memcpy(room(out, size), PyBytes_AS_STRING(value), size)
    return 0


cdef int write_data(Buffer *out, bytes data) except -1:
    cdef Py_ssize_t size = len(data)
    if size > MAX_PART:
        raise too_long("part of a state", size, MAX_PART)
    store(room(out, 2), size, 2)
    return write_bytes(out, data, size)


cdef int write_flow(Buffer *out, object flow) except -1:
    proto, src, sport, dst, dport = fields_of(flow)
    write_bytes(out, src, ADDRESS_SIZE)
    write_bytes(out, dst, ADDRESS_SIZE)
    write_number(out, sport, 2)
    write_number(out, dport, 2)
    write_number(out, proto, 1)
    memset(room(out, 3), 0, 3)
    return 0


cdef int write_text(Buffer *out, str text, int limit, str what) except -1:
    cdef Py_ssize_t size
    cdef const char *data = PyUnicode_AsUTF8AndSize(text, &size)
    if size > limit:
        raise too_long(what, size, limit)
    room(out, 1)[0] = size
    memcpy(room(out, size), data, size)
    return 0


cdef int write_run(Buffer *out, tuple values, uint8_t kind) except -1:
    if kind == CHAIN:
        check_chain(values)
    else:
        check_run(len(values))
    room(out, 1)[0] = len(values)
    if kind == CHAIN:
        room(out, 1)[0] = 0
    for value in values:
        write_bytes(out, value.address, ADDRESS_SIZE)
        if kind == STEPS:
            write_bytes(out, value.heir or NO_ADDRESS, ADDRESS_SIZE)
            continue
        if kind == HOPS:
            check_middlebox(value)
        write_number(out, value.kind, 1)
        write_text(out, value.nf, MAX_NAME, "NF name")
    return 0


cdef int write_part(Buffer *out, object value, uint8_t kind) except -1:
    if kind <= NUMBER_8:
        write_number(out, value, kind)
    elif kind == CHANGE:
        if not value:
            raise wrong("a change without its number")
        write_number(out, value, 8)
    elif kind == COUNT:
        write_number(out, <uint64_t>-1 if value is None else value, 8)
    elif kind == MTU:
        write_number(out, value, 2)
        check_mtu(number_at(out.at - 2, 2))
    elif kind == PARTS_OF:
        write_number(out, value, 1)
        check_parts(out.at - 1)
    elif kind == BOOL or kind == MODE or kind == CAUSE or kind == PROGRESS:
        write_number(out, value, 1)
    elif kind == ADDRESS:
        write_bytes(out, value, ADDRESS_SIZE)
    elif kind == BLAME:
        write_bytes(out, value or NO_ADDRESS, ADDRESS_SIZE)
    elif kind == DEVICE:
        write_bytes(out, value, DEVICE_SIZE)
    elif kind == FLOW:
        write_flow(out, value)
    elif kind == TEXT:
        write_text(out, value, MAX_TEXT, "text")
    elif kind == DATA:
        write_data(out, value)
    elif kind == REST:
        if len(value) > MAX_REPORT:
            raise too_long("report", len(value), MAX_REPORT)
        write_bytes(out, value, len(value))
    elif kind == SPLICE:
        if value is not None:
            write_bytes(out, value.wire(), SPLICE_SIZE)
    else:
        write_run(out, value, kind)
    return 0
