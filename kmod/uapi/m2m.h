/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * The interface of m2m.ko: generic netlink family "m2m", version 1.
 *
 * One agent for each network namespace. All commands need CAP_NET_ADMIN in the user namespace that
 * owns the network namespace of the socket; that namespace is the one they are about. Who sends
 * M2M_CMD_OPEN is its agent until its socket is closed: all other commands that change something
 * are refused to anybody else (EPERM; OPEN itself: EBUSY).
 *
 * Structures. Rows, keys and rules travel as the arrays of structures that all datapaths share
 * (kmod/core: struct m2m_key4, m2m_entry, m2m_splice, m2m_rule; M2M_LAYOUT_VERSION), in the host's byte order
 * unless they say otherwise. An array must have a whole number of elements. What the module can
 * know itself (tag, addr_diff, last_seen, counters, flags but M2M_SPLICED) is not believed, whatever is sent.
 *
 * All or nothing. A command either does all it is asked, or nothing, and then says what is wrong
 * in words and by the offset of the element that it is about (NLMSGERR_ATTR_MSG, _OFFS); only
 * M2M_CMD_SET_NOTES may have kept some of several. Attributes that a command does not know are
 * refused, as are attributes of a wrong size.
 *
 * M2M_CMD_OPEN		VERSION SESSIONS LINGER TCP_IDLE UDP_IDLE HOLD_PACKETS HOLD_TIME
 *			AWAY_AFTER PORT_LO PORT_HI [FORWARDED]
 *	Make the tables and hooks of this namespace, or take over those that are there, which keep
 *	their sizes if they carry sessions. FORWARDED: hold the first packets of what is forwarded,
 *	instead of what leaves the host's own sockets.
 * M2M_CMD_CLOSE	[KEEP]
 *	Let everything go that is held. KEEP: go on translating for the next agent. Without it all
 *	is taken out.
 * M2M_CMD_BEAT
 *	The agent is there. It counts as away when it has not said so for AWAY_AFTER ms, and as soon
 *	as its socket is closed.
 * M2M_CMD_SET_LINKS	LINKS
 *	Indexes of the interfaces on which packets are translated, as a whole. ENODEV names one that
 *	is not there.
 * M2M_CMD_SET_ADDRESSES	ADDRESSES
 *	The host's own addresses, as a whole; 16 zero octets stand for all that packets come to.
 * M2M_CMD_SET_RULES	GENERATION [RULES]...
 *	The policy, as a whole: the rules of all RULES in their order.
 * M2M_CMD_SET_ROWS	ROWS
 *	Install, in this order. A row with the same key is replaced; what is held for it goes first.
 *	ENOSPC: no room.
 * M2M_CMD_DEL_ROWS	KEYS
 *	What is held goes first. Unknown keys are ignored.
 * M2M_CMD_GET_ROWS	KEYS -> ROWS
 *	Those that are there. As a dump, without KEYS: every row of every session.
 * M2M_CMD_REDIRECT	ROWS -> RESULTS
 *	Rewrite and send as these rows say, each from one moment on; counters go on. ENOENT: there
 *	is no such row. EINVAL: session, direction, action or position differ.
 *	result.packets: counted by then.
 * M2M_CMD_HOLD		KEYS SERIAL [SUBSTREAM] -> RESULTS
 *	Packets wait. result.packets: counted by then; result.checkpoint, if has_checkpoint.
 *	ENOENT: no such row. EOPNOTSUPP: packets are not sent on here. EPROTONOSUPPORT: SUBSTREAM,
 *	and not TCP.
 * M2M_CMD_RESUME	KEYS -> RESULTS
 *	They go, and have left with the answer. result.packets: had been held.
 * M2M_CMD_WATCH_ACK	KEYS SERIAL NUMBER
 * M2M_CMD_WATCH_COUNT	KEYS SERIAL NUMBER
 *	Tell once (M2M_EVENT_ACKED, _REACHED), with this serial.
 * M2M_CMD_INHERIT	KEYS (two)
 *	What has been seen under the first counts as seen under the second.
 * M2M_CMD_RELEASE	KEYS (one) VERDICT
 *	First packets of a flow go: as its row says, past the chain, or not at all (enum
 *	m2m_release).
 * M2M_CMD_SET_NOTES	NOTES
 * M2M_CMD_DEL_NOTES	SESSIONS
 * M2M_CMD_GET_NOTES	-> NOTES, only as a dump
 * M2M_CMD_GET_REASONS	-> REASONS
 *
 * M2M_CMD_EVENT is what the module says to the multicast group "events" (CAP_NET_ADMIN): EVENT,
 * and of a flow that is held KEY and SERIAL (the same one if the same packets are told of again);
 * of a session that is over SESSION and END; else SESSION TOWARD KEY SERIAL. A listener that sets
 * NETLINK_BROADCAST_ERROR loses none: what finds no room in its socket is told again later.
 */
#ifndef _UAPI_M2M_H
#define _UAPI_M2M_H

