// SPDX-License-Identifier: GPL-2.0
/*
 * What the kernel knows of one of this network namespace's TCP sockets, all of it at one moment, and
 * without a trace in the connection (docs/splicing.md). No packet ever meets this program: the agent runs
 * it, and what it asks and is told stands in a frame of its own.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "core/types.h"

/* What is read of the kernel's own; where it lies there the loader finds out (CO-RE). */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct sock_common {
	volatile unsigned char skc_state;
};

struct sock {
	struct sock_common __sk_common;
};

struct inet_sock {
	struct sock sk;
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
};

struct tcp_options_received {
	u32 ts_recent;
	u16 tstamp_ok : 1, wscale_ok : 1, sack_ok : 3, snd_wscale : 4, rcv_wscale : 4;
	u16 mss_clamp;
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	struct tcp_options_received rx_opt;
	u32 rcv_nxt, copied_seq, rcv_wup;
	u32 snd_nxt, snd_una, write_seq;
	u32 max_window;
	u16 advmss;
	u16 urg_data;
	u8 ecn_flags;
};

#pragma clang attribute pop

/* Behind an Ethernet header of zeros; packed in Python (m2m.datapath.tcp_sockets). */
struct m2m_tcp_question {
	__be32 local;
	__be32 peer;
	__be16 local_port;
	__be16 peer_port;
	u32 zero;
};

struct m2m_tcp_answer {
	u32 state; /* 0: there is no such socket */
	u32 receives, read, told; /* next number; of these read by the program, acknowledged */
	u32 sends, acked, written;
	u32 peer_clock; /* TSval */
	u32 peer_window;
	u16 mss;      /* that it has announced */
	u16 peer_mss;
	u8 scales;    /* ours, its peer's above it */
	u8 options;
	u16 zero;
};

#define M2M_TCP_STAMPS 1
#define M2M_TCP_SACK 2
#define M2M_TCP_ECN 4
#define M2M_TCP_URGENT 8

_Static_assert(sizeof(struct m2m_tcp_question) == 16, "packed in Python");
_Static_assert(sizeof(struct m2m_tcp_answer) == 44, "packed in Python");

static __always_inline void m2m_tell_of(struct m2m_tcp_answer *answer, struct tcp_sock *tcp)
{
	answer->state = tcp->inet_conn.icsk_inet.sk.__sk_common.skc_state;
	answer->receives = tcp->rcv_nxt;
	answer->read = tcp->copied_seq;
	answer->told = tcp->rcv_wup;
	answer->sends = tcp->snd_nxt;
	answer->acked = tcp->snd_una;
	answer->written = tcp->write_seq;
	answer->peer_clock = tcp->rx_opt.ts_recent;
	answer->peer_window = tcp->max_window;
	answer->mss = tcp->advmss;
	answer->peer_mss = tcp->rx_opt.mss_clamp;
	if (BPF_CORE_READ_BITFIELD(tcp, rx_opt.wscale_ok))
		answer->scales = BPF_CORE_READ_BITFIELD(tcp, rx_opt.rcv_wscale) |
				 BPF_CORE_READ_BITFIELD(tcp, rx_opt.snd_wscale) << 4;
	if (BPF_CORE_READ_BITFIELD(tcp, rx_opt.tstamp_ok))
		answer->options |= M2M_TCP_STAMPS;
	if (BPF_CORE_READ_BITFIELD(tcp, rx_opt.sack_ok))
		answer->options |= M2M_TCP_SACK;
	if (tcp->ecn_flags)
		answer->options |= M2M_TCP_ECN;
	if (tcp->urg_data)
		answer->options |= M2M_TCP_URGENT;
}

SEC("tc")
int m2m_look_at_tcp(struct __sk_buff *skb)
{
	struct bpf_sock_tuple tuple = {};
	struct m2m_tcp_question question;
	struct m2m_tcp_answer answer = {};
	struct bpf_sock *sock;
	struct tcp_sock *tcp;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &question, sizeof(question)))
		return TC_ACT_SHOT;
	tuple.ipv4.saddr = question.peer;
	tuple.ipv4.daddr = question.local;
	tuple.ipv4.sport = question.peer_port;
	tuple.ipv4.dport = question.local_port;
	sock = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (sock) {
		tcp = (struct tcp_sock *)bpf_skc_to_tcp_sock(sock);
		if (tcp)
			m2m_tell_of(&answer, tcp);
		bpf_sk_release(sock);
	}
	bpf_skb_store_bytes(skb, ETH_HLEN + sizeof(question), &answer, sizeof(answer), 0);
	return TC_ACT_OK;
}

char _license[] SEC("license") = "GPL";
