/* SPDX-License-Identifier: GPL-2.0 */
/* The header of an HTTP/1 response (RFC 9112) as far as a proxy's leaving depends on it. */
#ifndef M2M_SOCKETS_HEAD_H
#define M2M_SOCKETS_HEAD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>

#define M2M_HEAD_MOST 8192 /* octets; one that is longer is not looked at */

struct m2m_head {
	uint32_t size; /* so far */
	uint8_t whole;
	uint8_t wrong; /* it is none, or too long */
	uint8_t has_length;
	uint8_t is_chunked; /* or coded otherwise in transfer */
	uint8_t is_uncacheable;
	uint64_t length; /* of the body */
	char text[M2M_HEAD_MOST];
};

/* A field's value, which ends with its line, where the line has this name; NULL: another one. */
static inline const char *m2m_field(const char *line, const char *end, const char *name)
{
	size_t size = strlen(name);

	if ((size_t)(end - line) <= size || strncasecmp(line, name, size) || line[size] != ':')
		return NULL;
	line += size + 1;
	while (line < end && (*line == ' ' || *line == '\t'))
		line++;
	return line;
}

/* Whether a list of tokens and directives has this one. */
static inline int m2m_lists(const char *at, const char *end, const char *token)
{
	size_t size = strlen(token);

	while (at < end) {
		while (at < end && (*at == ' ' || *at == '\t' || *at == ','))
			at++;
		if ((size_t)(end - at) >= size && !strncasecmp(at, token, size) &&
		    (at + size == end || strchr(" \t,=", at[size])))
			return 1;
		while (at < end && *at != ',')
			at++;
	}
	return 0;
}

static inline void m2m_head_line(struct m2m_head *head, const char *line, const char *end)
{
	const char *value;

	value = m2m_field(line, end, "Content-Length");
	if (value) {
		uint64_t length = 0;
		const char *at;

		for (at = value; at < end && *at >= '0' && *at <= '9'; at++)
			length = length * 10 + (uint64_t)(*at - '0');
		head->wrong |= at != end || at == value || end - value > 18 ||
			       (head->has_length && head->length != length);
		head->has_length = 1;
		head->length = length;
	}
	head->is_chunked |= m2m_field(line, end, "Transfer-Encoding") != NULL;
	value = m2m_field(line, end, "Cache-Control");
	if (value && (m2m_lists(value, end, "no-store") || m2m_lists(value, end, "private")))
		head->is_uncacheable = 1;
}

static inline void m2m_head_parse(struct m2m_head *head)
{
	const char *line = head->text, *end = head->text + head->size - 2, *next;

	/* "HTTP/1.1 200": others than 200 and 206 may have no body, whatever they say */
	if (head->size < 16 || memcmp(line, "HTTP/1.", 7) || (memcmp(line + 8, " 200", 4) &&
							     memcmp(line + 8, " 206", 4)))
		head->wrong = 1;
	for (; line < end; line = next + 2) {
		next = memmem(line, (size_t)(head->text + head->size - line), "\r\n", 2);
		if (!next)
			break;
		m2m_head_line(head, line, next);
	}
}

/* Take up what comes; how much of it belongs to the header. */
static inline size_t m2m_head_feed(struct m2m_head *head, const char *data, size_t size)
{
	size_t room = M2M_HEAD_MOST - head->size, taken = size < room ? size : room;
	size_t from = head->size > 3 ? head->size - 3 : 0;
	const char *end;

	if (head->whole || head->wrong)
		return 0;
	memcpy(head->text + head->size, data, taken);
	end = memmem(head->text + from, head->size + taken - from, "\r\n\r\n", 4);
	if (!end) {
		head->size += (uint32_t)taken;
		head->wrong = head->size == M2M_HEAD_MOST;
		return taken;
	}
	taken = (size_t)(end + 4 - head->text) - head->size;
	head->size += (uint32_t)taken;
	head->whole = 1;
	m2m_head_parse(head);
	return taken;
}

static inline void m2m_head_begin(struct m2m_head *head)
{
	memset(head, 0, offsetof(struct m2m_head, text));
}

#endif /* M2M_SOCKETS_HEAD_H */
