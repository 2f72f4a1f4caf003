/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A captured frame gets the supersession's headers, in place and within the bytes captured: what
 * the network function would have seen if there were no subsessions.
 *
 * Addresses and ports change, and the checksums by as much: what was right stays right, what was
 * wrong stays wrong, what was not captured does not matter. Everything else (TTL, IP id, MAC
 * addresses, lengths) is as it was on the wire.
 *
 * Fragments: only the first one has ports. It leaves a note under the datagram's id, by which
 * the later ones find the same name; of them only the addresses change. A later fragment that
 * was captured before the first one, or of which another 255 datagrams have begun since, stays as
 * it is and is counted.
 *
 * ICMP errors: the packet quoted inside is restored as if it had been captured itself; the
 * error's own addresses, where they are an end of the quoted packet, become the same end's.
 */
#ifndef M2M_PCAP_RESTORE_H
#define M2M_PCAP_RESTORE_H

#include "apply.h"
#include "mapping.h"

/* Link types, as pcap numbers them (DLT_...). */
enum m2m_link {
	M2M_LINK_ETHERNET = 1,
	M2M_LINK_RAW = 12,
	M2M_LINK_SLL = 113,
	M2M_LINK_IPV4 = 228,
	M2M_LINK_SLL2 = 276,
};

enum m2m_restored {
	M2M_AS_IT_WAS = 0,
	M2M_RESTORED = 1,
	M2M_RESTORED_AGAIN = 2, /* this host has received the same packet, as another tuple */
};

#define M2M_PARTIAL_CHECK 1u /* the transport checksum is unfinished (TP_STATUS_CSUMNOTREADY) */
#define M2M_UNTIMED 2u	     /* when is of another clock than the mapping's */

#define M2M_DATAGRAMS 256u
#define M2M_DATAGRAM_MS 30000u

/* Under which name the fragments of one datagram go. */
struct m2m_datagram {
	__be32 src;
	__be32 dst;
	__be16 id;
	u8 proto;
	u8 used;
	u32 when;
	struct m2m_name name;
};

/* A frame to be restored soon, and the first cell that its tuple can lie in. */
struct m2m_soon {
	const u8 *bytes; /* NULL: there is none, or its tuple is no subsession's */
	u32 home;
};

#define M2M_HOME_UNKNOWN (~0u)

struct m2m_restorer {
	struct m2m_map map;
	struct m2m_soon next; /* as m2m_restore_ahead has found it */
	u64 restored;
	u64 fragments; /* later ones whose first was not seen */
	struct m2m_datagram datagrams[M2M_DATAGRAMS];
};

#define M2M_PROTO_ICMP 1
#define M2M_ICMP_CHECK 2
#define M2M_ICMP_HEADER 8
#define M2M_IP_ID 4
#define M2M_IP_MORE 0x2000
#define M2M_IP_OFFSET 0x1fff

m2m_inline u32 m2m_load32(const u8 *at)
{
	u32 value;

	memcpy(&value, at, sizeof(value));
	return value;
}

/* Where the IPv4 header begins; 0 bytes of room when there is none. */
m2m_inline u8 *m2m_network(unsigned int link, u8 *bytes, size_t *room)
{
	size_t at;
	u16 type;

	switch (link) {
	case M2M_LINK_RAW:
	case M2M_LINK_IPV4:
		return bytes;
	case M2M_LINK_SLL:
		at = 14;
		break;
	case M2M_LINK_SLL2:
		at = 0;
		break;
	case M2M_LINK_ETHERNET:
		at = 12;
		break;
	default:
		*room = 0;
		return bytes;
	}
	if (*room < at + 2) {
		*room = 0;
		return bytes;
	}
	type = m2m_swap16(m2m_load16(bytes + at));
	at = link == M2M_LINK_SLL2 ? 20 : at + 2;
	while (type == 0x8100 || type == 0x88a8 || type == 0x9100) {
		if (*room < at + 4)
			break;
		type = m2m_swap16(m2m_load16(bytes + at + 2));
		at += 4;
	}
	*room = type == 0x0800 && *room > at ? *room - at : 0;
	/* in cooked captures Linux names the protocol behind all tags, but leaves inner ones there */
	if (link != M2M_LINK_ETHERNET && *room > 4 && bytes[at] >> 4 != 4 &&
	    m2m_swap16(m2m_load16(bytes + at + 2)) == 0x0800) {
		at += 4;
		*room -= 4;
	}
	return bytes + at;
}

