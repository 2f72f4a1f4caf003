from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

cdef extern from * nogil:
    """
    #define OPENSSL_SUPPRESS_DEPRECATED
    #include <openssl/crypto.h>
    #include <openssl/sha.h>
    """
    ctypedef struct SHA256_CTX:
        pass


cdef class Hmac:
    cdef SHA256_CTX inner, outer

    cdef void over(self, const uint8_t *data, size_t size, uint8_t *mac) noexcept
    cdef bint fits(self, const uint8_t *data, size_t size, const uint8_t *mac) noexcept
