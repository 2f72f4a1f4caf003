"""The MAC of the domain key, for Python and, by ``_hmac.pxd``, for the codec of messages.

SHA-256 is libcrypto's, by its functions of old: their state is a struct, so going on from the
block of the key is a copy of 112 bytes. Messages are far apart, and what lies around the hash is
not in the processor's caches any more when the next one comes: all that EVP does to find and to
allocate then takes ten times what the hash itself takes.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memcpy, memset

cdef extern from * nogil:
    enum:
        SHA256_DIGEST_LENGTH
    int SHA256_Init(SHA256_CTX *c)
    int SHA256_Update(SHA256_CTX *c, const void *data, size_t size)
    int SHA256_Final(uint8_t *digest, SHA256_CTX *c)
    int CRYPTO_memcmp(const void *a, const void *b, size_t size)
    void OPENSSL_cleanse(void *data, size_t size)

cdef enum:
    BLOCK = 64  # bytes that SHA-256 takes at a time
    MAC_SIZE = 16


cdef class Hmac:
    def __cinit__(self, bytes secret not None):
        cdef uint8_t block[BLOCK]
        cdef size_t size = len(secret)
        memset(block, 0, BLOCK)
        if size <= BLOCK:
            memcpy(block, PyBytes_AS_STRING(secret), size)
        else:
            SHA256_Init(&self.inner)
            SHA256_Update(&self.inner, PyBytes_AS_STRING(secret), size)
            SHA256_Final(block, &self.inner)
        for i in range(BLOCK):
            block[i] ^= 0x36
        SHA256_Init(&self.inner)
        SHA256_Update(&self.inner, block, BLOCK)
        for i in range(BLOCK):
            block[i] ^= 0x36 ^ 0x5C
        SHA256_Init(&self.outer)
        SHA256_Update(&self.outer, block, BLOCK)
        OPENSSL_cleanse(block, BLOCK)

    cdef void over(self, const uint8_t *data, size_t size, uint8_t *mac) noexcept:
        """Write MAC_SIZE bytes to *mac*."""
        cdef uint8_t digest[SHA256_DIGEST_LENGTH]
        cdef SHA256_CTX state = self.inner
        SHA256_Update(&state, data, size)
        SHA256_Final(digest, &state)
        state = self.outer
        SHA256_Update(&state, digest, SHA256_DIGEST_LENGTH)
        SHA256_Final(digest, &state)
        memcpy(mac, digest, MAC_SIZE)

    cdef bint fits(self, const uint8_t *data, size_t size, const uint8_t *mac) noexcept:
        """Whether MAC_SIZE bytes at *mac* belong to *data*."""
        cdef uint8_t right[MAC_SIZE]
        self.over(data, size, right)
        return CRYPTO_memcmp(right, mac, MAC_SIZE) == 0

    def mac(self, bytes data not None):
        cdef bytes made = PyBytes_FromStringAndSize(NULL, MAC_SIZE)
        self.over(<const uint8_t *>PyBytes_AS_STRING(data), len(data),
                  <uint8_t *>PyBytes_AS_STRING(made))
        return made

    def verify(self, bytes data not None, bytes mac not None):
        return len(mac) == MAC_SIZE and self.fits(
            <const uint8_t *>PyBytes_AS_STRING(data), len(data),
            <const uint8_t *>PyBytes_AS_STRING(mac))