m2m_inline struct m2m_datagram *m2m_datagram_of(struct m2m_restorer *restorer, const u8 *ip)
{
	u32 mix = m2m_load32(ip + M2M_IP_SRC) * 0x9e3779b1u ^
		  m2m_load32(ip + M2M_IP_DST) * 0x85ebca77u ^
		  ((u32)m2m_load16(ip + M2M_IP_ID) << 8 | ip[M2M_IP_PROTO]) * 0xc2b2ae3du;

	return &restorer->datagrams[(mix ^ mix >> 16) >> 8 & (M2M_DATAGRAMS - 1)];
}

/* A datagram begins; no name: it is of no session, whatever had its id before. */
static inline void m2m_note_datagram(struct m2m_restorer *restorer, const u8 *ip, u32 when,
				     const struct m2m_name *name)
{
	struct m2m_datagram *datagram = m2m_datagram_of(restorer, ip);

	datagram->used = name != NULL;
	if (!name)
		return;
	datagram->src = m2m_load32(ip + M2M_IP_SRC);
	datagram->dst = m2m_load32(ip + M2M_IP_DST);
	datagram->id = m2m_load16(ip + M2M_IP_ID);
	datagram->proto = ip[M2M_IP_PROTO];
	datagram->when = when;
	datagram->name = *name;
}

static inline int m2m_find_datagram(struct m2m_restorer *restorer, const u8 *ip, u32 when,
				    struct m2m_name *name)
{
	const struct m2m_datagram *datagram = m2m_datagram_of(restorer, ip);

	if (!datagram->used || datagram->src != m2m_load32(ip + M2M_IP_SRC) ||
	    datagram->dst != m2m_load32(ip + M2M_IP_DST) ||
	    datagram->id != m2m_load16(ip + M2M_IP_ID) ||
	    datagram->proto != ip[M2M_IP_PROTO] || when - datagram->when > M2M_DATAGRAM_MS)
		return 0;
	*name = datagram->name;
	return 1;
}

/* What changes at an IPv4 header when it gets this name; ports are those of the transport. */
m2m_inline void m2m_edit_by(struct m2m_edit *edit, const struct m2m_name *name, const u8 *ip,
			    __be16 sport, __be16 dport)
{
	edit->src = name->src;
	edit->dst = name->dst;
	edit->sport = name->sport;
	edit->dport = name->dport;
	edit->addr_diff = m2m_csum_diff_addrs(m2m_load32(ip + M2M_IP_SRC), name->src,
					      m2m_load32(ip + M2M_IP_DST), name->dst);
	edit->port_diff = m2m_csum_diff_ports(sport, name->sport, dport, name->dport);
}

m2m_inline void m2m_put_addresses(const struct m2m_edit *edit, u8 *ip)
{
	memcpy(ip + M2M_IP_SRC, &edit->src, 4);
	memcpy(ip + M2M_IP_DST, &edit->dst, 4);
	m2m_store16(ip + M2M_IP_CHECK,
		    m2m_edit_ip_check(edit, m2m_load16(ip + M2M_IP_CHECK), 0));
}

/*
 * Ports and, where it was captured, checksum of the transport header. *diff becomes by how much
 * the sum of its bytes has changed.
 */
m2m_inline void m2m_put_ports(const struct m2m_edit *edit, u8 proto, u8 *l4, size_t room,
			      int partial, u16 *diff)
{
	size_t at = proto == M2M_PROTO_TCP ? M2M_TCP_CHECK : M2M_UDP_CHECK;
	u16 check_diff = 0;

	if (room >= at + 2) {
		u16 before = m2m_load16(l4 + at);
		u16 after = m2m_edit_transport_check(edit, proto, before, partial);

		m2m_store16(l4 + at, after);
		check_diff = m2m_csum_diff16(before, after);
	}
	m2m_store16(l4, edit->sport);
	m2m_store16(l4 + 2, edit->dport);
	*diff = m2m_csum_fold((u64)edit->port_diff + check_diff);
}

