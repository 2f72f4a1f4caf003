#!/usr/bin/env python3
"""A passive network function in a few lines: who speaks with whom, and how much.

It knows nothing of M2M. On a middlebox, with pypcap from PyPI (built with Debian's libpcap-dev):

    sudo m2m-nf run --once --nf ids -- python3 passive_nf.py eth0 'tcp port 80'

prints the supersessions that pass, whatever subsessions carry them.
"""

import socket
import struct
import sys
from collections import Counter

import pcap

device, *text = sys.argv[1:]
reader = pcap.pcap(device, snaplen=128, promisc=False, timeout_ms=100)
reader.setfilter(" ".join(text))
print("watching", device, flush=True)
octets = Counter()
for _, frame in reader:
    if frame[12:14] != b"\x08\x00":
        continue
    at = 14 + (frame[14] & 15) * 4
    sport, dport = struct.unpack_from("!HH", frame, at)
    flow = socket.inet_ntoa(frame[26:30]), sport, socket.inet_ntoa(frame[30:34]), dport
    octets[flow] += int.from_bytes(frame[16:18], "big")
    print("%s:%d > %s:%d" % flow, octets[flow], "octets", flush=True)
