/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the agent keeps with its sessions for the agent after it (m2m/datapath/notes.py). No program
 * looks at it: it is here because a pinned map outlives its agent, however that ends.
 */
#ifndef M2M_BPF_NOTES_H
#define M2M_BPF_NOTES_H

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "core/tuple.h"

#define M2M_NOTE_SIZE 72 /* NOTE_SIZE of m2m/datapath/__init__.py */

struct m2m_note {
	u8 octets[M2M_NOTE_SIZE];
};

/* By session. The loader sets max_entries; most sessions need no note, so memory is taken as they
 * come.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, struct m2m_note);
} notes SEC(".maps");

#endif /* M2M_BPF_NOTES_H */
