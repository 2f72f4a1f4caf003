"""Programs that a lab runs inside its hosts to load a chain, and to see what the load went through.

:mod:`~m2m.lab.traffic.bulk` moves checked bytes over TCP, :mod:`~m2m.lab.traffic.datagrams`
numbered datagrams over UDP. Each is started as ``python -m``, prints one JSON object and is paired
with a ``serve`` of its own. Both move 1 Gbit/s with a small part of one processor.
"""
