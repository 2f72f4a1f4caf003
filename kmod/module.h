/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the files of the module share. docs/kmod.md says how they fit together.
 *
 * Locks, in the order they are taken:
 *
 *    rtnl ─► m2m_net.lock (mutex): the agent's commands, expiry, the sweeper's pass, devices
 *            └─► m2m_row.lock (spin, bh): one row and what waits for it; packets take it
 *                └─► m2m_table.lock (spin, bh): insertion and removal
 *
 * Nothing is sent, and no event told, under a spin lock.
 */
#ifndef M2M_MODULE_H
#define M2M_MODULE_H

#include <linux/jiffies.h>
#include <linux/mutex.h>
#include <linux/netfilter.h>
#include <linux/rcupdate.h>
#include <linux/skbuff.h>
#include <linux/spinlock.h>
#include <linux/timekeeping.h>
#include <linux/workqueue.h>
#include <net/net_namespace.h>
#include <net/route.h>

#include "core/core.h"
#include "packet.h"
#include "uapi/m2m.h"

/* -- where packets go (hop.c, send.c) ----------------------------------------------------- */

/**
 * struct m2m_hop - a neighbour to which rows send
 * @node: in &m2m_state.hops
 * @ifindex: of the interface
 * @gateway: the neighbour's address
 * @users: rows; under &m2m_net.lock
 * @rt: a route made for it; %NULL when the interface has gone
 * @rcu: frees it when no packet can have found it
 */
struct m2m_hop {
	struct hlist_node node;
	u32 ifindex;
	__be32 gateway;
	u32 users;
	struct rtable __rcu *rt;
	struct rcu_head rcu;
};

struct m2m_state;

struct m2m_hop *m2m_hop_get(struct m2m_state *state, u32 ifindex, __be32 gateway);
void m2m_hop_put(struct m2m_hop *hop);
void m2m_hop_forget_device(struct m2m_state *state, int ifindex);
void m2m_hops_free(struct m2m_state *state);

int m2m_transmit(struct sk_buff *skb, struct rtable *rt);
bool m2m_reroute(struct sk_buff *skb, struct rtable *rt, const struct m2m_edit *edit);
void m2m_go_on(struct m2m_state *state, struct sk_buff *skb, struct nf_hook_state *at,
	       unsigned int verdict);

/* -- the table (table.c) ------------------------------------------------------------------ */

struct m2m_wait;

/* row->kind */
#define M2M_ROW_DECIDED 0   /* its entry counts */
#define M2M_ROW_UNDECIDED 1 /* first packets wait, and there is no entry yet */

/**
 * struct m2m_row - one row of the translation table
 * @node: in a bucket
 * @all: among all rows, in the order in which they have come
 * @key: never changes
 * @kind: M2M_ROW_DECIDED or M2M_ROW_UNDECIDED
 * @dead: taken out of the table: whoever still finds it has found nothing
 * @closing: its last waiting packets are just leaving; see m2m_see_them_off()
 * @reported: the agent has been told that its session is over
 * @counted: it takes one of the table's places
 * @port_diff: m2m_entry_port_diff() of its entry
 * @lock: of all that follows and can change
 * @splice: where the entry's flags have M2M_SPLICED; it takes no room of its own (192 octets)
 * @entry: as the other datapaths have it
 * @hop: where M2M_SEND leads; changed under &m2m_net.lock as well
 * @wait: while something waits or is watched, else %NULL
 * @rcu: frees it when no packet can have found it
 */
struct m2m_row {
	struct hlist_node node;
	struct list_head all;
	struct m2m_key4 key;
	u8 kind;
	bool dead;
	bool closing;
	bool reported;
	bool counted;
	u16 port_diff;
	spinlock_t lock; /* see above */
	struct m2m_splice splice;
	struct m2m_entry entry;
	struct m2m_hop *hop;
	struct m2m_wait *wait;
	struct rcu_head rcu;
};

