// SPDX-License-Identifier: GPL-2.0
/*
 * ICMP errors about packets of sessions. They travel like packets of the session's other
 * direction, by its row: so the sender hears of a closed port or too small a link, and in its own
 * terms. They neither count nor wait.
 */
#include <linux/icmp.h>
#include <linux/ip.h>
#include <net/ip.h>

#include "module.h"

static bool is_error(u8 type)
{
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED ||
	       type == ICMP_PARAMETERPROB || type == ICMP_SOURCE_QUENCH;
}

/* The packet that is quoted, and the key of the row for the other direction. */
static bool read_quoted(const struct sk_buff *skb, u32 icmp, u8 hook, struct m2m_headers *quoted,
			struct m2m_key4 *key)
{
	struct icmphdr error_store;
	const struct icmphdr *error = skb_header_pointer(skb, icmp, sizeof(*error), &error_store);
	u32 inner = icmp + sizeof(*error);
	struct iphdr ip_store;
	const struct iphdr *ip;
	__be16 port_store[4];
	const __be16 *ports;

	if (!error || !is_error(error->type))
		return false;
	ip = skb_header_pointer(skb, inner, sizeof(*ip), &ip_store);
	if (!ip || ip->version != 4 || ip->ihl < 5 || ip->frag_off & htons(IP_OFFSET) ||
	    (ip->protocol != M2M_PROTO_TCP && ip->protocol != M2M_PROTO_UDP))
		return false;
	*quoted = (struct m2m_headers){.l4 = ip->ihl * 4, .proto = ip->protocol};
	*key = (struct m2m_key4){
		.src = ip->daddr,
		.dst = ip->saddr,
		.proto = ip->protocol,
		.hook = hook,
	};
	ports = skb_header_pointer(skb, inner + quoted->l4, sizeof(port_store), port_store);
	if (!ports)
		return false;
	key->sport = ports[1];
	key->dport = ports[0];
	return true;
}

unsigned int m2m_process_icmp(struct m2m_state *state, struct sk_buff *skb,
			      const struct nf_hook_state *at, u8 hook)
{
	struct m2m_headers quoted;
	struct m2m_packet packet;
	enum m2m_verdict verdict;
	enum m2m_reason reason;
	struct rtable *rt = NULL;
	struct m2m_edit edit;
	struct m2m_key4 key;
	struct m2m_row *row;
	struct m2m_key wide;
	const struct m2m_hop *hop;
	bool sends;

	if (ip_is_fragment(ip_hdr(skb)) || ip_hdr(skb)->ihl < 5 ||
	    !read_quoted(skb, ip_hdrlen(skb), hook, &quoted, &key))
		return NF_ACCEPT;
	row = m2m_table_find(&state->table, &key);
	if (!row)
		return NF_ACCEPT;
	spin_lock(&row->lock);
	if (!m2m_row_is_session(row)) {
		spin_unlock(&row->lock);
		return NF_ACCEPT;
	}
	m2m_key_widen(&wide, &key);
	m2m_edit_of(&edit, &wide, &row->entry);
	edit.splice = row->splice;
	hop = row->hop;
	if (hop)
		rt = rcu_dereference(hop->rt);
	spin_unlock(&row->lock);

	packet.hook = hook;
	packet.ttl = ip_hdr(skb)->ttl;
	packet.wire_len = skb->len;
	verdict = m2m_judge(&edit, &packet, m2m_now(state), &reason);
	sends = verdict == M2M_VERDICT_SEND;
	if (sends && !rt) {
		verdict = M2M_VERDICT_DROP;
		reason = M2M_NO_NEIGHBOUR;
	}
	if (verdict == M2M_VERDICT_DROP) {
		m2m_count(state, reason, 1);
		return NF_DROP;
	}
	if (m2m_rewrite_quoted(skb, ip_hdrlen(skb), &quoted, &edit,
			       sends && hook == M2M_HOOK_IN)) {
		m2m_count(state, M2M_TRUNCATED, 1);
		return NF_DROP;
	}
	if (!sends)
		return NF_ACCEPT;
	if (hook == M2M_HOOK_OUT && m2m_reroute(skb, rt, &edit))
		return NF_ACCEPT;
	if (hook == M2M_HOOK_IN && !m2m_transmit(skb, rt))
		return NF_STOLEN;
	m2m_count(state, M2M_NO_NEIGHBOUR, 1);
	return hook == M2M_HOOK_IN ? NF_STOLEN : NF_DROP;
}