#include <linux/types.h>

#define M2M_GENL_NAME "m2m"
#define M2M_GENL_VERSION 1
#define M2M_GENL_EVENTS "events"

/* The largest message: elements in one array, and what OPEN may ask for. */
#define M2M_MAX_ROWS 500
#define M2M_MAX_KEYS 2048
#define M2M_MAX_LINKS 4096
#define M2M_MAX_ADDRESSES 4095
#define M2M_MAX_RULES_EACH 800
#define M2M_MAX_NOTES 800
#define M2M_MAX_SESSIONS 8000000
#define M2M_MAX_HOLD_PACKETS 65536

#define M2M_NOTE_SIZE 72

enum m2m_cmd {
	M2M_CMD_UNSPEC,
	M2M_CMD_OPEN,
	M2M_CMD_CLOSE,
	M2M_CMD_BEAT,
	M2M_CMD_SET_LINKS,
	M2M_CMD_SET_ADDRESSES,
	M2M_CMD_SET_RULES,
	M2M_CMD_SET_ROWS,
	M2M_CMD_DEL_ROWS,
	M2M_CMD_GET_ROWS,
	M2M_CMD_REDIRECT,
	M2M_CMD_HOLD,
	M2M_CMD_RESUME,
	M2M_CMD_WATCH_ACK,
	M2M_CMD_WATCH_COUNT,
	M2M_CMD_INHERIT,
	M2M_CMD_RELEASE,
	M2M_CMD_SET_NOTES,
	M2M_CMD_DEL_NOTES,
	M2M_CMD_GET_NOTES,
	M2M_CMD_GET_REASONS,
	M2M_CMD_EVENT,
	__M2M_CMD_MAX,
};

enum m2m_attr {
	M2M_A_UNSPEC,
	M2M_A_PAD,
	M2M_A_VERSION,	    /* u32, M2M_LAYOUT_VERSION */
	M2M_A_SESSIONS_MAX, /* u32 */
	M2M_A_LINGER,	    /* u32, ticks of 2^20 ns; at most 2^31 - 1, as the other times */
	M2M_A_TCP_IDLE,	    /* u32, ticks */
	M2M_A_UDP_IDLE,	    /* u32, ticks */
	M2M_A_HOLD_PACKETS, /* u32: first packets at most; as many of live sessions */
	M2M_A_HOLD_TIME,    /* u32, ms: packets of a live session at most */
	M2M_A_AWAY_AFTER,   /* u32, ms */
	M2M_A_PORT_LO,	    /* u16, subsession ports, inclusive */
	M2M_A_PORT_HI,	    /* u16 */
	M2M_A_FORWARDED,    /* flag */
	M2M_A_KEEP,	    /* flag */
	M2M_A_LINKS,	    /* u32[] */
	M2M_A_ADDRESSES,    /* struct m2m_addr[] */
	M2M_A_GENERATION,   /* u32 */
	M2M_A_RULES,	    /* struct m2m_rule[] */
	M2M_A_KEYS,	    /* struct m2m_key4[] */
	M2M_A_ROWS,	    /* { struct m2m_key4; struct m2m_entry; struct m2m_splice; u32 0; }[] */
	M2M_A_RESULTS,	    /* struct m2m_result[] */
	M2M_A_SERIAL,	    /* u32 */
	M2M_A_NUMBER,	    /* u64; of an acknowledgement 32 bits count */
	M2M_A_SUBSTREAM,    /* flag */
	M2M_A_VERDICT,	    /* u8, enum m2m_release */
	M2M_A_NOTES,	    /* struct m2m_note[] */
	M2M_A_SESSIONS,	    /* u64[] */
	M2M_A_REASONS,	    /* u64[M2M_REASONS] */
	M2M_A_EVENT,	    /* u8, enum m2m_event */
	M2M_A_SESSION,	    /* u64 */
	M2M_A_TOWARD,	    /* u8, enum m2m_toward */
	M2M_A_KEY,	    /* struct m2m_key4 */
	M2M_A_END,	    /* u8, enum m2m_end */
	__M2M_A_MAX,
};

#define M2M_A_MAX (__M2M_A_MAX - 1)

enum m2m_event {
	M2M_EVENT_HELD = 1,	/* the first packet of a flow waits for RELEASE */
	M2M_EVENT_ENDED = 2,
	M2M_EVENT_OVERFLOW = 3, /* too many waited, or for too long: they have been let go */
	M2M_EVENT_ACKED = 4,
	M2M_EVENT_REACHED = 5,
};

enum m2m_release {
	M2M_RELEASE_STEER = 0,
	M2M_RELEASE_PASS = 1,
	M2M_RELEASE_DROP = 2,
};

struct m2m_result {
	__u64 packets;
	__u32 checkpoint;
	__u32 has_checkpoint;
};

struct m2m_note {
	__u64 session;
	__u8 octets[M2M_NOTE_SIZE];
};

#endif /* _UAPI_M2M_H */
