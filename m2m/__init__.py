"""M2M: live sessions of mobile users, steered through chains of network functions.

The rooms of the package, each importing only from those above it::

    errors      what a person is told when something is wrong
    auth        the domain key under which everything is authenticated
    logs        what the daemons write to standard error
    protocol    sans-IO: flows, wire format, the session machines, port allocation
    policy      the language, its compiler, the policy server and its store
    datapath    the contract that the kernel part fulfils, and its implementations
    bpf         the BPF programs themselves (C)
    agent       the Trio shell: one agent per host
    lab         network-namespace topologies for demo, tests and benches
    cli         m2m-agent, m2m-policy, m2mctl, m2m-lab
"""

__version__ = "0.1.0"
