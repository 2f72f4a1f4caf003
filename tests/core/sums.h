/* SPDX-License-Identifier: GPL-2.0 */
/* Internet checksums in full, octet by octet: fuzz targets hold differences against them. */
#ifndef TESTS_CORE_SUMS_H
#define TESTS_CORE_SUMS_H

#include "apply.h"

static inline u16 sum_of(const u8 *data, size_t length, u64 sum)
{
	size_t i;

	for (i = 0; i + 1 < length; i += 2)
		sum += (u64)data[i] << 8 | data[i + 1];
	if (length & 1)
		sum += (u64)data[length - 1] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (u16)sum;
}

static inline u16 sum_of_segment(const u8 *packet, size_t header, size_t length)
{
	u64 pseudo = packet[M2M_IP_PROTO] + (u64)(length - header);

	pseudo += sum_of(packet + M2M_IP_SRC, 8, 0);
	return sum_of(packet + header, length - header, pseudo);
}

#endif /* TESTS_CORE_SUMS_H */