m2m_inline int m2m_find_ports(const struct m2m_restorer *restorer, const u8 *ip, const u8 *l4,
			      u32 home, u32 when, unsigned int flags, struct m2m_name *name)
{
	int timed = !(flags & M2M_UNTIMED);
	struct m2m_key4 key = {
		.src = m2m_load32(ip + M2M_IP_SRC),
		.dst = m2m_load32(ip + M2M_IP_DST),
		.sport = m2m_load16(l4),
		.dport = m2m_load16(l4 + 2),
		.proto = ip[M2M_IP_PROTO],
	};

	if (home != M2M_HOME_UNKNOWN)
		return m2m_map_find_from(&restorer->map, &key, home, when, timed, name);
	return m2m_map_find(&restorer->map, &key, when, timed, name);
}

/* The length of an IPv4 header that has been captured whole; 0 when it has not. */
m2m_inline size_t m2m_ip_header(const u8 *ip, size_t room)
{
	size_t header;

	if (room < M2M_IP_MIN || ip[0] >> 4 != 4)
		return 0;
	header = (size_t)(ip[0] & 15) * 4;
	return header < M2M_IP_MIN || header > room ? 0 : header;
}

/* One end of an ICMP error's own addresses, if it is an end of the packet it is about. */
m2m_inline void m2m_put_outer(u8 *ip, size_t at, __be32 from, __be32 to)
{
	if (m2m_load32(ip + at) != from)
		return;
	memcpy(ip + at, &to, 4);
	m2m_fix_check(ip + M2M_IP_CHECK, m2m_csum_diff_addrs(from, to, 0, 0));
}

static inline enum m2m_restored m2m_restore_error(struct m2m_restorer *restorer, u8 *ip,
						  size_t header, size_t room, u32 when,
						  unsigned int flags)
{
	u8 *icmp = ip + header, *quoted = icmp + M2M_ICMP_HEADER, *l4;
	size_t left, inner;
	struct m2m_name name;
	struct m2m_edit edit;
	__be32 src, dst;
	u16 diff = 0;
	u8 proto;

	if (room < header + M2M_ICMP_HEADER + M2M_IP_MIN)
		return M2M_AS_IT_WAS;
	/* unreachable, quench, redirect, time exceeded, parameter problem (RFC 792) */
	if (icmp[0] != 3 && icmp[0] != 4 && icmp[0] != 5 && icmp[0] != 11 && icmp[0] != 12)
		return M2M_AS_IT_WAS;
	left = room - header - M2M_ICMP_HEADER;
	inner = m2m_ip_header(quoted, left);
	if (!inner)
		return M2M_AS_IT_WAS;
	proto = quoted[M2M_IP_PROTO];
	if (proto != M2M_PROTO_TCP && proto != M2M_PROTO_UDP)
		return M2M_AS_IT_WAS;
	l4 = quoted + inner;
	left -= inner;
	src = m2m_load32(quoted + M2M_IP_SRC);
	dst = m2m_load32(quoted + M2M_IP_DST);
	if (m2m_swap16(m2m_load16(quoted + M2M_IP_FRAGMENT)) & M2M_IP_OFFSET) {
		if (!m2m_find_datagram(restorer, quoted, when, &name))
			return M2M_AS_IT_WAS;
		m2m_edit_by(&edit, &name, quoted, 0, 0);
	} else {
		if (left < 4 || !m2m_find_ports(restorer, quoted, l4, M2M_HOME_UNKNOWN, when, flags,
						&name))
			return M2M_AS_IT_WAS;
		m2m_edit_by(&edit, &name, quoted, m2m_load16(l4), m2m_load16(l4 + 2));
		m2m_put_ports(&edit, proto, l4, left, 0, &diff);
	}
	/* An IP header sums to the same after as before: its own checksum sees to that. */
	m2m_put_addresses(&edit, quoted);
	m2m_fix_check(icmp + M2M_ICMP_CHECK, diff);
	m2m_put_outer(ip, M2M_IP_DST, src, name.src);
	m2m_put_outer(ip, M2M_IP_SRC, dst, name.dst);
	return name.again ? M2M_RESTORED_AGAIN : M2M_RESTORED;
}

