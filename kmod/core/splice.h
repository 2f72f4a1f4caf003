/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Two TCP connections read as one: what numbers in headers become between the left and the right
 * side of a hop (docs/splicing.md). RFC 9293 (sequence numbers), 2018 (SACK), 7323 (timestamps,
 * windows); differences of checksums as everywhere (checksum.h).
 *
 * Packets with SYN never pass a splice: their windows have no scale. That is the caller's to see.
 */
#ifndef M2M_CORE_SPLICE_H
#define M2M_CORE_SPLICE_H

#include "checksum.h"
#include "types.h"

/* Each by enum m2m_toward: of what travels to the right, of what travels to the left. */
struct m2m_splice {
	u32 seq[2];   /* added to sequence numbers */
	u32 stamp[2]; /* added to TSval */
	s8 window[2]; /* windows are shifted left by so many bits; negative: right */
	u8 zero[2];
};

_Static_assert(sizeof(struct m2m_splice) == 20, "packed in Python");

/* What is added to the numbers of packets that travel one way. */
struct m2m_shift {
	u32 seq;
	u32 ack; /* to edges of SACK blocks too */
	u32 stamp;
	u32 echo;
	int window; /* bits */
};

m2m_inline void m2m_shift_of(struct m2m_shift *shift, const struct m2m_splice *splice, u8 toward)
{
	u32 way = toward & 1, back = way ^ 1;

	shift->seq = splice->seq[way];
	shift->ack = 0 - splice->seq[back];
	shift->stamp = splice->stamp[way];
	shift->echo = 0 - splice->stamp[back];
	shift->window = splice->window[way];
}

/* The splice of a hop whose right neighbour, with another one, is taken out. */
m2m_inline void m2m_splice_add(struct m2m_splice *splice, const struct m2m_splice *right)
{
	int way;

	for (way = 0; way < 2; way++) {
		splice->seq[way] += right->seq[way];
		splice->stamp[way] += right->stamp[way];
		splice->window[way] = (s8)(splice->window[way] + right->window[way]);
	}
}

/* A window in other units, as a header has it (host order): never more than there is. */
m2m_inline u16 m2m_shift_window(u16 window, int bits)
{
	u32 wide = window;

	if (bits <= -16)
		return 0;
	if (bits < 0)
		return (u16)(wide >> -bits);
	if (bits > 16)
		bits = 16;
	wide <<= bits;
	return wide > 0xffff ? 0xffff : (u16)wide;
}

/* Numbers of a TCP header, as they lie there. */
struct m2m_numbers {
	__be32 seq;
	__be32 ack;
	__be16 window;
};

/* Change them; acks: the packet has ACK set. Returns the checksum difference. */
m2m_inline u16 m2m_shift_numbers(const struct m2m_shift *shift, int acks,
				 struct m2m_numbers *numbers)
{
	struct m2m_numbers old = *numbers;

	numbers->seq = m2m_swap32(m2m_swap32(old.seq) + shift->seq);
	if (acks)
		numbers->ack = m2m_swap32(m2m_swap32(old.ack) + shift->ack);
	numbers->window = m2m_swap16(m2m_shift_window(m2m_swap16(old.window), shift->window));
	return m2m_csum_fold((u64)m2m_csum_diff32(old.seq, numbers->seq) +
			     m2m_csum_diff32(old.ack, numbers->ack) +
			     m2m_csum_diff16(old.window, numbers->window));
}

/*
 * Options as nearly all segments have them: timestamps alone, aligned as RFC 7323, appendix A, has it.
 * What a walk over them would do, without one.
 */
struct m2m_stamps {
	__be32 head; /* m2m_is_stamps() */
	__be32 value;
	__be32 echo;
};

/* Whether it is that, of options of so many octets: NOP, NOP, kind 8, length 10. */
m2m_inline int m2m_is_stamps(__be32 head, u32 octets)
{
	return octets == sizeof(struct m2m_stamps) && head == m2m_swap32(0x0101080a);
}

/* Change them; acks: the packet has ACK set. Returns the checksum difference. */
m2m_inline u16 m2m_shift_stamps(const struct m2m_shift *shift, int acks, struct m2m_stamps *stamps)
{
	struct m2m_stamps old = *stamps;

	stamps->value = m2m_swap32(m2m_swap32(old.value) + shift->stamp);
	if (acks)
		stamps->echo = m2m_swap32(m2m_swap32(old.echo) + shift->echo);
	return m2m_csum_fold((u64)m2m_csum_diff32(old.value, stamps->value) +
			     m2m_csum_diff32(old.echo, stamps->echo));
}

#define M2M_OPTIONS_MAX 40  /* octets behind the header proper, and steps of a walk at most */
#define M2M_OPTION_ROOM 68  /* a field at any place of six bits */
#define M2M_OPTION_EOL 0
#define M2M_OPTION_NOP 1
#define M2M_OPTION_SACK 5
#define M2M_OPTION_STAMP 8

