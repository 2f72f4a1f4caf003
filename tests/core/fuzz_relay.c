// SPDX-License-Identifier: GPL-2.0
/*
 * libFuzzer target: any bytes in the four streams of a relay, in any order of calls, under ASan and
 * UBSan. However they are cut, the same becomes of them, and what is found adds up.
 *
 * Input: for each call an octet that says where and how much, and that much.
 */
#define _GNU_SOURCE
#include <assert.h>
#include <stdlib.h>

#include "relay.h"

struct call {
	int is_server, is_read;
	const char *data;
	size_t size;
};

static size_t next(const uint8_t *data, size_t size, struct call *call)
{
	static const uint16_t sizes[] = {1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 1, 2, 4000};
	size_t some = sizes[data[0] >> 2 & 15];

	call->is_server = data[0] & 1;
	call->is_read = data[0] >> 1 & 1;
	call->size = some < size - 1 ? some : size - 1;
	call->data = (const char *)data + 1;
	return call->size + 1;
}

/* In a place of its own, so that one octet too far is seen. */
static void feed(struct m2m_streams *all, const struct call *call, size_t once)
{
	size_t at, some;

	for (at = 0; at < call->size; at += some) {
		char *copy;

		some = call->size - at < once ? call->size - at : once;
		copy = malloc(some);
		memcpy(copy, call->data + at, some);
		m2m_streams_feed(all, call->is_server, call->is_read, copy, some);
		free(copy);
	}
}

static void check(const struct m2m_http *one)
{
	assert(one->state <= M2M_HTTP_LOST);
	assert(one->done <= one->begun);
	assert(one->begun - one->done <= 1 || one->state == M2M_HTTP_LOST);
	assert(one->state == M2M_HTTP_COPIED || one->body <= one->fed);
	if (one->state == M2M_HTTP_BODY)
		assert(one->left && one->body + one->left == one->length);
	if (one->state == M2M_HTTP_CHUNK)
		assert(one->left);
}

static int same(const struct m2m_http *one, const struct m2m_http *other)
{
	return one->fed == other->fed && one->body == other->body && one->state == other->state &&
	       one->begun == other->begun && one->done == other->done &&
	       one->length == other->length && one->is_uncacheable == other->is_uncacheable;
}

static void compare(const struct m2m_streams *one, const struct m2m_streams *other)
{
	assert(same(&one->asks, &other->asks));
	assert(same(&one->sent, &other->sent));
	assert(same(&one->from, &other->from));
	assert(same(&one->to, &other->to));
	assert(one->request == other->request);
	assert(m2m_streams_copy(one) == m2m_streams_copy(other));
	assert(m2m_streams_are_even(one) == m2m_streams_are_even(other));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct m2m_streams whole, octets;
	struct call call;
	int is_tunnel;

	if (!size)
		return 0;
	is_tunnel = data[0] == 255;
	m2m_streams_init(&whole, is_tunnel);
	m2m_streams_init(&octets, is_tunnel);
	while (size > 1) {
		size_t taken = next(data, size, &call);

		data += taken;
		size -= taken;
		feed(&whole, &call, SIZE_MAX);
		feed(&octets, &call, 1);
		compare(&whole, &octets);
		check(&whole.asks);
		check(&whole.sent);
		check(&whole.from);
		check(&whole.to);
		if (m2m_streams_copy(&whole) == M2M_COPIES_RESPONSE) {
			assert(whole.from.length == whole.to.length);
			assert(whole.to.body <= whole.from.body);
			assert(m2m_streams_are_due(&whole, 0));
			assert(!m2m_streams_are_off(&whole));
		}
	}
	return 0;
}
