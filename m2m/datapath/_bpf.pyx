# cython: language_level=3
"""A thin binding of libbpf: objects, maps, programs, links, the ring buffer.

Failures are :class:`BpfError` with the kernel's error number and what libbpf had to say. Calls
that may wait (loading, attaching, batches, running a program) give up the interpreter lock.
"""

import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EEXIST, ENOENT, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from posix.unistd cimport close as close_fd

cdef extern from *:
    """
    #include <errno.h>
    #include <stdarg.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #include <linux/membarrier.h>
    #include <bpf/bpf.h>
    #include <bpf/libbpf.h>

    /* Per thread, so that a load in one thread does not mix its words with another's. */
    static __thread char m2m_said[8192];
    static __thread size_t m2m_said_len;

    /* Of a text that is too long (the verifier's log) the end is kept: there it says why. */
    static int m2m_listen(enum libbpf_print_level level, const char *format, va_list args)
    {
        char *text;
        int len;
        size_t room = sizeof(m2m_said) - 1, keep;

        if (level > LIBBPF_WARN)
            return 0;
        len = vasprintf(&text, format, args);
        if (len < 0)
            return 0;
        keep = (size_t)len < room ? (size_t)len : room;
        if (m2m_said_len > room - keep) {
            size_t surplus = m2m_said_len - (room - keep);

            memmove(m2m_said, m2m_said + surplus, m2m_said_len - surplus);
            m2m_said_len -= surplus;
        }
        memcpy(m2m_said + m2m_said_len, text + len - keep, keep + 1);
        m2m_said_len += keep;
        free(text);
        return 0;
    }

    static void m2m_forget(void)
    {
        m2m_said_len = 0;
        m2m_said[0] = 0;
    }

    static void m2m_listen_to_libbpf(void)
    {
        libbpf_set_print(m2m_listen);
    }

    /* Returns when every program that was running at the time of the call has ended. */
    static int m2m_wait_for_programs(void)
    {
        return syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0);
    }
    """
    const char *m2m_said
    void m2m_forget() nogil
    void m2m_listen_to_libbpf()
    int m2m_wait_for_programs() nogil

    int BPF_TC_INGRESS
    int BPF_TC_EGRESS
    int BPF_TC_F_REPLACE

    struct bpf_object:
        pass
    struct bpf_map:
        pass
    struct bpf_program:
        pass
    struct ring_buffer:
        pass
    ctypedef int (*ring_buffer_sample_fn)(void *ctx, void *data, size_t size) noexcept
    struct bpf_map_info:
        uint32_t type
        uint32_t id
        uint32_t key_size
        uint32_t value_size
        uint32_t max_entries
        uint32_t map_flags
    struct bpf_prog_info:
        uint32_t id
    struct bpf_test_run_opts:
        size_t sz
        const void *data_in
        void *data_out
        uint32_t data_size_in
        uint32_t data_size_out
        const void *ctx_in
        void *ctx_out
        uint32_t ctx_size_in
        uint32_t ctx_size_out
        uint32_t retval
        int repeat
        uint32_t duration
    struct bpf_tc_hook:
        size_t sz
        int ifindex
        int attach_point
    struct bpf_tc_opts:
        size_t sz
        int prog_fd
        uint32_t flags
        uint32_t prog_id
        uint32_t handle
        uint32_t priority
    struct bpf_map_batch_opts:
        size_t sz

    bpf_object *bpf_object__open(const char *path) nogil
    int bpf_object__load(bpf_object *obj) nogil
    void bpf_object__close(bpf_object *obj)
    bpf_map *bpf_object__find_map_by_name(const bpf_object *obj, const char *name)
    bpf_program *bpf_object__find_program_by_name(const bpf_object *obj, const char *name)
    bpf_map *bpf_object__next_map(const bpf_object *obj, const bpf_map *map)
    const char *bpf_map__name(const bpf_map *map)
    int bpf_map__fd(const bpf_map *map)
    int bpf_map__set_max_entries(bpf_map *map, uint32_t max_entries)
    int bpf_map__reuse_fd(bpf_map *map, int fd)
    int bpf_program__fd(const bpf_program *prog)
    int bpf_map_lookup_elem(int fd, const void *key, void *value)
    int bpf_map_update_elem(int fd, const void *key, const void *value, uint64_t flags)
    int bpf_map_delete_elem(int fd, const void *key)
    int bpf_map_get_next_key(int fd, const void *key, void *next_key)
    int bpf_map_lookup_batch(int fd, void *in_batch, void *out_batch, void *keys, void *values,
                             uint32_t *count, const bpf_map_batch_opts *opts) nogil
    int bpf_map_update_batch(int fd, const void *keys, const void *values, uint32_t *count,
                             const bpf_map_batch_opts *opts) nogil
    int bpf_obj_get_info_by_fd(int fd, void *info, uint32_t *len)
    int bpf_obj_pin(int fd, const char *path)
    int bpf_obj_get(const char *path)
    int bpf_link_create(int prog_fd, int target_fd, int attach_type, const void *opts) nogil
    int bpf_link_update(int link_fd, int new_prog_fd, const void *opts) nogil
    int bpf_link_detach(int link_fd) nogil
    int bpf_prog_test_run_opts(int prog_fd, bpf_test_run_opts *opts) nogil
    int bpf_tc_hook_create(bpf_tc_hook *hook) nogil
    int bpf_tc_hook_destroy(bpf_tc_hook *hook) nogil
    int bpf_tc_attach(const bpf_tc_hook *hook, bpf_tc_opts *opts) nogil
    int bpf_tc_detach(const bpf_tc_hook *hook, const bpf_tc_opts *opts) nogil
    int libbpf_num_possible_cpus()
    ring_buffer *ring_buffer__new(int map_fd, ring_buffer_sample_fn sample_cb, void *ctx,
                                  const void *opts)
    int ring_buffer__consume(ring_buffer *rb)
    int ring_buffer__epoll_fd(const ring_buffer *rb)
    void ring_buffer__free(ring_buffer *rb)

