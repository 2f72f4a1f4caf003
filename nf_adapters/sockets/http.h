/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The messages of HTTP/1 (RFC 9112) in one direction of a connection, followed octet by octet: where
 * each begins and ends, and what a proxy's leaving depends on. However the stream is cut into calls,
 * the same is found.
 *
 * What two readers may understand in different ways is not followed: from there on the stream is lost.
 */
#ifndef M2M_SOCKETS_HTTP_H
#define M2M_SOCKETS_HTTP_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>

#define M2M_HTTP_KEPT 256	/* octets of a line; what is behind them is not looked at */
#define M2M_HTTP_LONGEST 65536u /* line */

enum m2m_http_state {
	M2M_HTTP_START = 0, /* before a message, or in its first line */
	M2M_HTTP_FIELDS,
	M2M_HTTP_BODY,
	M2M_HTTP_SIZE, /* of a chunk */
	M2M_HTTP_CHUNK,
	M2M_HTTP_AFTER, /* the end of line behind a chunk */
	M2M_HTTP_TRAILER,
	M2M_HTTP_REST,	  /* of the connection, is the body */
	M2M_HTTP_COPIED, /* a tunnel: anything */
	M2M_HTTP_LOST,
};

struct m2m_http {
	uint64_t fed;  /* octets, ever */
	uint64_t body; /* octets of this message's, or through the tunnel */
	uint64_t left; /* of the body, or of the chunk */
	uint32_t begins;      /* messages of which something has come */
	uint32_t begun, done; /* whose header, and whose end, has come; not 1xx */
	uint8_t state;
	uint8_t is_request; /* as all are in this direction */
	/* of this message */
	uint16_t status;
	uint8_t is_get;
	uint8_t is_connect;
	uint8_t has_length;
	uint8_t is_chunked;
	uint8_t is_uncacheable;
	uint64_t length;
	/* the line that has begun to come */
	uint32_t size; /* without its end */
	uint8_t ends;  /* its CR has come */
	char line[M2M_HTTP_KEPT];
};

/* A field's value, where the line has this name; NULL: another one. */
static inline const char *m2m_http_value(const char *line, const char *end, const char *name)
{
	size_t size = strlen(name);

	if ((size_t)(end - line) <= size || strncasecmp(line, name, size) || line[size] != ':')
		return NULL;
	line += size + 1;
	while (line < end && (*line == ' ' || *line == '\t'))
		line++;
	return line;
}

/* Where the element of a list that begins here ends: at a comma that is not quoted. */
static inline const char *m2m_http_element(const char *at, const char *end)
{
	int quoted = 0;

	for (; at < end && (quoted || *at != ','); at++) {
		if (quoted && *at == '\\' && at + 1 < end)
			at++;
		else
			quoted ^= *at == '"';
	}
	return at;
}

/* Whether a list of tokens and directives has this one. */
static inline int m2m_http_lists(const char *at, const char *end, const char *token)
{
	size_t size = strlen(token);

	for (; at < end; at = m2m_http_element(at, end)) {
		while (at < end && (*at == ' ' || *at == '\t' || *at == ','))
			at++;
		if ((size_t)(end - at) >= size && !strncasecmp(at, token, size) &&
		    (at + size == end || strchr(" \t,=", at[size])))
			return 1;
	}
	return 0;
}

/* A number that is all there is, but for white space behind it; -1: it is none, or too large. */
static inline int64_t m2m_http_number(const char *at, const char *end)
{
	int64_t number = 0;
	int digits = 0;

	for (; at < end && *at >= '0' && *at <= '9' && digits < 18; at++, digits++)
		number = number * 10 + (*at - '0');
	while (at < end && (*at == ' ' || *at == '\t'))
		at++;
	return at == end && digits ? number : -1;
}

static inline void m2m_http_lose(struct m2m_http *http)
{
	http->state = M2M_HTTP_LOST;
}

static inline void m2m_http_end(struct m2m_http *http)
{
	http->done++;
	http->state = M2M_HTTP_START;
}

/* "GET /path HTTP/1.1", or "HTTP/1.1 200 OK" */
static inline void m2m_http_start(struct m2m_http *http, const char *line, const char *end)
{
	int has_version = end - line > 9 && !memcmp(end - 9, " HTTP/1.", 8);

	http->status = 0;
	http->is_get = http->is_connect = http->has_length = http->is_chunked = http->is_uncacheable = 0;
	http->length = 0;
	http->state = M2M_HTTP_FIELDS;
	if (http->is_request) {
		http->is_get = end - line > 4 && !memcmp(line, "GET ", 4);
		http->is_connect = end - line > 8 && !memcmp(line, "CONNECT ", 8);
		/* the header of a response to HEAD tells of a body that does not come */
		if ((!has_version && http->size <= M2M_HTTP_KEPT) || !memcmp(line, "HEAD ", 5))
			m2m_http_lose(http);
	} else {
		int64_t status = end - line >= 12 ? m2m_http_number(line + 9, line + 12) : -1;

		if (status < 100 || memcmp(line, "HTTP/1.", 7) || line[8] != ' ' ||
		    (line + 12 < end && line[12] != ' '))
			m2m_http_lose(http);
		else
			http->status = (uint16_t)status;
	}
}

