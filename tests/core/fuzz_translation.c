/* SPDX-License-Identifier: GPL-2.0 */
/*
 * libFuzzer target: any key, entry and packet through the translation, under ASan and UBSan.
 * A packet that was right before must be right after, and one that is refused must not change.
 */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>

#include "apply.h"
#include "sums.h"

static void put_sum(u8 *at, u16 check)
{
	at[0] = (u8)(check >> 8);
	at[1] = (u8)check;
}

/*
 * Make addresses, ports and checksums what the key says. *header becomes the length of the IP
 * header, zero when there is no room for one and ports; returns where the checksum is, if any.
 */
static u8 *make_right(u8 *packet, size_t length, const struct m2m_key *key, size_t *header)
{
	u8 *check;
	int is_tcp;
	u16 sum;

	*header = 0;
	if (length < M2M_IP_MIN)
		return NULL;
	*header = (size_t)(packet[0] & 15) * 4;
	is_tcp = packet[M2M_IP_PROTO] == M2M_PROTO_TCP;
	if (*header < M2M_IP_MIN || *header + (is_tcp ? M2M_TCP_MIN : M2M_UDP_MIN) > length) {
		*header = 0;
		return NULL;
	}
	memcpy(packet + M2M_IP_SRC, &key->tuple.src.word[3], 4);
	memcpy(packet + M2M_IP_DST, &key->tuple.dst.word[3], 4);
	put_sum(packet + M2M_IP_CHECK, 0);
	put_sum(packet + M2M_IP_CHECK, (u16)~sum_of(packet, *header, 0));
	memcpy(packet + *header, &key->tuple.sport, 2);
	memcpy(packet + *header + 2, &key->tuple.dport, 2);
	check = packet + *header + (is_tcp ? M2M_TCP_CHECK : M2M_UDP_CHECK);
	if (!is_tcp && !check[0] && !check[1])
		return NULL; /* UDP without a checksum */
	put_sum(check, 0);
	sum = (u16)~sum_of_segment(packet, *header, length);
	put_sum(check, !is_tcp && !sum ? 0xffff : sum);
	return check;
}

static void map_v4(struct m2m_addr *addr)
{
	m2m_addr_from_v4(addr, addr->word[3]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct m2m_key key;
	struct m2m_entry entry;
	struct m2m_edit edit;
	struct m2m_packet facts;
	enum m2m_reason reason;
	enum m2m_applied done;
	enum m2m_verdict verdict;
	u8 *packet, *before, *check;
	size_t length, header;
	int is_first;

	if (size < sizeof(key) + sizeof(entry))
		return 0;
	memcpy(&key, data, sizeof(key));
	memcpy(&entry, data + sizeof(key), sizeof(entry));
	length = size - sizeof(key) - sizeof(entry);
	map_v4(&key.tuple.src);
	map_v4(&key.tuple.dst);
	m2m_entry_seal(&key, &entry);
	assert(m2m_edit_of(&edit, &key, &entry));

	/* of exactly this size, so that one byte too far is seen */
	packet = malloc(length ? length : 1);
	before = malloc(length ? length : 1);
	assert(packet && before);
	memcpy(packet, data + size - length, length);
	facts.wire_len = (u32)length;
	facts.hook = key.tuple.hook;
	facts.ttl = length > M2M_IP_TTL ? packet[M2M_IP_TTL] : 0;
	verdict = m2m_judge(&edit, &facts, entry.last_seen + 1, &reason);
	assert((verdict == M2M_VERDICT_DROP) <= (reason < M2M_REASONS));

	if (reason == M2M_TTL_EXPIRED && length > M2M_IP_TTL)
		packet[M2M_IP_TTL] = 2; /* such a packet is never sent on */
	check = make_right(packet, length, &key, &header);
	memcpy(before, packet, length);
	done = m2m_apply(&edit, key.tuple.hook, packet, length);
	if (done != M2M_APPLIED) {
		assert(!memcmp(before, packet, length));
	} else if (header) {
		is_first = !(packet[6] & 0x1f) && !packet[7];
		assert(sum_of(packet, header, 0) == 0xffff);
		assert(!check || !is_first || sum_of_segment(packet, header, length) == 0xffff);
		assert(!memcmp(packet + M2M_IP_SRC, &entry.src, 4));
		assert(!memcmp(packet + M2M_IP_DST, &entry.dst, 4));
	}
	free(packet);
	free(before);
	return 0;
}
