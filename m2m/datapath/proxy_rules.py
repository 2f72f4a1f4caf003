"""The iptables rule that leads sessions to the proxy of this host.

Their first packets are marked by the datapath as it delivers them, though their destination is
another host's (``docs/proxies.md``). Connection tracking does the same with all that follow, and
tells the proxy where the client wanted to go.
"""

from __future__ import annotations

from m2m.datapath._core import PROXY_MARK
from m2m.datapath.iptables import iptables, restore
from m2m.errors import UnsupportedHost

__all__ = ["CHAIN", "install", "remove"]

CHAIN = "M2M-PROXY"
_JUMP = ("PREROUTING", "-p", "tcp", "-m", "mark", "--mark", hex(PROXY_MARK), "-j", CHAIN)


def install(port: int) -> None:
    """Lead them to this *port* from now on; what connects already stays where it is.

    Raises :exc:`UnsupportedHost`.
    """
    said = restore(
        f"*nat\n:{CHAIN} - [0:0]\n-A {CHAIN} -p tcp -j REDIRECT --to-ports {port}\nCOMMIT\n"
    )
    if said is None and iptables("nat", "-C", *_JUMP) is not None:
        said = iptables("nat", "-I", *_JUMP)  # before rules of the host's own, which know no mark
    if said is not None:
        raise UnsupportedHost(
            f"the rule that leads sessions to a proxy cannot be installed ({said}); M2M needs "
            "iptables and a kernel with xt_mark and xt_REDIRECT "
            "(CONFIG_NETFILTER_XT_TARGET_REDIRECT)"
        )


def remove() -> None:
    """Take it out; it is no error when it is not there."""
    while iptables("nat", "-D", *_JUMP) is None:
        pass
    iptables("nat", "-F", CHAIN)
    iptables("nat", "-X", CHAIN)
