# cython: boundscheck=False
"""The translation core of ``kmod/core``, callable from Python; see ``_core.pyi``."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec


cdef extern from *:
    """
    #include "apply.h"
    #include "core/core.h"

    #define FIELD(structure, field) \
        { #structure, #field, offsetof(struct structure, field), \
          sizeof(((struct structure *)0)->field), sizeof(struct structure) }

    static const struct m2m_field {
        const char *structure, *field;
        size_t offset, size, total;
    } m2m_fields[] = {
        FIELD(m2m_key, tuple.src), FIELD(m2m_key, tuple.dst), FIELD(m2m_key, tuple.sport),
        FIELD(m2m_key, tuple.dport), FIELD(m2m_key, tuple.proto), FIELD(m2m_key, tuple.hook),
        FIELD(m2m_key, tuple.zero),
        FIELD(m2m_entry, tag), FIELD(m2m_entry, ifindex), FIELD(m2m_entry, session),
        FIELD(m2m_entry, packets), FIELD(m2m_entry, bytes), FIELD(m2m_entry, last_seen),
        FIELD(m2m_entry, max_seq), FIELD(m2m_entry, max_ack), FIELD(m2m_entry, chain), FIELD(m2m_entry, generation),
        FIELD(m2m_entry, role), FIELD(m2m_entry, flags), FIELD(m2m_entry, mss),
        FIELD(m2m_entry, mtu), FIELD(m2m_entry, addr_diff), FIELD(m2m_entry, sport),
        FIELD(m2m_entry, dport), FIELD(m2m_entry, super_sport), FIELD(m2m_entry, super_dport),
        FIELD(m2m_entry, src), FIELD(m2m_entry, dst), FIELD(m2m_entry, next_hop),
        FIELD(m2m_entry, super_src), FIELD(m2m_entry, super_dst), FIELD(m2m_entry, zero),
        FIELD(m2m_rule, src_lo), FIELD(m2m_rule, src_hi), FIELD(m2m_rule, dst_lo),
        FIELD(m2m_rule, dst_hi), FIELD(m2m_rule, sport_lo), FIELD(m2m_rule, sport_hi),
        FIELD(m2m_rule, dport_lo), FIELD(m2m_rule, dport_hi), FIELD(m2m_rule, proto_lo),
        FIELD(m2m_rule, proto_hi), FIELD(m2m_rule, fail), FIELD(m2m_rule, exempt),
        FIELD(m2m_rule, policy),
        FIELD(m2m_config, heartbeat), FIELD(m2m_config, heartbeat_limit),
        FIELD(m2m_config, clock), FIELD(m2m_config, jiffy),
        FIELD(m2m_config, active_rules), FIELD(m2m_config, rule_count),
        FIELD(m2m_config, generation), FIELD(m2m_config, linger), FIELD(m2m_config, tcp_idle),
        FIELD(m2m_config, udp_idle), FIELD(m2m_config, port_lo), FIELD(m2m_config, port_hi),
        FIELD(m2m_config, in_port_lo), FIELD(m2m_config, in_port_hi),
        FIELD(m2m_config, version),
        FIELD(m2m_splice, seq), FIELD(m2m_splice, stamp), FIELD(m2m_splice, window),
        FIELD(m2m_splice, zero),
    };
    enum { M2M_FIELD_COUNT = sizeof(m2m_fields) / sizeof(m2m_fields[0]) };

    /* What a mapped IPv4 address begins with. */
    static const unsigned char m2m_v4_prefix[12] = { [10] = 0xff, [11] = 0xff };
    """
    const uint8_t V4_PREFIX "m2m_v4_prefix"[12]
    const uint32_t M2M_PROXY_MARK
    const uint8_t M2M_SPLICED
    struct m2m_field:
        const char *structure
        const char *field
        size_t offset
        size_t size
        size_t total

    const m2m_field[] m2m_fields
    const int M2M_FIELD_COUNT

    struct m2m_addr:
        uint8_t byte[16]

    struct m2m_tuple:
        m2m_addr src
        m2m_addr dst
        uint16_t sport
        uint16_t dport
        uint8_t proto
        uint8_t hook

    struct m2m_key:
        m2m_tuple tuple

    struct m2m_key4:
        pass

    struct m2m_entry:
        uint16_t tag
        uint16_t chain
        uint32_t ifindex
        uint8_t role
        uint8_t flags
        uint16_t mss
        uint16_t mtu
        uint16_t addr_diff
        uint32_t src
        uint32_t dst
        uint16_t sport
        uint16_t dport
        uint32_t next_hop
        uint32_t last_seen
        uint32_t generation
        uint64_t session
        uint32_t super_src
        uint32_t super_dst
        uint16_t super_sport
        uint16_t super_dport

    struct m2m_edit:
        uint8_t role

    struct m2m_packet:
        uint32_t wire_len
        uint8_t hook
        uint8_t ttl

    struct m2m_rule:
        m2m_addr src_lo
        m2m_addr src_hi
        m2m_addr dst_lo
        m2m_addr dst_hi
        uint16_t sport_lo
        uint16_t sport_hi
        uint16_t dport_lo
        uint16_t dport_hi
        uint8_t proto_lo
        uint8_t proto_hi
        uint32_t policy

    struct m2m_config:
        pass

    struct m2m_splice:
        pass

    enum m2m_reason:
        M2M_REASONS

    enum m2m_verdict:
        pass

    enum m2m_end:
        pass

    enum m2m_applied:
        M2M_APPLIED
        M2M_NOT_OURS
        M2M_CUT_SHORT

    uint16_t m2m_swap16(uint16_t) nogil
    uint16_t m2m_key_tag(const m2m_key *) nogil
    uint32_t m2m_ticks_since(uint32_t, uint32_t) nogil
    void m2m_key_narrow(m2m_key4 *, const m2m_key *) nogil
    int m2m_addr_compare(const m2m_addr *, const m2m_addr *) nogil
    uint16_t m2m_csum_diff_addrs(uint32_t, uint32_t, uint32_t, uint32_t) nogil
    uint16_t m2m_csum_diff_ports(uint16_t, uint16_t, uint16_t, uint16_t) nogil
    uint16_t m2m_csum_apply(uint16_t, uint16_t) nogil
    int c_seq_after "m2m_seq_after" (uint32_t, uint32_t) nogil
    uint32_t c_seq_end "m2m_seq_end" (uint32_t, uint32_t, int, int) nogil
    void m2m_entry_seal(const m2m_key *, m2m_entry *) nogil
    int m2m_edit_of(m2m_edit *, const m2m_key *, const m2m_entry *) nogil
    m2m_verdict m2m_judge(const m2m_edit *, const m2m_packet *, uint32_t, m2m_reason *) nogil
    int m2m_rule_match(const m2m_rule *, const m2m_tuple *) nogil
    void m2m_partner_key(m2m_key *, const m2m_key *, const m2m_entry *) nogil
    m2m_end m2m_pair_end(
        const m2m_config *, uint8_t, const m2m_entry *, const m2m_entry *, uint32_t) nogil
    m2m_applied m2m_apply(const m2m_edit *, uint8_t, uint8_t *, size_t) nogil
    m2m_applied m2m_apply_splice(const m2m_splice *, uint8_t, uint8_t *, size_t) nogil
    void m2m_splice_add(m2m_splice *, const m2m_splice *) nogil
    uint16_t m2m_shift_window(uint16_t, int) nogil


REASONS = <int>M2M_REASONS
PROXY_MARK = <uint32_t>M2M_PROXY_MARK


cdef int fill(void *target, size_t size, bytes data, str what) except -1:
    """Copy a packed structure in; its length is all that can be wrong with it."""
    if <size_t>len(data) != size:
        raise ValueError(f"{what}: {len(data)} bytes, not {size}")
    memcpy(target, PyBytes_AS_STRING(data), size)
    return 0


cdef int fill_address(m2m_addr *target, bytes address) except -1:
    return fill(target, sizeof(m2m_addr), address, "an address")


def layout():
    result = {}
    for i in range(M2M_FIELD_COUNT):
        _, fields = result.setdefault(
            m2m_fields[i].structure.decode(), (m2m_fields[i].total, {}))
        fields[m2m_fields[i].field.decode()] = (m2m_fields[i].offset, m2m_fields[i].size)
    return result


def seq_after(uint32_t a, uint32_t b):
    return bool(c_seq_after(a, b))


def seq_end(uint32_t seq, uint32_t payload, bint syn, bint fin):
    return c_seq_end(seq, payload, syn, fin)


def address_compare(bytes a, bytes b):
    cdef m2m_addr first, second
    fill_address(&first, a)
    fill_address(&second, b)
    return m2m_addr_compare(&first, &second)


def csum_diff_addresses(bytes old_src, bytes new_src, bytes old_dst, bytes new_dst):
    cdef uint32_t address[4]
    for i, given in enumerate((old_src, new_src, old_dst, new_dst)):
        fill(&address[i], sizeof(uint32_t), given, "an IPv4 address")
    return m2m_swap16(m2m_csum_diff_addrs(address[0], address[1], address[2], address[3]))


def csum_diff_ports(
    uint16_t old_sport, uint16_t new_sport, uint16_t old_dport, uint16_t new_dport
):
    return m2m_swap16(m2m_csum_diff_ports(
        m2m_swap16(old_sport), m2m_swap16(new_sport),
        m2m_swap16(old_dport), m2m_swap16(new_dport)))


def csum_apply(uint16_t check, uint16_t difference):
    return m2m_swap16(m2m_csum_apply(m2m_swap16(check), m2m_swap16(difference)))


def key_tag(bytes key):
    cdef m2m_key k
    fill(&k, sizeof(k), key, "a key")
    return m2m_key_tag(&k)


def seal(bytes key, bytes entry):
    cdef m2m_key k
    cdef m2m_entry e
    fill(&k, sizeof(k), key, "a key")
    fill(&e, sizeof(e), entry, "an entry")
    m2m_entry_seal(&k, &e)
    return PyBytes_FromStringAndSize(<char *>&e, sizeof(e))


cdef int fill_flow(m2m_tuple *to, flow) except -1:
    """Addresses, ports and protocol of a :class:`~m2m.protocol.flow.Flow`; whether it is IPv4's."""
    proto, src, sport, dst, dport = flow
    fill_address(&to.src, src)
    fill_address(&to.dst, dst)
    to.sport, to.dport, to.proto = m2m_swap16(sport), m2m_swap16(dport), proto
    return is_v4(&to.src) and is_v4(&to.dst)


