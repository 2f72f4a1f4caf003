/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What a proxy's process and its host's agent say to each other about the sockets of the proxy.
 *
 * A Unix SOCK_SEQPACKET socket, RUN_DIR/NAME.proxy, on which the agent listens; a process may have
 * several connections. Each message is one struct m2m_say, in either direction. The process asks
 * and the agent answers with the same number; on one connection the next question comes after the
 * answer to the last, or not at all: a process that has waited too long (M2M_SAY_PATIENCE_MS) closes
 * the connection, and what it had asked by CONNECTING is as if it were revoked. It goes on as
 * without M2M then.
 *
 *   question     session  flow                              answer    session  flow
 *   ACCEPTED     -        peer -> destination               FOUND     its id   the supersession
 *                                                           UNKNOWN   -        -
 *   CONNECTING   its id   outgoing source -> destination    READY     its id   as asked
 *                                                           UNKNOWN   its id   as asked
 *                                                           REFUSED   its id   as asked
 *   REVOKED      its id   outgoing source -> destination    GONE      its id   as asked
 *   LEAVE        -        -                                 LEAVING   -        -
 *                                                           STAYS     -        -
 *   PASSED       -        -                                 LEFT      -        -
 *                                                           MORE      -        -
 *                                                           STAYS     -        -
 *
 * ACCEPTED: a connection was accepted from peer. The destination is the one that its client meant,
 * where the kernel knows it (SO_ORIGINAL_DST), else what getsockname() says. It may be asked more
 * than once. UNKNOWN: no session of ours; the proxy goes on as without M2M.
 *
 * CONNECTING: the proxy is about to continue that session from a socket that is bound to the
 * source by now. After READY its SYN may leave; after UNKNOWN it connects as without M2M; after
 * REFUSED, which a policy that fails closed wants, it does not connect.
 *
 * REVOKED: the connection that was announced has failed, or was given up before it stood.
 * One that stood ends like any session, by what the datapath sees.
 *
 * LEAVE (docs/splicing.md), with two descriptors beside it (SCM_RIGHTS), of the connection that was accepted and
 * of the one that continues it: the proxy only copies between them from now on, and would leave. After
 * LEAVING the kernel soon holds what comes; the proxy reads and passes on what there is, and says PASSED, on
 * the same connection to the agent, when it has nothing in its own hands and finds nothing to be read. After
 * MORE there is something to be read again. After LEFT both connections are gone, and the descriptors are to be closed;
 * after STAYS, or without an answer, it goes on as before. It does not touch the two between PASSED and
 * the answer. A process that has thought better of it closes the connection to the agent.
 */
#ifndef M2M_SOCKETS_WIRE_H
#define M2M_SOCKETS_WIRE_H

#include <stdint.h>

#define M2M_SAY_MAGIC 0x014d324du /* changes with the format */
#define M2M_SAY_TEXT 64u
#define M2M_SAY_PATIENCE_MS 2000 /* for an answer; an agent that is busy takes its time */

enum m2m_say_kind {
	M2M_SAY_ACCEPTED = 1,
	M2M_SAY_CONNECTING = 2,
	M2M_SAY_REVOKED = 3,
	M2M_SAY_LEAVE = 4,
	M2M_SAY_PASSED = 5,
	M2M_SAY_FOUND = 16,
	M2M_SAY_UNKNOWN = 17,
	M2M_SAY_READY = 18,
	M2M_SAY_REFUSED = 19,
	M2M_SAY_GONE = 20,
	M2M_SAY_LEAVING = 21,
	M2M_SAY_STAYS = 22,
	M2M_SAY_MORE = 23,
	M2M_SAY_LEFT = 24,
};

/* As Flow.pack() and struct m2m_tuple: addresses of IPv4 mapped into ::ffff:0:0/96. */
struct m2m_flow {
	uint8_t src[16];
	uint8_t dst[16];
	uint16_t sport; /* network order */
	uint16_t dport;
	uint8_t proto;
	uint8_t zero[3];
};

/* Numbers are in the machine's order. What a message has nothing to say in is zero. */
struct m2m_say {
	uint32_t magic;
	uint32_t kind;
	uint32_t number;
	uint32_t zero;
	uint64_t session;
	struct m2m_flow flow;
	char text[M2M_SAY_TEXT]; /* why not, in UNKNOWN, REFUSED and STAYS; ends with a zero */
};

_Static_assert(sizeof(struct m2m_flow) == 40, "Flow.pack()");
_Static_assert(sizeof(struct m2m_say) == 128, "no padding");

#endif /* M2M_SOCKETS_WIRE_H */
