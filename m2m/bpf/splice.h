/* SPDX-License-Identifier: GPL-2.0 */
/* Carrying a packet through a splice (docs/splicing.md), with the kernel's helpers. */
#ifndef M2M_BPF_SPLICE_H
#define M2M_BPF_SPLICE_H

#include "maps.h"
#include "packet.h"

/* Sequence number to window, as they lie in a TCP header. */
struct m2m_tcp_middle {
	__be32 seq;
	__be32 ack;
	u8 offset;
	u8 flags;
	__be16 window;
};

struct m2m_carrying {
	struct m2m_option_walk walk;
	struct m2m_shift shift;
	int acks;
};

static long m2m_carry_option(u32 step, void *context)
{
	struct m2m_carrying *carrying = context;

	(void)step;
	return m2m_option_step(&carrying->shift, carrying->acks, &carrying->walk);
}

/*
 * Fetch the splice of an entry that has one, and have *headers* say what counts. False when it is
 * not there (any more): the packet cannot be right.
 */
static __noinline int m2m_find_splice(const struct m2m_key *key, struct m2m_headers *headers,
				      struct m2m_edit *edit)
{
	const struct m2m_splice *found;

	if (!key || !headers || !edit)
		return 0;
	found = bpf_map_lookup_elem(&splices, key);
	if (!found)
		return 0;
	edit->splice = *found;
	m2m_left_numbers(&edit->splice, edit->role, &headers->seq, &headers->ack);
	return 1;
}

static __always_inline u16 m2m_carry_middle(const struct m2m_shift *shift,
					    struct m2m_tcp_middle *middle)
{
	struct m2m_numbers numbers = {middle->seq, middle->ack, middle->window};
	u16 diff = m2m_shift_numbers(shift, middle->flags & M2M_TCP_ACK, &numbers);

	middle->seq = numbers.seq;
	middle->ack = numbers.ack;
	middle->window = numbers.window;
	return diff;
}

/* The header of nearly all segments. */
struct m2m_tcp_stamped {
	__be16 ports[2];
	struct m2m_tcp_middle middle;
	__be16 check;
	__be16 urgent;
	struct m2m_stamps stamps;
};

/*
 * Change such a one in place, at less than half the price of the walk; false if it is another one.
 *
 * This and the next one are global, so that the verifier goes through each once, and not from each
 * state in which it is called; and two, since their stacks do not fit upon each other.
 */
__noinline int m2m_carry_stamped(struct __sk_buff *skb, struct m2m_headers *headers,
				 struct m2m_edit *edit)
{
	struct m2m_tcp_stamped *tcp;
	struct m2m_shift shift;
	void *data, *end;
	u16 diff;
	int acks;

	if (!headers || !edit)
		return 0;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	tcp = data + (headers->l4 & 0x7f);
	if ((void *)(tcp + 1) > end ||
	    !m2m_is_stamps(tcp->stamps.head, headers->l4_len - sizeof(struct tcphdr)))
		return 0;
	m2m_shift_of(&shift, &edit->splice, M2M_ROLE_TOWARD(edit->role));
	acks = tcp->middle.flags & M2M_TCP_ACK;
	diff = m2m_carry_middle(&shift, &tcp->middle);
	edit->port_diff = m2m_csum_fold((u64)edit->port_diff + diff +
					m2m_shift_stamps(&shift, acks, &tcp->stamps));
	return 1;
}

/*
 * Change any packet's numbers. The checksum's difference joins that of the ports: neither is part of
 * the pseudo header (m2m_rewrite_check). Zero when done.
 */
__noinline int m2m_carry(struct __sk_buff *skb, struct m2m_headers *headers,
				struct m2m_edit *edit)
{
	struct m2m_carrying carrying = {};
	struct m2m_tcp_middle middle;
	u32 at, first, len;
	u16 diff;

	if (!headers || !edit)
		return -1;
	at = headers->l4 + offsetof(struct tcphdr, seq);
	first = headers->l4 + sizeof(struct tcphdr);
	len = headers->l4_len - sizeof(struct tcphdr);
	if (bpf_skb_load_bytes(skb, at, &middle, sizeof(middle)))
		return -1;
	carrying.acks = middle.flags & M2M_TCP_ACK;
	m2m_shift_of(&carrying.shift, &edit->splice, M2M_ROLE_TOWARD(edit->role));
	diff = m2m_carry_middle(&carrying.shift, &middle);
	if (bpf_skb_store_bytes(skb, at, &middle, sizeof(middle), 0))
		return -1;
	if (len >= 4) { /* a multiple of that */
		/* One comparison for both bounds would hide the lower one (mss.h). */
		asm volatile("" : "+r"(len));
		if (len > M2M_OPTIONS_MAX ||
		    bpf_skb_load_bytes(skb, first, carrying.walk.octets, len))
			return -1;
		carrying.walk.end = (u8)len;
		/*
		 * Zero, but not to the verifier: that of Linux 6.1 looks at the first step alone,
		 * and takes out what that would never do.
		 */
		carrying.walk.at = headers->later_fragment;
		carrying.walk.left = headers->later_fragment;
		bpf_loop(M2M_OPTIONS_MAX, m2m_carry_option, &carrying, 0);
		if (bpf_skb_store_bytes(skb, first, carrying.walk.octets, len, 0))
			return -1;
	}
	edit->port_diff = m2m_csum_fold((u64)edit->port_diff + diff + carrying.walk.diff);
	return 0;
}

#endif /* M2M_BPF_SPLICE_H */