cdef int is_v4(const m2m_addr *address) noexcept:
    return not memcmp(address, V4_PREFIX, sizeof(V4_PREFIX))


cdef uint32_t v4(const m2m_addr *address) noexcept:
    cdef uint32_t found
    memcpy(&found, &address.byte[sizeof(V4_PREFIX)], sizeof(found))
    return found


def pack_key(uint8_t hook, flow):
    cdef m2m_key key
    memset(&key, 0, sizeof(key))
    fill_flow(&key.tuple, flow)
    key.tuple.hook = hook
    return PyBytes_FromStringAndSize(<char *>&key, sizeof(key))


def idle_ticks(list entries, uint32_t now):
    cdef m2m_entry e
    cdef bytes entry
    cdef list found = []
    for entry in entries:
        if entry is None:
            found.append(None)
            continue
        fill(&e, sizeof(e), entry, "an entry")
        found.append(m2m_ticks_since(e.last_seen, now) if e.session else None)
    return found


def narrow(bytes key):
    cdef m2m_key k
    cdef m2m_key4 n
    fill(&k, sizeof(k), key, "a key")
    if not (is_v4(&k.tuple.src) and is_v4(&k.tuple.dst)):
        return None
    m2m_key_narrow(&n, &k)
    return PyBytes_FromStringAndSize(<char *>&n, sizeof(n))


