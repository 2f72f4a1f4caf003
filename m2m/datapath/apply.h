/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Applies an edit of kmod/core to a packet in ordinary memory: the user-space counterpart of what
 * tc programs do with their helpers. For tests, fuzzing and the cost bench.
 */
#ifndef M2M_DATAPATH_APPLY_H
#define M2M_DATAPATH_APPLY_H

#include <stddef.h>
#include <string.h>

#include "core/core.h"

enum m2m_applied {
	M2M_APPLIED = 0,
	M2M_NOT_OURS = 1,  /* not IPv4 with TCP or UDP */
	M2M_CUT_SHORT = 2, /* headers reach past the end of the packet */
};

/* Offsets into the headers (RFC 791, RFC 9293, RFC 768). */
#define M2M_IP_FRAGMENT 6
#define M2M_IP_TTL 8
#define M2M_IP_PROTO 9
#define M2M_IP_CHECK 10
#define M2M_IP_SRC 12
#define M2M_IP_DST 16
#define M2M_IP_MIN 20
#define M2M_TCP_FLAGS 13
#define M2M_TCP_WINDOW 14
#define M2M_TCP_CHECK 16
#define M2M_TCP_MIN 20
#define M2M_TCP_SYN 0x02
#define M2M_UDP_CHECK 6
#define M2M_UDP_MIN 8
#define M2M_OPTION_MSS 2

static inline u16 m2m_load16(const u8 *at)
{
	u16 value;

	memcpy(&value, at, sizeof(value));
	return value;
}

static inline void m2m_store16(u8 *at, u16 value)
{
	memcpy(at, &value, sizeof(value));
}

static inline void m2m_fix_check(u8 *check, u16 diff)
{
	m2m_store16(check, m2m_csum_apply(m2m_load16(check), diff));
}

static inline void m2m_fix_transport_check(const struct m2m_edit *edit, u8 proto, u8 *check)
{
	m2m_store16(check, m2m_edit_transport_check(edit, proto, m2m_load16(check), 0));
}

static inline void m2m_clamp_mss(u8 *tcp, size_t header, u16 limit)
{
	size_t at = M2M_TCP_MIN;

	while (at < header && tcp[at] != M2M_OPTION_EOL) {
		u16 from, to = m2m_swap16(limit);

		if (tcp[at] == M2M_OPTION_NOP) {
			at++;
			continue;
		}
		if (at + 2 > header || tcp[at + 1] < 2 || at + tcp[at + 1] > header)
			return;
		if (tcp[at] != M2M_OPTION_MSS || tcp[at + 1] != 4) {
			at += tcp[at + 1];
			continue;
		}
		from = m2m_load16(tcp + at + 2);
		if (m2m_swap16(from) <= limit)
			return;
		m2m_store16(tcp + at + 2, to);
		/* at an odd offset its bytes lie in the other halves of the words summed */
		if (at & 1)
			m2m_fix_check(tcp + M2M_TCP_CHECK,
				      m2m_csum_diff16(__builtin_bswap16(from),
						      __builtin_bswap16(to)));
		else
			m2m_fix_check(tcp + M2M_TCP_CHECK, m2m_csum_diff16(from, to));
		return;
	}
}

static inline enum m2m_applied m2m_apply_ports(const struct m2m_edit *edit, u8 proto, u8 *l4,
					       size_t room)
{
	if (proto == M2M_PROTO_UDP) {
		if (room < M2M_UDP_MIN)
			return M2M_CUT_SHORT;
		m2m_fix_transport_check(edit, proto, l4 + M2M_UDP_CHECK);
	} else {
		size_t header;

		if (room < M2M_TCP_MIN)
			return M2M_CUT_SHORT;
		header = (size_t)(l4[12] >> 4) * 4;
		if (header < M2M_TCP_MIN || header > room)
			return M2M_CUT_SHORT;
		m2m_fix_transport_check(edit, proto, l4 + M2M_TCP_CHECK);
		if (edit->mss && (l4[M2M_TCP_FLAGS] & M2M_TCP_SYN))
			m2m_clamp_mss(l4, header, edit->mss);
	}
	m2m_store16(l4, edit->sport);
	m2m_store16(l4 + 2, edit->dport);
	return M2M_APPLIED;
}

/*
 * Rewrite one IPv4 packet in place; unchanged when the answer is not M2M_APPLIED. Later fragments
 * carry no ports: only their addresses change.
 */
static inline enum m2m_applied m2m_apply(const struct m2m_edit *edit, u8 hook, u8 *packet,
					 size_t length)
{
	size_t header;
	u8 proto;
	int hop;

	if (length < M2M_IP_MIN)
		return M2M_CUT_SHORT;
	if (packet[0] >> 4 != 4)
		return M2M_NOT_OURS;
	header = (size_t)(packet[0] & 15) * 4;
	if (header < M2M_IP_MIN || header > length)
		return M2M_CUT_SHORT;
	proto = packet[M2M_IP_PROTO];
	if (proto != M2M_PROTO_TCP && proto != M2M_PROTO_UDP)
		return M2M_NOT_OURS;
	if (!(m2m_swap16(m2m_load16(packet + M2M_IP_FRAGMENT)) & 0x1fff)) {
		enum m2m_applied done =
			m2m_apply_ports(edit, proto, packet + header, length - header);

		if (done != M2M_APPLIED)
			return done;
	}
	hop = hook == M2M_HOOK_IN && M2M_ROLE_ACTION(edit->role) == M2M_SEND;
	memcpy(packet + M2M_IP_SRC, &edit->src, 4);
	memcpy(packet + M2M_IP_DST, &edit->dst, 4);
	m2m_store16(packet + M2M_IP_CHECK,
		    m2m_edit_ip_check(edit, m2m_load16(packet + M2M_IP_CHECK), hop));
	packet[M2M_IP_TTL] -= hop;
	return M2M_APPLIED;
}

/*
 * Carry an IPv4 TCP packet through a splice, in place; unchanged when the answer is not
 * M2M_APPLIED. A later fragment has no numbers, and stays as it is.
 */
static inline enum m2m_applied m2m_apply_splice(const struct m2m_splice *splice, u8 toward,
						u8 *packet, size_t length)
{
	size_t ip, header;
	u8 *tcp;

	if (length < M2M_IP_MIN)
		return M2M_CUT_SHORT;
	ip = (size_t)(packet[0] & 15) * 4;
	if (packet[0] >> 4 != 4 || packet[M2M_IP_PROTO] != M2M_PROTO_TCP)
		return M2M_NOT_OURS;
	if (ip < M2M_IP_MIN || ip > length)
		return M2M_CUT_SHORT;
	if (m2m_swap16(m2m_load16(packet + M2M_IP_FRAGMENT)) & 0x1fff)
		return M2M_APPLIED;
	if (length - ip < M2M_TCP_MIN)
		return M2M_CUT_SHORT;
	tcp = packet + ip;
	header = (size_t)(tcp[12] >> 4) * 4;
	if (header < M2M_TCP_MIN || header > length - ip)
		return M2M_CUT_SHORT;
	if (tcp[M2M_TCP_FLAGS] & M2M_TCP_SYN)
		return M2M_NOT_OURS;
	m2m_fix_check(tcp + M2M_TCP_CHECK, m2m_carry_header(splice, toward, tcp, (u32)header));
	return M2M_APPLIED;
}

#endif /* M2M_DATAPATH_APPLY_H */
