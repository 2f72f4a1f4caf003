// SPDX-License-Identifier: GPL-2.0
/* What test_relay.py calls of relay.h. */
#define _GNU_SOURCE
#include <stdlib.h>

#include "relay.h"

struct m2m_streams *streams_new(int is_tunnel);
void streams_feed(struct m2m_streams *all, int is_server, int is_read, const char *data, size_t size);
int streams_copy(const struct m2m_streams *all);
int streams_are_due(const struct m2m_streams *all, uint64_t after);
int streams_are_off(const struct m2m_streams *all);
int streams_are_even(const struct m2m_streams *all);
void streams_look(const struct m2m_streams *all, int which, uint64_t *numbers);

struct m2m_streams *streams_new(int is_tunnel)
{
	struct m2m_streams *all = malloc(sizeof(*all));

	m2m_streams_init(all, is_tunnel);
	return all;
}

void streams_feed(struct m2m_streams *all, int is_server, int is_read, const char *data, size_t size)
{
	m2m_streams_feed(all, is_server, is_read, data, size);
}

int streams_copy(const struct m2m_streams *all)
{
	return m2m_streams_copy(all);
}

int streams_are_due(const struct m2m_streams *all, uint64_t after)
{
	return m2m_streams_are_due(all, after);
}

int streams_are_off(const struct m2m_streams *all)
{
	return m2m_streams_are_off(all);
}

int streams_are_even(const struct m2m_streams *all)
{
	return m2m_streams_are_even(all);
}

void streams_look(const struct m2m_streams *all, int which, uint64_t *numbers)
{
	const struct m2m_http *streams[] = {&all->asks, &all->sent, &all->from, &all->to};
	const struct m2m_http *one = streams[which];

	numbers[0] = one->state;
	numbers[1] = one->begun;
	numbers[2] = one->done;
	numbers[3] = one->body;
	numbers[4] = one->fed;
}
