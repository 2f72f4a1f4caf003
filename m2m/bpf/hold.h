/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What hold.bpf.c and m2m/datapath/hold.py share: how many packets wait in the netfilter queue.
 *
 * Order is strict because packets are counted twice: by BPF when they go to the queue, by the
 * agent after they have left it (its verdict re-injects them before the call returns). As long as
 * the counts of a flow differ, its later packets go to the queue too, entries or not.
 */
#ifndef M2M_BPF_HOLD_H
#define M2M_BPF_HOLD_H

#include "core/tuple.h"

/* All flows together. One instance. */
struct m2m_hold_state {
	u64 queued;   /* packets sent to the queue; written by BPF */
	u64 released; /* packets that have left it again; written by the agent */
	u64 limit;    /* packets that may wait */
};

/*
 * One UDP flow, by the tuple of its entry's key. TCP needs none: what is held there is a SYN and
 * its repetitions, and nothing else of the flow can come before it is answered.
 */
struct m2m_hold_record {
	u64 queued;
	u64 released;
	u64 since; /* ns, CLOCK_MONOTONIC: when the last packet was queued */
};

/* What the program `settle` is asked and answers; m2m.datapath.hold packs the same layout. */
struct m2m_settle {
	struct m2m_tuple flow; /* of its entry's key: M2M_HOOK_OUT */
	u64 released;	/* in: packets of the flow that have left since the last time */
	u64 quiet;	/* in: ns; forget a flow with none waiting and none queued for longer; 0: keep */
	u32 refused;	/* in: packets to count as M2M_REFUSED */
	u32 overflowed; /* in: packets to count as M2M_HOLD_OVERFLOW */
	u32 waiting;	/* out: packets of the flow that are still on their way through the queue */
	u32 kept;	/* out: whether there is a record of the flow */
};

_Static_assert(sizeof(struct m2m_settle) == 72, "packed in Python");

#endif /* M2M_BPF_HOLD_H */
