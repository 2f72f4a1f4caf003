// SPDX-License-Identifier: GPL-2.0
/* What commands of the agent are answered. */
#include "commands.h"

/* Refuse a command, saying why and about which octets of it. */
int m2m_refuse(struct genl_info *info, const void *where, int error, const char *why)
{
	if (info->extack) {
		info->extack->_msg = why;
		if (where)
			info->extack->bad_attr = where;
	}
	return error;
}

/* The elements of an array, and how many there are; an error when the last one is not whole. */
int m2m_array_of(struct genl_info *info, int attribute, size_t size, const void **items)
{
	const struct nlattr *array = info->attrs[attribute];

	if (nla_len(array) % size)
		return m2m_refuse(info, array, -EINVAL, "an array whose last element is not whole");
	*items = nla_data(array);
	return nla_len(array) / size;
}

struct sk_buff *m2m_reply(struct genl_info *info, size_t size, void **head)
{
	struct sk_buff *message = genlmsg_new(size, GFP_KERNEL);

	if (!message)
		return NULL;
	*head = genlmsg_put_reply(message, info, &m2m_family, 0, info->genlhdr->cmd);
	if (*head)
		return message;
	nlmsg_free(message);
	return NULL;
}

int m2m_answer(struct genl_info *info, struct sk_buff *message, void *head)
{
	genlmsg_end(message, head);
	return genlmsg_reply(message, info);
}

/* Answer with one attribute. */
int m2m_answer_with(struct genl_info *info, int attribute, const void *data, size_t size)
{
	struct sk_buff *message;
	void *head;

	message = m2m_reply(info, nla_total_size(size), &head);
	if (!message)
		return -ENOMEM;
	if (nla_put(message, attribute, size, data)) {
		nlmsg_free(message);
		return -EMSGSIZE;
	}
	return m2m_answer(info, message, head);
}