/* A later fragment: only the addresses change, as those of the first one did. */
static inline enum m2m_restored m2m_restore_fragment(struct m2m_restorer *restorer, u8 *ip, u32 when)
{
	struct m2m_name name;
	struct m2m_edit edit;

	if (!m2m_find_datagram(restorer, ip, when, &name)) {
		restorer->fragments++;
		return M2M_AS_IT_WAS;
	}
	m2m_edit_by(&edit, &name, ip, 0, 0);
	m2m_put_addresses(&edit, ip);
	restorer->restored++;
	return name.again ? M2M_RESTORED_AGAIN : M2M_RESTORED;
}

static inline enum m2m_restored m2m_restore_ip(struct m2m_restorer *restorer, u8 *ip, size_t room,
					       u32 home, u32 when, unsigned int flags)
{
	size_t header = m2m_ip_header(ip, room);
	struct m2m_name name = {0};
	struct m2m_edit edit;
	u16 fragment, ignored;
	u8 proto, *l4;
	int found;

	if (!header)
		return M2M_AS_IT_WAS;
	proto = ip[M2M_IP_PROTO];
	fragment = m2m_swap16(m2m_load16(ip + M2M_IP_FRAGMENT));
	if (proto != M2M_PROTO_TCP && proto != M2M_PROTO_UDP) {
		if (proto == M2M_PROTO_ICMP && !(fragment & M2M_IP_OFFSET))
			return m2m_restore_error(restorer, ip, header, room, when, flags);
		return M2M_AS_IT_WAS;
	}
	if (fragment & M2M_IP_OFFSET)
		return m2m_restore_fragment(restorer, ip, when);
	l4 = ip + header;
	found = room >= header + 4 && m2m_find_ports(restorer, ip, l4, home, when, flags, &name);
	if (fragment & M2M_IP_MORE) {
		struct m2m_name noted = name; /* so that name itself need not be in memory */

		m2m_note_datagram(restorer, ip, when, found ? &noted : NULL);
	}
	if (!found)
		return M2M_AS_IT_WAS;
	m2m_edit_by(&edit, &name, ip, m2m_load16(l4), m2m_load16(l4 + 2));
	m2m_put_ports(&edit, proto, l4, room - header, flags & M2M_PARTIAL_CHECK, &ignored);
	m2m_put_addresses(&edit, ip);
	restorer->restored++;
	return name.again ? M2M_RESTORED_AGAIN : M2M_RESTORED;
}

/*
 * Restore a frame of captured bytes that begins with a header of this link type; when: its time
 * stamp in ms. Nothing outside the captured bytes is read or written.
 */
static inline enum m2m_restored m2m_restore(struct m2m_restorer *restorer, unsigned int link,
					    u8 *bytes, size_t captured, u32 when,
					    unsigned int flags)
{
	u32 home = restorer->next.bytes == bytes ? restorer->next.home : M2M_HOME_UNKNOWN;
	size_t room = captured;
	u8 *ip = m2m_network(link, bytes, &room);

	return room ? m2m_restore_ip(restorer, ip, room, home, when, flags) : M2M_AS_IT_WAS;
}

/*
 * Find out where the name of a frame will be looked for. soon is given to the restorer, as its
 * next, when that frame is the next one; until then nothing may change the frame.
 */
m2m_inline void m2m_restore_ahead(const struct m2m_restorer *restorer, struct m2m_soon *soon,
				  unsigned int link, const u8 *bytes, size_t captured)
{
	size_t room = captured, header;
	const u8 *ip = m2m_network(link, (u8 *)bytes, &room);
	struct m2m_key4 key;

	soon->bytes = NULL;
	header = m2m_ip_header(ip, room);
	if (!header || room < header + 4)
		return;
	key.src = m2m_load32(ip + M2M_IP_SRC);
	key.dst = m2m_load32(ip + M2M_IP_DST);
	key.sport = m2m_load16(ip + header);
	key.dport = m2m_load16(ip + header + 2);
	key.proto = ip[M2M_IP_PROTO];
	if (!m2m_map_may_have(&restorer->map, key.sport, key.dport))
		return;
	soon->bytes = bytes;
	soon->home = m2m_map_home(&restorer->map, &key);
}

/*
 * Have that place fetched from memory: with many sessions waiting for it is what a look-up costs.
 * To be called while there is something else to do.
 */
m2m_inline void m2m_restore_fetch(const struct m2m_restorer *restorer, const struct m2m_soon *soon)
{
	if (soon->bytes)
		__builtin_prefetch(&restorer->map.cells[soon->home]);
}

#endif /* M2M_PCAP_RESTORE_H */