m2m_listen_to_libbpf()

NOEXIST = 1
EXIST = 2
TCX_INGRESS = 46  # enum bpf_attach_type, since Linux 6.6
TCX_EGRESS = 47


class BpfError(OSError):
    """The kernel or libbpf refused; ``errno`` tells which way."""


cdef _error(str what, int code=0):
    """What the last call came to; to be made before anything else can change errno."""
    cdef int number = code if code else errno
    said = m2m_said.decode(errors="replace").strip()
    m2m_forget()
    text = f"{what}: {os.strerror(number)}"
    return BpfError(number, f"{text}\n{said}" if said else text)


cdef class _Descriptor:
    """Owns a file descriptor."""

    cdef readonly int fd

    def __cinit__(self, *args):
        self.fd = -1

    def __dealloc__(self):
        if self.fd >= 0:
            close_fd(self.fd)

    def fileno(self):
        return self.fd

    def close(self):
        if self.fd >= 0:
            close_fd(self.fd)
            self.fd = -1

    def pin(self, path):
        if bpf_obj_pin(self.fd, os.fsencode(path)):
            raise _error(f"cannot pin to {path}")


cdef int _get(object path) except -1:
    cdef int fd = bpf_obj_get(os.fsencode(path))
    if fd < 0:
        raise _error(f"cannot open {path}")
    return fd


