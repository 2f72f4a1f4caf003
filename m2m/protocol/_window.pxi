"""Which numbers of one sender were seen. Included by ``_codec.pyx``."""

cdef enum:
    SPAN = 1024
    SPAN_BYTES = 128


cdef class Window:
    cdef uint64_t top
    cdef uint8_t seen[SPAN_BYTES]  # a bit for each of the last numbers, at its remainder

    def accept(self, uint64_t seq):
        cdef uint64_t passed
        cdef uint8_t bit = 1 << (seq % 8)
        cdef uint8_t *place = &self.seen[seq % SPAN // 8]
        if seq > self.top:
            if seq - self.top >= SPAN:
                memset(self.seen, 0, sizeof(self.seen))
            else:
                for passed in range(self.top + 1, seq):
                    self.seen[passed % SPAN // 8] &= ~(1 << (passed % 8))
            self.top = seq
        elif self.top - seq >= SPAN or place[0] & bit:
            return False
        place[0] |= bit
        return True


WINDOW = SPAN