def pack_entry(entry, uint32_t now):
    cdef m2m_key key
    cdef m2m_entry e
    cdef m2m_tuple rewrite, sup
    cdef m2m_addr gateway
    cdef int all_v4
    (
        session, hook, match, rewrite_to, action, toward, position, supersession,
        mss, chain, generation, hop, splice,
    ) = entry
    memset(&key, 0, sizeof(key))
    memset(&e, 0, sizeof(e))
    all_v4 = fill_flow(&key.tuple, match)
    all_v4 &= fill_flow(&rewrite, rewrite_to)
    all_v4 &= fill_flow(&sup, supersession)
    if not all_v4:
        return None
    key.tuple.hook = hook
    e.chain = chain & 0xFFFF
    e.role = action | toward << 2 | position << 3
    if splice is not None:
        e.flags = M2M_SPLICED
    e.mss = mss
    if hop is not None:
        ifindex, address, mtu = hop
        fill_address(&gateway, address)
        e.ifindex, e.next_hop, e.mtu = ifindex, v4(&gateway), min(mtu, 0xFFFF)
    e.src, e.dst, e.sport, e.dport = v4(&rewrite.src), v4(&rewrite.dst), rewrite.sport, rewrite.dport
    e.last_seen, e.generation, e.session = now, generation, session
    e.super_src, e.super_dst = v4(&sup.src), v4(&sup.dst)
    e.super_sport, e.super_dport = sup.sport, sup.dport
    m2m_entry_seal(&key, &e)
    return (
        PyBytes_FromStringAndSize(<char *>&key, sizeof(key)),
        PyBytes_FromStringAndSize(<char *>&e, sizeof(e)),
    )