cdef class Map(_Descriptor):
    cdef readonly uint32_t key_size
    cdef readonly uint32_t value_size
    cdef readonly uint32_t max_entries
    cdef Py_ssize_t _slot  # bytes of a value as system calls see it

    def __init__(self, int fd):
        """Takes *fd* over."""
        cdef bpf_map_info info
        cdef uint32_t size = sizeof(info)
        self.fd = fd
        memset(&info, 0, sizeof(info))
        if bpf_obj_get_info_by_fd(fd, &info, &size):
            raise _error("not a BPF map")
        self.key_size = info.key_size
        self.value_size = info.value_size
        self.max_entries = info.max_entries
        self._slot = info.value_size
        if info.type in (5, 6, 10):  # per CPU: one value for each, at 8 bytes
            self._slot = (info.value_size + 7) // 8 * 8 * libbpf_num_possible_cpus()

    @staticmethod
    def pinned(path):
        return Map(_get(path))

    cdef const char *_key(self, bytes key) except NULL:
        if len(key) != self.key_size:
            raise ValueError(f"a key of {len(key)} bytes where {self.key_size} are needed")
        return PyBytes_AS_STRING(key)

    cdef const char *_value(self, bytes value) except NULL:
        if len(value) != self._slot:
            raise ValueError(f"a value of {len(value)} bytes where {self._slot} are needed")
        return PyBytes_AS_STRING(value)

    def lookup(self, bytes key):
        cdef const char *where = self._key(key)
        cdef bytes value = PyBytes_FromStringAndSize(NULL, self._slot)
        if bpf_map_lookup_elem(self.fd, where, PyBytes_AS_STRING(value)):
            if errno == ENOENT:
                return None
            raise _error("map look-up")
        return value

    def lookup_each(self, list keys):
        cdef list found = []
        cdef bytes key
        for key in keys:
            found.append(self.lookup(key))
        return found

    def update(self, bytes key, bytes value, uint64_t flags=0):
        if bpf_map_update_elem(self.fd, self._key(key), self._value(value), flags):
            raise _error("map update")

    def add(self, bytes key, bytes value):
        if not bpf_map_update_elem(self.fd, self._key(key), self._value(value), NOEXIST):
            return True
        if errno == EEXIST:
            return False
        raise _error("map insertion")

    def delete(self, bytes key):
        if not bpf_map_delete_elem(self.fd, self._key(key)):
            return True
        if errno == ENOENT:
            return False
        raise _error("map deletion")

    def next_key(self, bytes key=None):
        cdef bytes found = PyBytes_FromStringAndSize(NULL, self.key_size)
        cdef const char *where = NULL
        if key is not None:
            where = self._key(key)
        if bpf_map_get_next_key(self.fd, where, PyBytes_AS_STRING(found)):
            if errno == ENOENT:
                return None
            raise _error("map iteration")
        return found

    def lookup_batch(self, bytes cursor, uint32_t count):
        cdef bytes after = PyBytes_FromStringAndSize(NULL, max(self.key_size, 4))
        cdef bytes keys = PyBytes_FromStringAndSize(NULL, <size_t>count * self.key_size)
        cdef bytes values = PyBytes_FromStringAndSize(NULL, count * self._slot)
        cdef char *start = NULL
        cdef char *to = PyBytes_AS_STRING(after)
        cdef char *to_keys = PyBytes_AS_STRING(keys)
        cdef char *to_values = PyBytes_AS_STRING(values)
        cdef int result
        if cursor is not None:
            if len(cursor) != len(after):
                raise ValueError("a cursor of another map")
            start = PyBytes_AS_STRING(cursor)
        with nogil:
            result = bpf_map_lookup_batch(self.fd, start, to, to_keys, to_values, &count, NULL)
        if result and errno != ENOENT:
            raise _error("map batch look-up")
        if count * self.key_size != len(keys):
            keys = keys[:count * self.key_size]
            values = values[:count * self._slot]
        return (None if result else after), keys, values

    def update_batch(self, bytes keys, bytes values):
        cdef uint32_t count = len(keys) // self.key_size
        cdef const char *from_keys = PyBytes_AS_STRING(keys)
        cdef const char *from_values = PyBytes_AS_STRING(values)
        cdef int result = 0
        if len(keys) % self.key_size or len(values) != <Py_ssize_t>count * self._slot:
            raise ValueError("keys and values do not belong together")
        if count:
            with nogil:
                result = bpf_map_update_batch(self.fd, from_keys, from_values, &count, NULL)
        if result:
            raise _error("map batch update")


