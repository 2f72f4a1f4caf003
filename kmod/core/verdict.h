/* SPDX-License-Identifier: GPL-2.0 */
/* What becomes of a packet, and why. Numbers are part of the contract with user space. */
#ifndef M2M_CORE_VERDICT_H
#define M2M_CORE_VERDICT_H

/* m2m.datapath.Reason, one counter each. */
enum m2m_reason {
	M2M_NO_ENTRY = 0,	  /* to our subsession ports, but of no session: dropped */
	M2M_TOO_BIG = 1,	  /* larger than the next link's MTU: dropped */
	M2M_TTL_EXPIRED = 2,	  /* dropped */
	M2M_NO_NEIGHBOUR = 3,	  /* the entry has no next hop to send to: dropped */
	M2M_TRUNCATED = 4,	  /* headers cut short: dropped */
	M2M_FRAGMENT_UNKNOWN = 5, /* a later fragment whose first was not seen: dropped */
	M2M_REFUSED = 6,	  /* no chain, and the policy fails closed: dropped */
	M2M_PASSED = 7,		  /* no chain, and the policy fails open: sent on unsteered */
	M2M_HELD = 8,		  /* waiting for its chain */
	M2M_HOLD_OVERFLOW = 9,	  /* too many packets waiting: dropped */
	M2M_AGENT_AWAY_OPEN = 10,   /* no agent, policy fails open: sent on unsteered */
	M2M_AGENT_AWAY_CLOSED = 11, /* no agent, policy fails closed: dropped */
	M2M_NOT_SPLICED = 12,	    /* a SYN cannot go through a splice: dropped */
	M2M_REASONS = 13,
};

/* What a datapath does with the packet after m2m_judge(). */
enum m2m_verdict {
	M2M_VERDICT_PASS = 0,	 /* untouched, as if M2M were not there */
	M2M_VERDICT_DELIVER = 1, /* edit it, then on to the host's own stack */
	M2M_VERDICT_SEND = 2,	 /* edit it, then to the entry's next hop */
	M2M_VERDICT_DROP = 3,	 /* and count the reason */
	M2M_VERDICT_HOLD = 4,	 /* keep it until the agent has decided */
};

#endif /* M2M_CORE_VERDICT_H */
