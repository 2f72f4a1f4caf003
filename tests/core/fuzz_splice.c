/* SPDX-License-Identifier: GPL-2.0 */
/*
 * libFuzzer target: any splice and packet, under ASan and UBSan. Only numbers may change; a right
 * checksum stays right and a wrong one wrong; and the opposite splice takes all of it back, but what
 * windows have lost.
 */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>

#include "apply.h"
#include "sums.h"

static int same_sum(u16 a, u16 b)
{
	return a % 0xffff == b % 0xffff; /* zero has two spellings */
}

static void turn_back(struct m2m_splice *splice)
{
	int way;

	for (way = 0; way < 2; way++) {
		splice->seq[way] = 0 - splice->seq[way];
		splice->stamp[way] = 0 - splice->stamp[way];
		splice->window[way] = 0;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct m2m_splice splice;
	enum m2m_applied done;
	size_t length, header;
	u8 *packet, *before, toward;

	if (size < sizeof(splice) + 1)
		return 0;
	memcpy(&splice, data, sizeof(splice));
	toward = data[sizeof(splice)];
	length = size - sizeof(splice) - 1;

	/* of exactly this size, so that one byte too far is seen */
	packet = malloc(length ? length : 1);
	before = malloc(length ? length : 1);
	assert(packet && before);
	memcpy(packet, data + size - length, length);
	memcpy(before, packet, length);
	done = m2m_apply_splice(&splice, toward, packet, length);
	if (done != M2M_APPLIED || !memcmp(before, packet, length))
		goto end;
	header = (size_t)(packet[0] & 15) * 4;
	assert(same_sum(sum_of_segment(before, header, length),
			sum_of_segment(packet, header, length)));
	turn_back(&splice);
	assert(m2m_apply_splice(&splice, toward, packet, length) == M2M_APPLIED);
	assert(same_sum(sum_of_segment(before, header, length),
			sum_of_segment(packet, header, length)));
	memcpy(packet + header + M2M_TCP_WINDOW, before + header + M2M_TCP_WINDOW, 2);
	memcpy(packet + header + M2M_TCP_CHECK, before + header + M2M_TCP_CHECK, 2);
end:
	assert(!memcmp(before, packet, length));
	free(packet);
	free(before);
	return 0;
}
