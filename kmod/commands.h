/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the files that carry out the agent's commands share (netlink.c, answer.c, agent.c,
 * settings.c, rows.c, changes.c, notes.c), and events.c.
 */
#ifndef M2M_COMMANDS_H
#define M2M_COMMANDS_H

#include <net/genetlink.h>

#include "module.h"

/* A row as it travels (M2M_A_ROWS). */
struct m2m_flat_row {
	struct m2m_key4 key;
	struct m2m_entry entry;
	struct m2m_splice splice; /* where entry.flags has M2M_SPLICED */
	u32 zero;
};

#define M2M_HAS(attribute) (1ull << (attribute))

/**
 * struct m2m_command - one of the agent's commands
 * @run: under &m2m_net.lock; %NULL for those that take or give it back themselves, and for dumps
 * @needs: attributes that must be there
 * @takes: others that may
 * @dump: append as much as there is room for, from @at on; how many that were. Under the lock too
 * @anybody: it changes nothing
 */
struct m2m_command {
	int (*run)(struct m2m_state *state, struct genl_info *info);
	u64 needs;
	u64 takes;
	int (*dump)(struct m2m_state *state, struct sk_buff *skb, unsigned long *at);
	bool anybody;
};

extern struct genl_family m2m_family;

int m2m_refuse(struct genl_info *info, const void *where, int error, const char *why);
int m2m_array_of(struct genl_info *info, int attribute, size_t size, const void **items);
#define m2m_array(info, attribute, items) \
	m2m_array_of(info, attribute, sizeof(**(items)), (const void **)(items))
struct sk_buff *m2m_reply(struct genl_info *info, size_t size, void **head);
int m2m_answer(struct genl_info *info, struct sk_buff *message, void *head);
int m2m_answer_with(struct genl_info *info, int attribute, const void *data, size_t size);

extern struct notifier_block m2m_releases;

int m2m_do_open(struct m2m_net *here, struct genl_info *info);
int m2m_do_close(struct m2m_net *here, struct genl_info *info);

int m2m_do_beat(struct m2m_state *state, struct genl_info *info);
int m2m_set_links(struct m2m_state *state, struct genl_info *info);
int m2m_set_addresses(struct m2m_state *state, struct genl_info *info);
int m2m_set_rules(struct m2m_state *state, struct genl_info *info);
int m2m_get_reasons(struct m2m_state *state, struct genl_info *info);

int m2m_set_notes(struct m2m_state *state, struct genl_info *info);
int m2m_del_notes(struct m2m_state *state, struct genl_info *info);
int m2m_dump_notes(struct m2m_state *state, struct sk_buff *skb, unsigned long *at);

int m2m_set_rows(struct m2m_state *state, struct genl_info *info);
int m2m_del_rows(struct m2m_state *state, struct genl_info *info);
int m2m_get_rows(struct m2m_state *state, struct genl_info *info);
int m2m_dump_rows(struct m2m_state *state, struct sk_buff *skb, unsigned long *at);
int m2m_check_row(struct genl_info *info, const struct m2m_flat_row *row);
struct m2m_row *m2m_session_row(struct m2m_state *state, struct genl_info *info,
				const struct m2m_key4 *key);

int m2m_do_redirect(struct m2m_state *state, struct genl_info *info);
int m2m_do_hold(struct m2m_state *state, struct genl_info *info);
int m2m_do_resume(struct m2m_state *state, struct genl_info *info);
int m2m_do_watch_ack(struct m2m_state *state, struct genl_info *info);
int m2m_do_watch_count(struct m2m_state *state, struct genl_info *info);
int m2m_do_inherit(struct m2m_state *state, struct genl_info *info);
int m2m_do_release(struct m2m_state *state, struct genl_info *info);

#endif /* M2M_COMMANDS_H */
