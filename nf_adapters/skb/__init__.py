"""Inline network functions that change payloads, as examples.

They work on packets as the host's own stack has them, from a netfilter queue: what they and the
rules that queue for them see are supersessions (``docs/inline-nfs.md``).

A pair squeezes payloads on one stretch, and knows nothing of M2M: :mod:`nf_adapters.skb.squeeze` is
the format, ``python -m nf_adapters.skb`` the function. Another one puts a line into requests, and
leaves their sessions: :mod:`nf_adapters.skb.insertion` is the arithmetic, ``python -m
nf_adapters.skb.seen_by`` the function, :mod:`nf_adapters.skb.leaving` for any that leaves.
"""