struct m2m_table {
	spinlock_t lock; /* of the chains, of all, and of count */
	u32 seed[4];
	u64 factor;
	u32 shift;
	u32 mask;
	u32 room;  /* rows that may be counted */
	u32 count; /* of these, how many are */
	struct hlist_head *buckets;
	struct list_head all;
	struct m2m_row *coming; /* the sweeper's next; under &m2m_net.lock */
};

int m2m_table_init(struct m2m_table *table, u32 room);
void m2m_table_free(struct m2m_table *table);
struct m2m_row *m2m_table_after(const struct m2m_table *table, const struct m2m_row *row);
struct m2m_row *m2m_table_find(const struct m2m_table *table, const struct m2m_key4 *key);
struct m2m_row *m2m_row_new(const struct m2m_key4 *key, gfp_t gfp);
struct m2m_row *m2m_table_add(struct m2m_table *table, struct m2m_row *row);
void m2m_table_remove(struct m2m_table *table, struct m2m_row *row);
bool m2m_table_reserve(struct m2m_table *table, u32 rows);
void m2m_table_return(struct m2m_table *table, u32 rows);
void m2m_row_fill(struct m2m_row *row, const struct m2m_entry *entry,
		  const struct m2m_splice *splice, struct m2m_hop *hop, u32 now);
void m2m_row_redirect(struct m2m_row *row, const struct m2m_entry *entry,
		      const struct m2m_splice *splice, struct m2m_hop *hop);
void m2m_row_numbers(const struct m2m_row *row, struct m2m_headers *headers);
void m2m_row_read(struct m2m_row *row, struct m2m_entry *entry);
bool m2m_row_is_session(struct m2m_row *row);

/* -- fragments (fragments.c) -------------------------------------------------------------- */

struct m2m_fragments;

struct m2m_fragments *m2m_fragments_new(void);
void m2m_fragments_free(struct m2m_fragments *fragments);
void m2m_fragments_note(struct m2m_fragments *fragments, const struct m2m_key4 *key, __be16 id,
			u32 now);
bool m2m_fragments_find(struct m2m_fragments *fragments, struct m2m_key4 *key, __be16 id, u32 now);
bool m2m_fragments_pass(struct m2m_fragments *fragments, const struct m2m_key4 *key, u32 now);

/* -- what the agent has set, replaced as a whole (policy.c, state.c) ----------------------- */

struct m2m_links {
	struct rcu_head rcu;
	u32 count;
	u32 ifindex[];
};

struct m2m_addresses {
	struct rcu_head rcu;
	u32 count;
	bool any;
	__be32 v4[];
};

struct m2m_rules {
	struct rcu_head rcu;
	u32 count;
	u32 generation;
	struct m2m_rule rule[];
};

enum m2m_policy {
	M2M_POLICY_NONE,
	M2M_POLICY_OPEN,
	M2M_POLICY_CLOSED,
};

enum m2m_policy m2m_policy_of(const struct m2m_state *state, const struct m2m_key4 *key);

/* -- one namespace (state.c) -------------------------------------------------------------- */

struct m2m_reasons {
	u64 count[M2M_REASONS];
};

/**
 * struct m2m_state - what the agent of one network namespace has made
 * @net: the namespace
 * @here: what there is of it without an agent too
 * @ops: the hooks
 * @config: times, ports and the agent's last sign of life
 * @hold_packets: first packets that may wait, and packets of live sessions
 * @hold_jiffies: how long packets of a live session may
 * @forwarded: hold first packets of what is forwarded
 * @defragments: the kernel has been asked to put fragments together
 * @links: interfaces on which packets are translated
 * @addresses: the host's own
 * @rules: the policy
 * @table: the rows
 * @fragments: notes of fragments
 * @reasons: counters of each processor
 * @hops: neighbours; under &m2m_net.lock
 * @held: &m2m_wait.node of live sessions that are held; under &m2m_net.lock
 * @first_waiting: first packets that wait
 * @live_waiting: packets of live sessions that do
 * @undecided: rows of that kind
 * @first_serial: the last that was given out
 * @hold_work: ends holds that last too long
 * @sweep_work: finds sessions that are over
 * @sweep_again: tell of all ended sessions, the agent is a new one
 * @notes: by session; under &m2m_net.lock, as the three that follow
 * @notes_mask: their hash table's
 * @notes_count: how many there are
 * @notes_room: how many there may be
 */
