// SPDX-License-Identifier: GPL-2.0
/*
 * The table of a proxy's sockets under a fuzzer: sockets are accepted, continued, duplicated, closed
 * and closed unseen in any order, beside a model that knows what must be the case.
 */
#include <assert.h>
#include <stddef.h>

#define M2M_TOKENS 8u
#include "table.h"

#define DESCRIPTORS 12 /* the last ones are in another part of the table */

static int number_of(unsigned int at)
{
	return at < DESCRIPTORS / 2 ? (int)at : (int)(M2M_TABLE_PART + at);
}

/* The model: which socket a descriptor is of; 0: of none. And of which each is a continuation. */
static uint64_t socket_of[DESCRIPTORS];
static uint64_t continues[256];
static uint16_t token_of[256];
static uint64_t last;

static void destination(uint8_t *addr, uint64_t cookie)
{
	memset(addr, 0, 16);
	addr[15] = (uint8_t)(cookie % 2); /* two servers */
}

static unsigned int descriptors_of(uint64_t cookie)
{
	unsigned int at, found = 0;

	for (at = 0; at < DESCRIPTORS; at++)
		found += socket_of[at] == cookie;
	return found;
}

static int is_in_use(uint64_t cookie)
{
	unsigned int at;

	if (descriptors_of(cookie))
		return 1;
	for (at = 0; at < DESCRIPTORS; at++)
		if (socket_of[at] && continues[socket_of[at]] == cookie)
			return 1;
	return 0;
}

static void check(void)
{
	unsigned int at;

	for (at = 0; at < DESCRIPTORS; at++) {
		struct m2m_socket *found = m2m_table_at(number_of(at));

		assert(!found == !socket_of[at]);
		if (!found)
			continue;
		assert(found->cookie == socket_of[at]);
		assert(found->descriptors == descriptors_of(found->cookie));
		assert(!found->of == !continues[found->cookie]);
		if (found->of)
			assert(found->of->cookie == continues[found->cookie] && found->of->outgoing);
	}
	for (uint64_t cookie = 1; cookie <= last; cookie++) {
		uint8_t addr[16];

		destination(addr, cookie);
		if (token_of[cookie] && is_in_use(cookie))
			assert(m2m_token_find(addr, token_of[cookie])->cookie == cookie);
	}
}

static void forget_all(void)
{
	unsigned int at;

	for (at = 0; at < DESCRIPTORS; at++) {
		m2m_table_drop(number_of(at));
		socket_of[at] = 0;
	}
	for (at = 0; at < M2M_TOKENS; at++) {
		uint8_t any[16] = {0};

		m2m_token_is_free(&m2m_table.tokens[at], any);
		assert(!m2m_table.tokens[at]);
	}
	memset(continues, 0, sizeof(continues));
	memset(token_of, 0, sizeof(token_of));
	last = 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t place;

	for (place = 0; place + 1 < size && last < 200; place += 2) {
		unsigned int at = (data[place] >> 3) % DESCRIPTORS, other = data[place + 1] % DESCRIPTORS;
		struct m2m_socket *known = m2m_table_at(number_of(at));
		struct m2m_flow flow = {.dport = htons(80)};

		switch (data[place] & 7) {
		case 0:
		case 1: /* accepted; what had the number may have been closed unseen */
			destination(flow.dst, ++last);
			assert(m2m_table_accept(number_of(at), last, &flow));
			socket_of[at] = last;
			break;
		case 2: /* the token of one, and another one continues it */
			if (!known || known->of || at == other)
				break;
			destination(flow.dst, known->cookie);
			if (m2m_token_give(known)) {
				token_of[known->cookie] = known->token;
				assert(m2m_token_find(flow.dst, known->token) == known);
			}
			continues[++last] = known->cookie;
			assert(m2m_table_continue(number_of(other), last, known, 1, &flow));
			socket_of[other] = last;
			break;
		case 3: /* a token alone */
			if (known && !known->of && m2m_token_give(known))
				token_of[known->cookie] = known->token;
			break;
		case 4: /* a late connect() to a token */
			destination(flow.dst, other);
			known = m2m_token_find(flow.dst, htons((uint16_t)(M2M_TOKEN_FIRST + other)));
			if (!known)
				break;
			continues[++last] = known->cookie;
			assert(m2m_table_continue(number_of(at), last, known, 1, &flow));
			socket_of[at] = last;
			break;
		case 5: /* duplicated */
			if (!known)
				break;
			assert(m2m_table_put(number_of(other), known));
			socket_of[other] = socket_of[at];
			break;
		default:
			m2m_table_drop(number_of(at));
			socket_of[at] = 0;
		}
		check();
	}
	forget_all();
	return 0;
}
