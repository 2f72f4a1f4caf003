# cython: boundscheck=False
"""The mapping and the restoring of frames, in C; see ``_mapping.pyi``."""

from cpython.bytearray cimport PyByteArray_AS_STRING
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from m2m.protocol.flow import V4_PREFIX, Flow


cdef extern from *:
    """
    #include "mapping.h"
    #include "publish.h"
    #include "restore.h"

    enum { M2M_CELL_SIZE = sizeof(struct m2m_cell) };
    """
    struct m2m_map_header:
        uint32_t netns_dev
        uint64_t netns_ino
        uint32_t replaced
        uint64_t refused

    struct m2m_cell:
        pass

    struct m2m_map:
        m2m_map_header *header
        m2m_cell *cells
        uint32_t mask

    struct m2m_key4:
        uint32_t src
        uint32_t dst
        uint16_t sport
        uint16_t dport
        uint8_t proto
        uint8_t hook
        uint8_t zero[2]

    struct m2m_name:
        uint32_t src
        uint32_t dst
        uint16_t sport
        uint16_t dport
        uint8_t again

    struct m2m_restorer:
        m2m_map map
        uint64_t restored
        uint64_t fragments

    uint32_t M2M_MAP_MIN_CELLS
    uint32_t M2M_MAP_MAX_CELLS
    unsigned int M2M_PARTIAL_CHECK
    unsigned int M2M_UNTIMED

    uint16_t m2m_swap16(uint16_t value)
    size_t m2m_map_size(uint32_t cells)
    void m2m_map_format(void *memory, uint32_t cells, uint32_t dev, uint64_t ino)
    const char *m2m_map_use(m2m_map *map, void *memory, size_t size)
    int m2m_map_find(const m2m_map *map, const m2m_key4 *key, uint32_t when, int timed,
                     m2m_name *name)
    int m2m_map_publish(m2m_map *map, const m2m_key4 *key, const m2m_name *name, uint32_t now)
    int m2m_map_end(m2m_map *map, const m2m_key4 *key)
    void m2m_map_sweep(m2m_map *map, uint32_t *at, uint32_t count)
    void m2m_map_take_over(m2m_map *map)
    uint32_t m2m_map_taken_over(m2m_map *map)
    void m2m_map_count(const m2m_map *map, uint32_t *live, uint32_t *over)
    int m2m_restore(m2m_restorer *restorer, unsigned int link, uint8_t *data, size_t captured,
                    uint32_t when, unsigned int flags)


MIN_CELLS = M2M_MAP_MIN_CELLS
MAX_CELLS = M2M_MAP_MAX_CELLS


def size_of(uint32_t cells):
    return m2m_map_size(cells)


def lay_out(unsigned char[::1] memory not None, uint32_t cells, uint32_t netns_dev,
            uint64_t netns_ino):
    if cells < M2M_MAP_MIN_CELLS or cells > M2M_MAP_MAX_CELLS or cells & (cells - 1):
        raise ValueError(f"{cells} is no number of cells")
    if <size_t>memory.shape[0] < m2m_map_size(cells):
        raise ValueError(f"{memory.shape[0]} bytes are too few for {cells} cells")
    m2m_map_format(&memory[0], cells, netns_dev, netns_ino)


cdef int _address(object address, uint32_t *four) except -1:
    cdef const unsigned char *at
    if len(address) != 16 or not address.startswith(V4_PREFIX):
        raise ValueError("only IPv4 has a mapping")
    at = address
    memcpy(four, at + 12, 4)
    return 0


cdef int _key(object flow, m2m_key4 *key) except -1:
    proto, src, sport, dst, dport = flow
    _address(src, &key.src)
    _address(dst, &key.dst)
    key.sport = m2m_swap16(sport)
    key.dport = m2m_swap16(dport)
    key.proto = proto
    key.hook = key.zero[0] = key.zero[1] = 0
    return 0


cdef class Table:
    cdef m2m_map _map
    cdef unsigned char[::1] _memory
    cdef uint32_t _at

    def __init__(self, unsigned char[::1] memory not None):
        cdef const char *wrong
        if memory.shape[0] == 0:
            raise ValueError("it is empty")
        wrong = m2m_map_use(&self._map, &memory[0], memory.shape[0])
        if wrong != NULL:
            raise ValueError(wrong.decode())
        self._memory = memory
        self._at = 0

    def __len__(self):
        return self._map.mask + 1

    @property
    def netns(self):
        return self._map.header.netns_dev, self._map.header.netns_ino

    @property
    def refused(self):
        return self._map.header.refused

    def replace(self):
        self._map.header.replaced = 1

    def publish(self, flow, name, bint again, uint32_t now):
        cdef m2m_key4 key
        cdef m2m_key4 given
        cdef m2m_name called
        _key(flow, &key)
        _key(name, &given)
        called.src, called.dst = given.src, given.dst
        called.sport, called.dport = given.sport, given.dport
        called.again = again
        return m2m_map_publish(&self._map, &key, &called, now)

    def end(self, flow):
        cdef m2m_key4 key
        _key(flow, &key)
        return bool(m2m_map_end(&self._map, &key))

    def find(self, flow, when=None):
        cdef m2m_key4 key
        cdef m2m_name name
        _key(flow, &key)
        if not m2m_map_find(&self._map, &key, when or 0, when is not None, &name):
            return None
        return (
            Flow(
                flow[0],
                V4_PREFIX + (<unsigned char *>&name.src)[:4], m2m_swap16(name.sport),
                V4_PREFIX + (<unsigned char *>&name.dst)[:4], m2m_swap16(name.dport),
            ),
            bool(name.again),
        )

    def sweep(self, uint32_t cells):
        m2m_map_sweep(&self._map, &self._at, cells)

    def take_over(self):
        m2m_map_take_over(&self._map)

    def taken_over(self):
        return m2m_map_taken_over(&self._map)

    def count(self):
        cdef uint32_t live, over
        m2m_map_count(&self._map, &live, &over)
        return live, over


cdef class Restorer:
    cdef m2m_restorer _restorer
    cdef Table _table

    def __init__(self, Table table not None):
        self._table = table
        self._restorer.map = table._map

    def restore(self, unsigned int link, frame, uint32_t when=0, *, bint partial=False,
                bint timed=True):
        cdef bytearray copy = bytearray(frame)
        cdef unsigned int flags = 0
        cdef int done
        if partial:
            flags |= M2M_PARTIAL_CHECK
        if not timed:
            flags |= M2M_UNTIMED
        done = m2m_restore(&self._restorer, link, <uint8_t *>PyByteArray_AS_STRING(copy),
                           len(copy), when, flags)
        return bytes(copy), done

    @property
    def fragments(self):
        return self._restorer.fragments
