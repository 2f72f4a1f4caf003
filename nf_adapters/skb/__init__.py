"""An inline network function that changes payloads: a pair that squeezes them on one stretch.

It works on packets as the host's own stack has them, from a netfilter queue, and knows nothing of
M2M: what it and the rules that queue for it see are supersessions (``docs/inline-nfs.md``).

:mod:`nf_adapters.skb.squeeze` is the format, ``python -m nf_adapters.skb`` the function.
"""