struct m2m_state {
	struct net *net;
	struct m2m_net *here;
	struct nf_hook_ops ops[2];
	struct m2m_config config;
	u32 hold_packets;
	unsigned long hold_jiffies;
	bool forwarded;
	bool defragments;
	struct m2m_links __rcu *links;
	struct m2m_addresses __rcu *addresses;
	struct m2m_rules __rcu *rules;
	struct m2m_table table;
	struct m2m_fragments *fragments;
	struct m2m_reasons __percpu *reasons;
	struct hlist_head hops[64];
	struct list_head held;
	atomic_t first_waiting;
	atomic_t live_waiting;
	atomic_t undecided;
	atomic_t first_serial;
	struct delayed_work hold_work;
	struct delayed_work sweep_work;
	bool sweep_again;
	struct hlist_head *notes;
	u32 notes_mask;
	u32 notes_count;
	u32 notes_room;
};

/**
 * struct m2m_net - of each network namespace, whether M2M is used there or not
 * @lock: held by whoever changes something else than by carrying packets
 * @state: %NULL until an agent has opened it
 * @owner: netlink port of the agent; 0: none
 */
struct m2m_net {
	struct mutex lock; /* see above */
	struct m2m_state *state;
	u32 owner;
};

extern unsigned int m2m_net_id;

struct m2m_state *m2m_state_new(struct net *net, u32 sessions);
void m2m_state_unhook(struct m2m_state *state);
void m2m_state_free(struct m2m_state *state);
void m2m_state_leave(struct m2m_state *state);
void m2m_state_set_clock(struct m2m_state *state);

/* Ticks; a call into the clock would cost as much as the look-up. */
static inline u32 m2m_now(const struct m2m_state *state)
{
	return m2m_ticks_at(&state->config, get_jiffies_64());
}

static inline bool m2m_is_away(const struct m2m_state *state)
{
	u64 heartbeat = READ_ONCE(state->config.heartbeat);

	return !heartbeat || m2m_agent_away(&state->config, ktime_get_ns());
}

static inline void m2m_count(const struct m2m_state *state, enum m2m_reason reason, u32 packets)
{
	this_cpu_add(state->reasons->count[reason], packets);
}

/* -- packets meet rows (hooks.c, datapath.c, icmp.c, rewrite.c) ----------------------------- */

int m2m_hooks_register(struct m2m_state *state);
void m2m_hooks_unregister(struct m2m_state *state);

unsigned int m2m_process(struct m2m_state *state, struct sk_buff *skb,
			 const struct nf_hook_state *at, const __be16 *ports, u8 hook);
unsigned int m2m_meet(struct m2m_state *state, struct m2m_row *row, struct sk_buff *skb,
		      const struct nf_hook_state *at, struct m2m_headers *headers, u8 hook,
		      bool released);
unsigned int m2m_process_icmp(struct m2m_state *state, struct sk_buff *skb,
			      const struct nf_hook_state *at, u8 hook);
int m2m_rewrite(struct sk_buff *skb, const struct m2m_headers *headers,
		const struct m2m_edit *edit, bool hop);
int m2m_rewrite_quoted(struct sk_buff *skb, u32 icmp, const struct m2m_headers *quoted,
		       const struct m2m_edit *edit, bool hop);

/* -- waiting (queue.c, wait.c, drain.c, hold.c, split.c) ------------------------------------ */

