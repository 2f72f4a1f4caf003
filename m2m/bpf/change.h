/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Sessions whose chain changes while packets pass (docs/holding.md). What belongs to an entry only
 * then has records beside the table; M2M_ROLE_CHANGING says that there are some, and is all that
 * packets of other sessions ever look at.
 *
 * Where packets wait: in the kernel, as if for the Ethernet address of a neighbour. They are sent
 * to an address that nobody has, by a device that leads nowhere (m2m/datapath/hold_device.py): the
 * kernel keeps them, whole and in order, until an ARP reply says what that Ethernet address is. Then
 * it lets all of them go, one behind the other, and on the device's way out m2m_held takes them
 * over. Addresses of class E are used, each once: a queue per entry, made by its first packet.
 *
 *    m2m_in ──┐                                                   ┌──► m2m_process: translated
 *             ├──► bpf_redirect_neigh(device, 240.x.y.z) ~~~► m2m_held
 *    m2m_out ─┘       waits for "240.x.y.z is at ..."             └──► out of turn: wait again
 *
 * Order: every packet that waits has a number, and leaves only when all before it have. While they
 * leave, packets that come on another processor stay in their program until that is over; on the
 * same one none can come. Without that there would be no end to it: what leaves lets the sender
 * send more, which would have to wait in turn.
 */
#ifndef M2M_BPF_CHANGE_H
#define M2M_BPF_CHANGE_H

#include "clock.h"
#include "fragments.h"
#include "maps.h"
#include "packet.h"
#include "sweep.h"

#define AF_INET 2

/* change->state */
#define M2M_CHANGE_HOLD 0x01	  /* packets wait */
#define M2M_CHANGE_SUBSTREAM 0x02 /* of those, what is beyond the checkpoint */
#define M2M_CHANGE_WATCH 0x04	  /* an acknowledgement is to be told */
#define M2M_CHANGE_REDIRECT 0x08  /* the rewrite is the one in `redirects` */
#define M2M_CHANGE_OVERFLOW 0x10  /* the agent has been told that too many wait, or too long */
#define M2M_CHANGE_LET_GO 0x20	  /* none waits for those before it any more: some were lost */
#define M2M_CHANGE_COUNT 0x40	  /* that so many packets have passed is to be told */

struct m2m_change {
	u32 state;
	u32 checkpoint;
	u32 ack;
	u32 until;     /* ticks: not to be held for longer */
	__be32 queue;  /* the address at which packets wait */
	__be32 late;   /* at which those wait again that came out before their turn */
	u32 drainer;   /* 1 + the processor that lets packets go; 0: none does */
	u32 count_serial;
	/* What the agent is told is of these; it may have asked for something else meanwhile. */
	u32 hold_serial;
	u32 watch_serial;
	u64 queued;    /* packets that have been given a number */
	u64 released;  /* that have come out, each in its turn */
	u64 settled;   /* that have left the host, and not only come out */
	u64 count;     /* as entry->packets */
	u32 came_by;   /* the interface by which what waits has come; 0: the host's own stack */
	u32 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC); /* few sessions change at once */
	__uint(max_entries, 65536);
	__type(key, struct m2m_key);
	__type(value, struct m2m_change);
} changes SEC(".maps");

/*
 * A new rewrite. An entry cannot be written to in several places at one moment; this element is
 * replaced as a whole, and written into the entry when nobody can be reading that any more.
 */
struct m2m_redirect {
	u32 serial; /* as `again`, or what was read has been recycled meanwhile */
	u32 ifindex;
	u16 mss;
	u16 mtu;
	u16 addr_diff;
	u16 chain;
	__be32 src;
	__be32 dst;
	__be16 sport;
	__be16 dport;
	__be32 next_hop;
	u32 generation;
	u32 tag; /* m2m_key_tag() of its key */
	u64 packets; /* that have gone this way, as entry->packets counts */
	struct m2m_splice splice;
	u32 spliced; /* whether it has one */
	u32 again;
	u32 zero;
};

