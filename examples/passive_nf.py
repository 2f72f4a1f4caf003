#!/usr/bin/python3
"""A passive network function in a few lines: who speaks with whom, and how much.

It knows nothing of M2M. On a middlebox, with Debian's python3-pcapy:

    sudo m2m-nf run --once --nf ids -- /usr/bin/python3 passive_nf.py eth0 'tcp port 80'

prints the supersessions that pass, whatever subsessions carry them.
"""

import socket
import struct
import sys
from collections import Counter

import pcapy

device, *text = sys.argv[1:]
reader = pcapy.open_live(device, 128, 0, 100)
if text:
    reader.setfilter(text[0])
print("watching", device, flush=True)
octets = Counter()
while True:
    header, frame = reader.next()
    if header is None or frame[12:14] != b"\x08\x00":
        continue
    at = 14 + (frame[14] & 15) * 4
    sport, dport = struct.unpack_from("!HH", frame, at)
    flow = socket.inet_ntoa(frame[26:30]), sport, socket.inet_ntoa(frame[30:34]), dport
    octets[flow] += header.getlen()
    print("%s:%d > %s:%d" % flow, octets[flow], "octets", flush=True)