static inline void m2m_http_field(struct m2m_http *http, const char *line, const char *end)
{
	const char *colon = memchr(line, ':', (size_t)(end - line)), *value;
	int is_cut = http->size > M2M_HTTP_KEPT;

	/* white space would make this the last line's, or the name another one */
	if (!colon || colon == line || memchr(line, ' ', (size_t)(colon - line)) ||
	    memchr(line, '\t', (size_t)(colon - line))) {
		m2m_http_lose(http);
		return;
	}
	value = m2m_http_value(line, end, "Content-Length");
	if (value) {
		int64_t length = m2m_http_number(value, end);

		if (length < 0 || is_cut || (http->has_length && http->length != (uint64_t)length))
			m2m_http_lose(http);
		http->has_length = 1;
		http->length = (uint64_t)length;
	}
	value = m2m_http_value(line, end, "Transfer-Encoding");
	if (value) {
		if (http->is_chunked || end - value != 7 || strncasecmp(value, "chunked", 7))
			m2m_http_lose(http);
		http->is_chunked = 1;
	}
	value = m2m_http_value(line, end, "Cache-Control");
	if (value &&
	    (m2m_http_lists(value, end, "no-store") || m2m_http_lists(value, end, "private")))
		http->is_uncacheable = 1;
}

/* The header is whole: what comes now? */
static inline void m2m_http_head(struct m2m_http *http)
{
	http->state = M2M_HTTP_START;
	if (!http->is_request && http->status < 200 && http->status != 101)
		return; /* the response is still to come */
	http->begun++;
	http->body = 0;
	http->left = http->length;
	if (http->status == 101 || http->is_connect)
		http->state = M2M_HTTP_COPIED;
	else if (http->is_chunked && http->has_length)
		m2m_http_lose(http);
	else if (http->status == 204 || http->status == 304)
		m2m_http_end(http);
	else if (http->is_chunked)
		http->state = M2M_HTTP_SIZE;
	else if (http->left)
		http->state = M2M_HTTP_BODY;
	else if (http->has_length || http->is_request)
		m2m_http_end(http);
	else
		http->state = M2M_HTTP_REST;
}

static inline void m2m_http_chunk(struct m2m_http *http, const char *line, const char *end)
{
	static const char digits[] = "0123456789abcdef";
	const char *at = line, *digit;

	http->left = 0;
	for (; at < end && at - line < 15; at++) {
		digit = strchr(digits, *at | ('A' <= *at && *at <= 'F' ? 32 : 0));
		if (!digit)
			break;
		http->left = http->left * 16 + (uint64_t)(digit - digits);
	}
	if (at == line || (at < end && !strchr("; \t", *at)))
		m2m_http_lose(http);
	else
		http->state = http->left ? M2M_HTTP_CHUNK : M2M_HTTP_TRAILER;
}

static inline void m2m_http_line(struct m2m_http *http)
{
	const char *line = http->line;
	const char *end = line + (http->size < M2M_HTTP_KEPT ? http->size : M2M_HTTP_KEPT);

	if (http->state == M2M_HTTP_SIZE)
		m2m_http_chunk(http, line, end);
	else if (http->state == M2M_HTTP_AFTER && !http->size)
		http->state = M2M_HTTP_SIZE;
	else if (http->state == M2M_HTTP_AFTER)
		m2m_http_lose(http);
	else if (http->state == M2M_HTTP_TRAILER && !http->size)
		m2m_http_end(http);
	else if (http->state == M2M_HTTP_FIELDS && !http->size)
		m2m_http_head(http);
	else if (http->state == M2M_HTTP_FIELDS)
		m2m_http_field(http, line, end);
	else if (http->state == M2M_HTTP_START && http->size)
		m2m_http_start(http, line, end);
	else if (http->state == M2M_HTTP_START && !http->is_request)
		m2m_http_lose(http); /* before a request empty lines may be */
}

/* Take up what belongs to the line; how much that is. */
static inline size_t m2m_http_feed_line(struct m2m_http *http, const char *data, size_t size)
{
	size_t at;

	for (at = 0; at < size; at++) {
		char octet = data[at];

		if (http->ends != (octet == '\n') || !octet || http->size == M2M_HTTP_LONGEST) {
			m2m_http_lose(http);
			return size;
		}
		http->ends = octet == '\r';
		if (octet == '\n') {
			m2m_http_line(http);
			http->size = 0;
			return at + 1;
		}
		if (octet != '\r') {
			http->begins += http->state == M2M_HTTP_START && !http->size;
			if (http->size < M2M_HTTP_KEPT)
				http->line[http->size] = octet;
			http->size++;
		}
	}
	return size;
}

static inline void m2m_http_feed(struct m2m_http *http, const char *data, size_t size)
{
	http->fed += size;
	while (size) {
		size_t some = size;

		switch (http->state) {
		case M2M_HTTP_REST:
		case M2M_HTTP_COPIED:
			http->body += size;
			return;
		case M2M_HTTP_LOST:
			return;
		case M2M_HTTP_BODY:
		case M2M_HTTP_CHUNK:
			if (some > http->left)
				some = (size_t)http->left;
			http->body += some;
			http->left -= some;
			if (!http->left && http->state == M2M_HTTP_BODY)
				m2m_http_end(http);
			else if (!http->left)
				http->state = M2M_HTTP_AFTER;
			break;
		default:
			some = m2m_http_feed_line(http, data, size);
		}
		data += some;
		size -= some;
	}
}

/* Whether all that has come are whole messages. */
static inline int m2m_http_is_between(const struct m2m_http *http)
{
	return http->state == M2M_HTTP_START && !http->size && !http->ends;
}

#endif /* M2M_SOCKETS_HTTP_H */
