// SPDX-License-Identifier: GPL-2.0
/* Wires the module up, and unwinds it. */
#include <linux/module.h>
#include <linux/netdevice.h>
#include <net/genetlink.h>
#include <net/netns/generic.h>

#include "module.h"

unsigned int m2m_net_id __read_mostly;

static int __net_init net_begins(struct net *net)
{
	struct m2m_net *here = net_generic(net, m2m_net_id);

	mutex_init(&here->lock);
	return 0;
}

/* A grace period follows, then net_ends(). */
static void __net_exit net_is_left(struct net *net)
{
	struct m2m_net *here = net_generic(net, m2m_net_id);

	if (here->state)
		m2m_state_unhook(here->state);
}

static void __net_exit net_ends(struct net *net)
{
	struct m2m_net *here = net_generic(net, m2m_net_id);
	struct m2m_state *state = here->state;

	if (!state)
		return;
	cancel_delayed_work_sync(&state->hold_work);
	cancel_delayed_work_sync(&state->sweep_work);
	here->state = NULL;
	m2m_state_free(state);
}

static struct pernet_operations namespaces = {
	.init = net_begins,
	.pre_exit = net_is_left,
	.exit = net_ends,
	.id = &m2m_net_id,
	.size = sizeof(struct m2m_net),
};

static int device_changes(struct notifier_block *block, unsigned long event, void *about)
{
	struct net_device *device = netdev_notifier_info_to_dev(about);
	struct m2m_net *here = net_generic(dev_net(device), m2m_net_id);

	if (event != NETDEV_UNREGISTER)
		return NOTIFY_DONE;
	mutex_lock(&here->lock);
	if (here->state)
		m2m_hop_forget_device(here->state, device->ifindex);
	mutex_unlock(&here->lock);
	return NOTIFY_DONE;
}

static struct notifier_block devices = { .notifier_call = device_changes };

static int __init m2m_init(void)
{
	int error = register_pernet_subsys(&namespaces);

	if (error)
		return error;
	error = register_netdevice_notifier(&devices);
	if (error)
		goto no_devices;
	error = m2m_netlink_init();
	if (error)
		goto no_netlink;
	return 0;
no_netlink:
	unregister_netdevice_notifier(&devices);
no_devices:
	unregister_pernet_subsys(&namespaces);
	return error;
}

static void __exit m2m_exit(void)
{
	m2m_netlink_exit();
	unregister_netdevice_notifier(&devices);
	unregister_pernet_subsys(&namespaces);
}

module_init(m2m_init);
module_exit(m2m_exit);

MODULE_DESCRIPTION("M2M: live sessions steered through chains of network functions");
MODULE_LICENSE("GPL");
MODULE_ALIAS_GENL_FAMILY(M2M_GENL_NAME);