/* wait->state */
#define M2M_WAIT_FIRST 0x01	/* first packets wait */
#define M2M_WAIT_HOLD 0x02	/* packets of a live session wait */
#define M2M_WAIT_SUBSTREAM 0x04 /* of those, what is beyond the checkpoint */
#define M2M_WAIT_DRAINING 0x08	/* they are leaving: whoever comes now is behind them */
#define M2M_WAIT_OVERFLOW 0x10	/* too many: to be let go */
#define M2M_WAIT_ACK 0x20	/* an acknowledgement is to be told */
#define M2M_WAIT_COUNT 0x40	/* a number of packets is to be told */
/* ... has not been told yet */
#define M2M_UNTOLD_HELD 0x100
#define M2M_UNTOLD_OVERFLOW 0x200
#define M2M_UNTOLD_ACK 0x400
#define M2M_UNTOLD_COUNT 0x800
#define M2M_UNTOLD 0xf00

/**
 * struct m2m_wait - what waits for a row, and what is watched of it; under its lock
 * @row: whose it is
 * @node: in &m2m_state.held
 * @state: M2M_WAIT_*
 * @checkpoint: of a substream
 * @ack: the number to tell of
 * @first_serial: tells one wait of first packets from the next
 * @hold_serial: of the command that asked for it
 * @ack_serial: as well
 * @count_serial: as well
 * @count: the number of packets to tell of
 * @until: jiffies
 * @queue: &m2m_parcel.node, in their order
 * @queued: how many
 * @held: how many since the hold began
 */
struct m2m_wait {
	struct m2m_row *row;
	struct list_head node;
	u32 state;
	u32 checkpoint;
	u32 ack;
	u32 first_serial;
	u32 hold_serial;
	u32 ack_serial;
	u32 count_serial;
	u64 count;
	unsigned long until;
	struct list_head queue;
	u32 queued;
	u32 held;
};

enum m2m_met {
	M2M_MET_GO_ON,	/* the packet, or what is left of it, goes on */
	M2M_MET_TAKEN,	/* it waits */
	M2M_MET_DROP,
};

struct m2m_wait *m2m_wait_take(struct m2m_row *row, struct m2m_wait *fresh);
struct m2m_wait *m2m_wait_of(struct m2m_row *row, gfp_t gfp);
void m2m_wait_done(struct m2m_row *row);
enum m2m_met m2m_wait_meet(struct m2m_state *state, struct m2m_row *row, struct sk_buff *skb,
			   const struct nf_hook_state *at, struct m2m_headers *headers, u8 hook,
			   struct sk_buff **extra, u32 *tell);
int m2m_wait_first(struct m2m_state *state, struct m2m_row *row, struct sk_buff *skb,
		   const struct nf_hook_state *at, u32 *tell);
void m2m_see_them_off(const struct m2m_row *row);
u32 m2m_drain(struct m2m_state *state, struct m2m_row *row);
void m2m_discard(struct m2m_state *state, struct m2m_row *row);
void m2m_hold_begin(struct m2m_state *state, struct m2m_row *row, struct m2m_wait *fresh,
		    u32 serial, bool substream, struct m2m_result *result);
u32 m2m_hold_end(struct m2m_state *state, struct m2m_row *row);
void m2m_hold_work(struct work_struct *work);
void m2m_hold_kick(struct m2m_state *state, unsigned long delay);
void m2m_release_all(struct m2m_state *state);
void m2m_wait_purge(struct m2m_state *state);

struct sk_buff *m2m_split(struct sk_buff *skb, const struct m2m_headers *headers, u32 number);
struct sk_buff *m2m_acknowledgement(struct sk_buff *skb, const struct m2m_headers *headers);

/* -- the rest ------------------------------------------------------------------------------ */

void m2m_sweep_work(struct work_struct *work);

int m2m_notes_init(struct m2m_state *state, u32 room);
void m2m_notes_free(struct m2m_state *state);

bool m2m_tell_held(struct m2m_state *state, const struct m2m_key4 *key, u32 serial);
bool m2m_tell_ended(struct m2m_state *state, u64 session, enum m2m_end end);
void m2m_tell_row(struct m2m_state *state, struct m2m_row *row, u32 untold);

int m2m_netlink_init(void);
void m2m_netlink_exit(void);

#endif /* M2M_MODULE_H */
