"""Network functions that need help to take part (see ``README.md`` beside this file).

pcap/    captures that show supersessions: the mapping, and the C that the patched libpcap calls
state/   moving what a function knows about a session to another instance of it
"""