/*
 * A walk over options, by steps without loops of their own (for bpf_loop). Where it is stands in
 * single octets, none at the beginning of a word of eight: of these the verifier keeps no track, and so
 * sees that one step is like the other, instead of going all ways there are.
 */
struct m2m_option_walk {
	u8 octets[M2M_OPTION_ROOM]; /* the options; zero, which is their end, behind them */
	u8 at;	  /* which is next */
	u8 end;	  /* how many there are */
	u8 left;  /* fields of the present option that are still to be changed */
	u8 zero;
	u32 add;  /* to the next of these, */
	u32 then; /* and to all after it */
	u32 diff; /* of the checksum so far */
};

/* Options begin at an even octet of the packet's checksum. */
m2m_inline void m2m_change_field(struct m2m_option_walk *walk, u32 at)
{
	__be32 old, new;
	u16 diff;

	__builtin_memcpy(&old, walk->octets + at, sizeof(old));
	new = m2m_swap32(m2m_swap32(old) + walk->add);
	__builtin_memcpy(walk->octets + at, &new, sizeof(new));
	diff = m2m_csum_diff32(old, new);
	if (at & 1) /* its octets lie in the other halves of the words summed: RFC 1071, 2 (B) */
		diff = __builtin_bswap16(diff);
	walk->diff = m2m_csum_fold((u64)walk->diff + diff);
}

/*
 * The next step; whether that was the last one. Options that cannot be told apart any more end
 * the walk, as they end a receiver's. What else there is stays as it is.
 */
m2m_inline int m2m_option_step(const struct m2m_shift *shift, int acks,
			       struct m2m_option_walk *walk)
{
	u32 at = walk->at & 63;
	u8 kind, size;

	if (walk->left) {
		m2m_change_field(walk, at);
		walk->at = (u8)(at + 4);
		walk->left--;
		walk->add = walk->then;
		return 0;
	}
	kind = walk->octets[at];
	size = walk->octets[at + 1];
	if (kind == M2M_OPTION_NOP) {
		walk->at = (u8)(at + 1);
		return 0;
	}
	if (kind == M2M_OPTION_EOL || size < 2 || at + size > walk->end)
		return 1;
	if (kind == M2M_OPTION_STAMP && size == 10) {
		walk->left = 2;
		walk->add = shift->stamp;
		walk->then = acks ? shift->echo : 0;
		size = 2;
	} else if (kind == M2M_OPTION_SACK && size > 2 && (size - 2) % 8 == 0) {
		walk->left = (size - 2) / 4;
		walk->add = shift->ack;
		walk->then = shift->ack;
		size = 2;
	}
	walk->at = (u8)(at + size);
	return 0;
}

/* Options of so many octets that lie in memory, changed. Returns the checksum difference. */
m2m_inline u16 m2m_carry_options(const struct m2m_shift *shift, int acks, u8 *options, u32 octets)
{
	struct m2m_option_walk walk = {};
	struct m2m_stamps stamps;
	u16 diff;
	int i;

	if (octets == sizeof(stamps)) {
		__builtin_memcpy(&stamps, options, sizeof(stamps));
		if (m2m_is_stamps(stamps.head, octets)) {
			diff = m2m_shift_stamps(shift, acks, &stamps);
			__builtin_memcpy(options, &stamps, sizeof(stamps));
			return diff;
		}
	}
	walk.end = (u8)octets;
	__builtin_memcpy(walk.octets, options, octets);
	for (i = 0; i < M2M_OPTIONS_MAX && !m2m_option_step(shift, acks, &walk); i++)
		;
	__builtin_memcpy(options, walk.octets, octets);
	return (u16)walk.diff;
}

/*
 * All of it for a TCP header of so many octets that lies in memory, options included, but for the
 * checksum, of which this is the difference.
 */
m2m_inline u16 m2m_carry_header(const struct m2m_splice *splice, u8 toward, u8 *tcp, u32 header)
{
	struct m2m_numbers numbers;
	struct m2m_shift shift;
	int acks = tcp[13] & 0x10;
	u16 diff;

	m2m_shift_of(&shift, splice, toward);
	__builtin_memcpy(&numbers.seq, tcp + 4, 4);
	__builtin_memcpy(&numbers.ack, tcp + 8, 4);
	__builtin_memcpy(&numbers.window, tcp + 14, 2);
	diff = m2m_shift_numbers(&shift, acks, &numbers);
	__builtin_memcpy(tcp + 4, &numbers.seq, 4);
	__builtin_memcpy(tcp + 8, &numbers.ack, 4);
	__builtin_memcpy(tcp + 14, &numbers.window, 2);
	return m2m_csum_fold((u64)diff + m2m_carry_options(&shift, acks, tcp + 20, header - 20));
}

#endif /* M2M_CORE_SPLICE_H */