def partner_key(bytes key, bytes entry):
    cdef m2m_key k, partner
    cdef m2m_entry e
    memset(&partner, 0, sizeof(partner))
    fill(&k, sizeof(k), key, "a key")
    fill(&e, sizeof(e), entry, "an entry")
    m2m_partner_key(&partner, &k, &e)
    return PyBytes_FromStringAndSize(<char *>&partner, sizeof(partner))


def pair_end(bytes config, uint8_t proto, bytes entry, partner, uint32_t now):
    cdef m2m_config c
    cdef m2m_entry e, p
    fill(&c, sizeof(c), config, "a configuration")
    fill(&e, sizeof(e), entry, "an entry")
    if partner is None:
        return <int>m2m_pair_end(&c, proto, &e, NULL, now)
    fill(&p, sizeof(p), partner, "an entry")
    return <int>m2m_pair_end(&c, proto, &e, &p, now)


def shift_window(uint16_t window, int bits):
    return m2m_shift_window(window, bits)


def add_splice(bytes splice, bytes right):
    cdef m2m_splice total, more
    fill(&total, sizeof(total), splice, "a splice")
    fill(&more, sizeof(more), right, "a splice")
    m2m_splice_add(&total, &more)
    return PyBytes_FromStringAndSize(<char *>&total, sizeof(total))


def apply_splice(bytes splice, uint8_t toward, bytes packet):
    cdef m2m_splice s
    cdef bytearray copy = bytearray(packet)
    cdef uint8_t[::1] view = copy
    cdef m2m_applied done
    fill(&s, sizeof(s), splice, "a splice")
    if not copy:
        raise ValueError("an empty packet")
    done = m2m_apply_splice(&s, toward, &view[0], len(copy))
    if done == M2M_NOT_OURS:
        raise ValueError("not an IPv4 packet of a TCP connection that stands")
    if done == M2M_CUT_SHORT:
        raise ValueError("headers reach past the end of the packet")
    return bytes(copy)