cdef class Program(_Descriptor):
    def __init__(self, int fd):
        """Takes *fd* over."""
        self.fd = fd

    @staticmethod
    def pinned(path):
        return Program(_get(path))

    def run(self, bytes data=None, bytes ctx=None, int repeat=1):
        cdef bpf_test_run_opts opts
        cdef bytes ctx_out = None
        cdef int result
        memset(&opts, 0, sizeof(opts))
        opts.sz = sizeof(opts)
        if data is not None:  # a syscall program takes neither data nor repetitions
            data_out = bytearray(len(data) + 256)
            opts.repeat = repeat
            opts.data_in = PyBytes_AS_STRING(data)
            opts.data_size_in = len(data)
            opts.data_out = <char *>data_out
            opts.data_size_out = len(data_out)
        if ctx is not None:
            # A syscall program writes its context in place, an skb's comes back as a copy.
            ctx_out = PyBytes_FromStringAndSize(PyBytes_AS_STRING(ctx), len(ctx))
            opts.ctx_in = PyBytes_AS_STRING(ctx_out)
            opts.ctx_size_in = len(ctx_out)
            if data is not None:
                opts.ctx_out = PyBytes_AS_STRING(ctx_out)
                opts.ctx_size_out = len(ctx_out)
        with nogil:
            result = bpf_prog_test_run_opts(self.fd, &opts)
        if result:
            raise _error("running a BPF program")
        packet = None if data is None else bytes(data_out[:opts.data_size_out])
        return opts.retval, packet, ctx_out, opts.duration

    def run_each(self, bytes contexts, uint32_t size):
        cdef bpf_test_run_opts opts
        cdef bytes after = PyBytes_FromStringAndSize(PyBytes_AS_STRING(contexts), len(contexts))
        cdef char *context = PyBytes_AS_STRING(after)
        cdef char *end = context + len(after)
        cdef int result = 0
        if not size or len(contexts) % size:
            raise ValueError(f"contexts of {len(contexts)} bytes where each has {size}")
        memset(&opts, 0, sizeof(opts))
        opts.sz = sizeof(opts)
        opts.ctx_size_in = size
        with nogil:
            while context < end and not result:
                opts.ctx_in = context
                result = bpf_prog_test_run_opts(self.fd, &opts)
                context += size
        if result:
            raise _error("running a BPF program")
        return after


cdef class Object:
    """A compiled BPF object: open, adjust, load; owns the maps and programs it hands out."""

    cdef bpf_object *_object
    cdef list _given

    def __init__(self, path):
        cdef const char *where
        self._given = []
        encoded = os.fsencode(path)
        where = encoded
        m2m_forget()
        self._object = bpf_object__open(where)
        if self._object is NULL:
            raise _error(f"cannot read {path}")

    def __dealloc__(self):
        if self._object is not NULL:
            bpf_object__close(self._object)

    def close(self):
        if self._object is not NULL:
            bpf_object__close(self._object)
            self._object = NULL
        for each in self._given:
            each.close()
        self._given.clear()

    cdef _give(self, each):
        self._given.append(each)
        return each

    cdef bpf_map *_find(self, str name) except NULL:
        cdef bpf_map *found = NULL
        if self._object is not NULL:
            found = bpf_object__find_map_by_name(self._object, name.encode())
        if found is NULL:
            raise KeyError(name)
        return found

    def map_names(self):
        cdef bpf_map *each = bpf_object__next_map(self._object, NULL)
        names = []
        while each is not NULL:
            names.append(bpf_map__name(each).decode())
            each = bpf_object__next_map(self._object, each)
        return names

    def set_max_entries(self, str name, uint32_t max_entries):
        if bpf_map__set_max_entries(self._find(name), max_entries):
            raise _error(f"cannot size the map {name}")

    def reuse(self, str name, Map existing):
        if bpf_map__reuse_fd(self._find(name), existing.fd):
            raise _error(f"cannot take over the map {name}")

    def load(self):
        cdef int result
        m2m_forget()
        with nogil:
            result = bpf_object__load(self._object)
        if result:
            raise _error("cannot load the BPF programs", -result)

    def map(self, str name):
        return self._give(Map(os.dup(bpf_map__fd(self._find(name)))))

    def program(self, str name):
        cdef bpf_program *found = NULL
        if self._object is not NULL:
            found = bpf_object__find_program_by_name(self._object, name.encode())
        if found is NULL:
            raise KeyError(name)
        return self._give(Program(os.dup(bpf_program__fd(found))))