_Static_assert(sizeof(struct m2m_redirect) == 80, "packed in Python");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct m2m_key);
	__type(value, struct m2m_redirect);
} redirects SEC(".maps");

/* Whose packets wait at an address. One that is not here has been given up: nothing may wait there. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, __be32);
	__type(value, struct m2m_key);
} waiting_at SEC(".maps");

/* All entries together. One instance. */
struct m2m_waiting {
	u64 queued;
	u64 released;
	u32 limit;   /* packets; beyond, the agent is told, and beyond twice as many they are lost */
	u32 ifindex; /* of the device; 0: there is none */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct m2m_waiting);
} waiting SEC(".maps");

/*
 * skb->tc_index of a packet that waits: its hook and the end of its number. It stands in no
 * header, and nothing between the two programs touches it.
 */
#define M2M_NUMBER_MASK 0x7fff
#define M2M_NUMBER_HOOK_SHIFT 15
/* ... and of one that has waited, while m2m_held processes it. */
#define M2M_RELEASED 0x4d34
/* ... and of one that is given back to where it came in: it is restored, and on to the stack. */
#define M2M_GIVEN_BACK 0x4d35

/* Ethernet source addresses on the device: 02:4d:32, what it is, 0, the hook. */
#define M2M_MAC_PREFIX 0x324d02u   /* as the first three octets are loaded */
#define M2M_MAC_AGAIN 0	   /* put there by the agent: let it meet its hook (again) */
#define M2M_MAC_WHOLE 1 /* for the agent to split */
#define M2M_MAC_COPY 2	/* of a packet that waits: for the agent to acknowledge what it does */

#define M2M_MAC_OTHER 3 /* the neighbour that nobody is */

/* How often a packet looks whether another processor is through: for a millisecond or so. */
#define M2M_PATIENCE 200000

#define M2M_GO_ON -2

static __always_inline struct m2m_waiting *m2m_get_waiting(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&waiting, &zero);
}

/* False when there is no room: then it was not told. */
static __always_inline int m2m_tell(const struct m2m_entry *entry, enum m2m_event kind,
				    u32 serial)
{
	struct m2m_event_record *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event)
		return 0;
	event->session = entry->session;
	event->kind = kind;
	event->toward = M2M_ROLE_TOWARD(entry->role) | serial << 1;
	bpf_ringbuf_submit(event, 0);
	return 1;
}

static __always_inline int m2m_wait_at(u32 ifindex, __be32 address)
{
	struct bpf_redir_neigh neighbour = {.nh_family = AF_INET, .ipv4_nh = address};

	return bpf_redirect_neigh(ifindex, &neighbour, sizeof(neighbour), 0);
}

/* Octet by octet: of a constant array the compiler would make another map. */
static __always_inline void m2m_put_mac(u8 *mac, u8 kind, u8 hook)
{
	mac[0] = 0x02;
	mac[1] = 0x4d;
	mac[2] = 0x32;
	mac[3] = kind;
	mac[4] = 0;
	mac[5] = hook;
}

static __always_inline void m2m_address_mac(struct __sk_buff *skb, u8 kind, u8 hook)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *ethernet = data;

	if ((void *)(ethernet + 1) <= end)
		m2m_put_mac(ethernet->h_source, kind, hook);
}

static long m2m_look_again(u32 step, void *context)
{
	struct m2m_change **change = context;

	(void)step;
	return !*(const volatile u32 *)&(*change)->drainer;
}

/*
 * Whether all that have waited have left, if they are let go just now. A program that runs on the
 * drainer's own processor runs after it: neither is ever interrupted by the other.
 */
static __always_inline void m2m_see_them_off(struct m2m_change *change)
{
	u32 drainer = change->drainer;

	if (!drainer)
		return;
	if (drainer != bpf_get_smp_processor_id() + 1) {
		bpf_loop(M2M_PATIENCE, m2m_look_again, &change, 0);
		if (!*(const volatile u32 *)&change->drainer)
			return;
	}
	if (change->released == change->queued) {
		change->settled = change->released;
		change->drainer = 0;
	}
}