cdef class Translation:
    """One entry under its key, ready to judge and to rewrite packets."""

    cdef m2m_key key
    cdef m2m_edit edit

    def __init__(self, bytes key, bytes entry):
        cdef m2m_entry e
        fill(&self.key, sizeof(self.key), key, "a key")
        fill(&e, sizeof(e), entry, "an entry")
        if not m2m_edit_of(&self.edit, &self.key, &e):
            raise ValueError("the entry is not sealed for this key")

    def judge(self, *, uint32_t wire_len, uint8_t ttl=64, uint32_t now=0):
        cdef m2m_packet packet
        cdef m2m_reason reason = M2M_REASONS
        packet.wire_len = wire_len
        packet.hook = self.key.tuple.hook
        packet.ttl = ttl
        verdict = <int>m2m_judge(&self.edit, &packet, now, &reason)
        return verdict, None if reason == M2M_REASONS else <int>reason

    def rewrite(self, bytes packet):
        cdef bytearray copy = bytearray(packet)
        cdef uint8_t[::1] view = copy
        cdef m2m_applied done
        if not copy:
            raise ValueError("an empty packet")
        done = m2m_apply(&self.edit, self.key.tuple.hook, &view[0], len(copy))
        if done == M2M_NOT_OURS:
            raise ValueError("not an IPv4 packet of TCP or UDP")
        if done == M2M_CUT_SHORT:
            raise ValueError("headers reach past the end of the packet")
        return bytes(copy)

    def time_rewrite(self, bytes packet, uint64_t rounds):
        cdef bytearray copy = bytearray(self.rewrite(packet))
        cdef uint8_t[::1] view = copy
        cdef size_t length = len(copy)
        cdef timespec start, end
        cdef uint64_t i
        with nogil:
            clock_gettime(CLOCK_MONOTONIC, &start)
            for i in range(rounds):
                m2m_apply(&self.edit, self.key.tuple.hook, &view[0], length)
            clock_gettime(CLOCK_MONOTONIC, &end)
        elapsed = (end.tv_sec - start.tv_sec) * 10**9 + (end.tv_nsec - start.tv_nsec)
        return elapsed / rounds


cdef class RuleTable:
    """A policy set's rules in the datapath's own form."""

    cdef m2m_rule *rules
    cdef size_t count

    def __cinit__(self, policy):
        cdef m2m_rule *rule
        self.count = len(policy.rules)
        self.rules = <m2m_rule *>PyMem_Malloc((self.count + 1) * sizeof(m2m_rule))
        if self.rules == NULL:
            raise MemoryError
        memset(self.rules, 0, self.count * sizeof(m2m_rule))
        rule = self.rules
        for flat in policy.rules:
            fill_address(&rule.src_lo, flat.src_lo)
            fill_address(&rule.src_hi, flat.src_hi)
            fill_address(&rule.dst_lo, flat.dst_lo)
            fill_address(&rule.dst_hi, flat.dst_hi)
            rule.sport_lo, rule.sport_hi = flat.sport_lo, flat.sport_hi
            rule.dport_lo, rule.dport_hi = flat.dport_lo, flat.dport_hi
            rule.proto_lo, rule.proto_hi = flat.proto_lo, flat.proto_hi
            rule.policy = flat.policy
            rule += 1

    def __dealloc__(self):
        PyMem_Free(self.rules)

    def __len__(self):
        return self.count

    def match(self, flow):
        cdef m2m_tuple tuple
        cdef size_t i
        fill(&tuple, sizeof(tuple), flow.pack(), "a flow")
        for i in range(self.count):
            if m2m_rule_match(&self.rules[i], &tuple):
                return self.rules[i].policy
        return None