cdef class Link(_Descriptor):
    """A program's attachment to an interface, in the calling thread's network namespace."""

    def __init__(self, int fd):
        """Takes *fd* over."""
        self.fd = fd

    @staticmethod
    def pinned(path):
        return Link(_get(path))

    @staticmethod
    def create(Program program, int ifindex, int attach_type):
        cdef int fd, prog_fd = program.fd
        with nogil:
            fd = bpf_link_create(prog_fd, ifindex, attach_type, NULL)
        if fd < 0:
            raise _error(f"cannot attach to interface {ifindex}", -fd)
        return Link(fd)

    def update(self, Program program):
        cdef int result, fd = self.fd, prog_fd = program.fd
        with nogil:
            result = bpf_link_update(fd, prog_fd, NULL)
        if result:
            raise _error("cannot replace an attached program", -result)

    def detach(self):
        cdef int result, fd = self.fd
        with nogil:
            result = bpf_link_detach(fd)
        if result:
            raise _error("cannot detach a program", -result)


cdef void _hook(bpf_tc_hook *hook, int ifindex, bint ingress) noexcept:
    memset(hook, 0, sizeof(hook[0]))
    hook.sz = sizeof(hook[0])
    hook.ifindex = ifindex
    hook.attach_point = BPF_TC_INGRESS if ingress else BPF_TC_EGRESS


def tc_attach(Program program, int ifindex, bint ingress, uint32_t handle, uint32_t priority):
    cdef bpf_tc_hook hook
    cdef bpf_tc_opts opts
    cdef int result, made
    _hook(&hook, ifindex, ingress)
    memset(&opts, 0, sizeof(opts))
    opts.sz = sizeof(opts)
    opts.prog_fd = program.fd
    opts.flags = BPF_TC_F_REPLACE
    opts.handle = handle
    opts.priority = priority
    m2m_forget()
    with nogil:
        made = bpf_tc_hook_create(&hook)
        result = bpf_tc_attach(&hook, &opts) if made == 0 or made == -EEXIST else made
    if result:
        raise _error(f"cannot attach to interface {ifindex}", -result)
    m2m_forget()
    return made == 0


def tc_remove_hook(int ifindex):
    cdef bpf_tc_hook hook
    cdef int result
    _hook(&hook, ifindex, True)
    hook.attach_point = BPF_TC_INGRESS | BPF_TC_EGRESS
    m2m_forget()
    with nogil:
        result = bpf_tc_hook_destroy(&hook)
    m2m_forget()
    return result == 0


def tc_detach(int ifindex, bint ingress, uint32_t handle, uint32_t priority):
    cdef bpf_tc_hook hook
    cdef bpf_tc_opts opts
    cdef int result
    _hook(&hook, ifindex, ingress)
    memset(&opts, 0, sizeof(opts))
    opts.sz = sizeof(opts)
    opts.handle = handle
    opts.priority = priority
    m2m_forget()
    with nogil:
        result = bpf_tc_detach(&hook, &opts)
    m2m_forget()
    return result == 0


cdef int _take(void *ctx, void *data, size_t size) noexcept with gil:
    (<list>ctx).append((<char *>data)[:size])
    return 0


cdef class RingBuffer:
    """Records that BPF programs leave in a ring buffer map."""

    cdef ring_buffer *_ring
    cdef list _records

    def __init__(self, Map ring):
        self._records = []
        self._ring = ring_buffer__new(ring.fd, _take, <void *>self._records, NULL)
        if self._ring is NULL:
            raise _error("cannot open the ring buffer")

    def __dealloc__(self):
        self.close()

    cpdef close(self):
        if self._ring is not NULL:
            ring_buffer__free(self._ring)
            self._ring = NULL

    def fileno(self):
        """Readable when there are records (an epoll descriptor)."""
        return -1 if self._ring is NULL else ring_buffer__epoll_fd(self._ring)

    def consume(self):
        if self._ring is not NULL:
            ring_buffer__consume(self._ring)
        taken = self._records[:]
        self._records.clear()
        return taken


def wait_for_programs():
    cdef int result
    with nogil:
        result = m2m_wait_for_programs()
    if result:
        raise _error("waiting for running BPF programs")


def possible_cpus():
    return libbpf_num_possible_cpus()