/* What a packet of a held substream does. */
enum m2m_part {
	M2M_PART_OLD,	/* goes on */
	M2M_PART_NEW,	/* waits */
	M2M_PART_NEWS,	/* waits, and acknowledges what nothing before it has */
	M2M_PART_BOTH,	/* lies across the checkpoint */
};

static __always_inline enum m2m_part m2m_part_of(const struct m2m_change *change,
						 const struct m2m_entry *entry,
						 const struct m2m_headers *headers)
{
	u8 tcp = headers->tcp_flags;

	/* Whoever fragments TCP, the old path shall have it: numbers of a part say nothing. */
	if (headers->later_fragment || headers->first_fragment)
		return M2M_PART_OLD;
	if (!m2m_payload(headers) && !(tcp & (M2M_TCP_SYN | M2M_TCP_FIN | M2M_TCP_RST)))
		return M2M_PART_OLD;
	if (!m2m_seq_after(m2m_end_of(headers), change->checkpoint))
		return M2M_PART_OLD;
	if (m2m_seq_after(change->checkpoint, headers->seq))
		return M2M_PART_BOTH;
	if (tcp & M2M_TCP_ACK &&
	    (m2m_seq_after(headers->ack, entry->max_ack) || !(entry->flags & M2M_SEEN_ACK)))
		return M2M_PART_NEWS;
	return M2M_PART_NEW;
}

static __always_inline int m2m_wait(struct __sk_buff *skb, struct m2m_change *change,
				    struct m2m_entry *entry, const struct m2m_key *key,
				    const struct m2m_headers *headers, u32 now)
{
	struct m2m_waiting *all = m2m_get_waiting();
	__s64 there;
	u64 number;

	if (!all)
		return TC_ACT_SHOT;
	there = all->queued - all->released;
	if (!(change->state & M2M_CHANGE_OVERFLOW) && change->state & M2M_CHANGE_HOLD &&
	    (there >= all->limit || (s32)(now - change->until) >= 0) &&
	    m2m_tell(entry, M2M_EVENT_OVERFLOW, change->hold_serial))
		__sync_fetch_and_or(&change->state, M2M_CHANGE_OVERFLOW);
	if (there >= 2 * (__s64)all->limit) {
		m2m_count(M2M_HOLD_OVERFLOW, 1);
		return TC_ACT_SHOT;
	}
	if (headers->first_fragment)
		m2m_note_fragment(key, headers->ip_id, now);
	__sync_fetch_and_add(&all->queued, 1);
	number = __sync_fetch_and_add(&change->queued, 1);
	m2m_count(M2M_HELD, 1);
	skb->tc_index = key->tuple.hook << M2M_NUMBER_HOOK_SHIFT | (number & M2M_NUMBER_MASK);
	return m2m_wait_at(all->ifindex, change->queue);
}

/* The rewrite that counts, in place of the entry's own. */
static __always_inline void m2m_take_redirect(const struct m2m_key *key, struct m2m_edit *edit)
{
	int tries;

	for (tries = 0; tries < 3; tries++) {
		const struct m2m_redirect *to = bpf_map_lookup_elem(&redirects, key);
		u32 serial;

		if (!to)
			return;
		serial = *(const volatile u32 *)&to->serial;
		edit->src = to->src;
		edit->dst = to->dst;
		edit->next_hop = to->next_hop;
		edit->sport = to->sport;
		edit->dport = to->dport;
		edit->addr_diff = to->addr_diff;
		edit->port_diff = m2m_csum_diff_ports(key->tuple.sport, to->sport,
						      key->tuple.dport, to->dport);
		edit->mss = to->mss;
		edit->mtu = to->mtu;
		edit->ifindex = to->ifindex;
		edit->spliced = to->spliced;
		edit->splice = to->splice;
		if (*(const volatile u32 *)&to->again == serial && to->tag == m2m_key_tag(key))
			return;
	}
}

