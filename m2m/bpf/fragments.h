/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Fragments: only the first one carries ports. It leaves a note of its flow under the datagram's
 * id, by which the later ones find the same entry; of them only the addresses are changed.
 */
#ifndef M2M_BPF_FRAGMENTS_H
#define M2M_BPF_FRAGMENTS_H

#include "maps.h"
#include "packet.h"

/* How long the parts of a datagram belong together, as in the stack's own reassembly. */
#define M2M_FRAGMENT_TICKS M2M_TICKS(30)

struct m2m_datagram {
	struct m2m_addr src;
	struct m2m_addr dst;
	u32 id; /* of the IP header, or M2M_ANY_DATAGRAM */
	u8 proto;
	u8 hook;
	u8 zero[2];
};

/* Notes that fragments of subsessions do pass between two addresses. */
#define M2M_ANY_DATAGRAM 0xffffffffu

struct m2m_fragment {
	struct m2m_key key; /* of the flow */
	u32 seen;	    /* ticks */
	u32 zero;
};

/* Evicting a note costs one datagram, which its protocol survives: LRU is right here. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct m2m_datagram);
	__type(value, struct m2m_fragment);
} fragments SEC(".maps");

static __always_inline void m2m_datagram_of(struct m2m_datagram *datagram,
					    const struct m2m_key *key, u32 id)
{
	datagram->src = key->tuple.src;
	datagram->dst = key->tuple.dst;
	datagram->id = id;
	datagram->proto = key->tuple.proto;
	datagram->hook = key->tuple.hook;
	datagram->zero[0] = 0;
	datagram->zero[1] = 0;
}

static __noinline int m2m_note_fragment(const struct m2m_key *key, u32 id, u32 now)
{
	struct m2m_datagram datagram;
	struct m2m_fragment fragment = {.seen = now};

	if (!key)
		return 0;
	fragment.key = *key;
	m2m_datagram_of(&datagram, key, id);
	bpf_map_update_elem(&fragments, &datagram, &fragment, BPF_ANY);
	datagram.id = M2M_ANY_DATAGRAM;
	bpf_map_update_elem(&fragments, &datagram, &fragment, BPF_ANY);
	return 0;
}

static __always_inline const struct m2m_fragment *
m2m_find_fragment(const struct m2m_key *key, u32 id, u32 now)
{
	struct m2m_datagram datagram;
	const struct m2m_fragment *found;

	m2m_datagram_of(&datagram, key, id);
	found = bpf_map_lookup_elem(&fragments, &datagram);
	if (!found || m2m_ticks_since(found->seen, now) > M2M_FRAGMENT_TICKS)
		return NULL;
	return found;
}

#endif /* M2M_BPF_FRAGMENTS_H */