/*
 * A packet meets an entry that is changing. M2M_GO_ON: it goes on by *edit, which may be another
 * one now. Else it is taken care of, and this is what the program returns.
 */
static __noinline int m2m_meet_change(struct __sk_buff *skb, const struct m2m_key *key,
				      struct m2m_headers *headers, struct m2m_entry *entry,
				      struct m2m_edit *edit)
{
	struct m2m_change *change;
	u32 state;

	if (!key || !headers || !entry || !edit)
		return TC_ACT_SHOT;
	change = bpf_map_lookup_elem(&changes, key);
	if (!change)
		return M2M_GO_ON;
	if (skb->tc_index != M2M_RELEASED && change->drainer)
		m2m_see_them_off(change);
	state = *(const volatile u32 *)&change->state; /* the agent may be far ahead by now */
	if (skb->tc_index != M2M_RELEASED &&
	    (state & M2M_CHANGE_HOLD || change->queued != change->settled)) {
		const struct m2m_config *config = m2m_get_config();
		enum m2m_part part = M2M_PART_NEW;
		struct m2m_waiting *all;

		if (!config)
			return TC_ACT_SHOT;
		if (skb->ingress_ifindex) /* not put there by the agent */
			change->came_by = skb->ingress_ifindex;
		if (state & M2M_CHANGE_SUBSTREAM)
			part = m2m_part_of(change, entry, headers);
		if (part == M2M_PART_BOTH || part == M2M_PART_NEWS) {
			all = m2m_get_waiting();
			if (!all)
				return TC_ACT_SHOT;
			m2m_address_mac(skb, part == M2M_PART_BOTH ? M2M_MAC_WHOLE : M2M_MAC_COPY,
					key->tuple.hook);
			if (part == M2M_PART_BOTH)
				return bpf_redirect(all->ifindex, 0);
			bpf_clone_redirect(skb, all->ifindex, 0);
		}
		if (part != M2M_PART_OLD)
			return m2m_wait(skb, change, entry, key, headers, m2m_now(config));
		/* A pure acknowledgement numbered behind what waits: that has not passed with it. */
		if (state & M2M_CHANGE_SUBSTREAM && !m2m_payload(headers) &&
		    m2m_seq_after(headers->seq, change->checkpoint))
			headers->seq = change->checkpoint;
	}
	if (state & M2M_CHANGE_WATCH && headers->tcp_flags & M2M_TCP_ACK &&
	    !m2m_seq_after(change->ack, headers->ack) &&
	    __sync_fetch_and_and(&change->state, ~M2M_CHANGE_WATCH) & M2M_CHANGE_WATCH &&
	    !m2m_tell(entry, M2M_EVENT_ACKED, change->watch_serial))
		__sync_fetch_and_or(&change->state, M2M_CHANGE_WATCH); /* by the next one */
	if (state & M2M_CHANGE_REDIRECT)
		m2m_take_redirect(key, edit);
	return M2M_GO_ON;
}

/* It has been counted by its entry: count it for the rewrite it has got, too. */
static __noinline int m2m_count_change(const struct m2m_key *key, struct m2m_entry *entry,
				       u32 packets)
{
	struct m2m_change *change;
	struct m2m_redirect *to;

	if (!key || !entry)
		return 0;
	change = bpf_map_lookup_elem(&changes, key);
	if (change && change->state & M2M_CHANGE_COUNT &&
	    *(const volatile u64 *)&entry->packets >= change->count &&
	    __sync_fetch_and_and(&change->state, ~M2M_CHANGE_COUNT) & M2M_CHANGE_COUNT)
		m2m_tell(entry, M2M_EVENT_COUNTED, change->count_serial);
	to = bpf_map_lookup_elem(&redirects, key);
	if (to)
		__sync_fetch_and_add(&to->packets, packets);
	return 0;
}

#endif /* M2M_BPF_CHANGE_H */
