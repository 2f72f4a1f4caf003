"""``python -m nf_adapters.skb --queue N``: squeeze or restore what netfilter queues.

A packet with the mark is restored, any other one squeezed; which of them come, the rules say
(``docs/inline-nfs.md``). It ends by SIGTERM or SIGINT, and tells what it has done.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

import structlog
from netfilterqueue import Packet

from m2m import logs
from m2m.errors import M2MError
from nf_adapters.skb.serving import serve
from nf_adapters.skb.squeeze import Garbled, is_squeezed, restore, squeeze

_log = structlog.get_logger()


class Squeezer:
    """Gives a verdict on each packet, and counts."""

    def __init__(self) -> None:
        self.counts = Counter(squeezed=0, saved=0, unchanged=0, restored=0, garbled=0)

    def judge(self, packet: Packet) -> None:
        """Let it go on as it is now to be; one that cannot be restored is dropped."""
        data = packet.get_payload()
        if is_squeezed(data):
            try:
                packet.set_payload(restore(data))
            except Garbled as error:
                if not self.counts["garbled"]:
                    _log.warning("packet dropped, others are only counted", why=str(error))
                self.counts["garbled"] += 1
                packet.drop()
                return
            self.counts["restored"] += 1
        elif (made := squeeze(data)) is not None:
            packet.set_payload(made)
            self.counts["squeezed"] += 1
            self.counts["saved"] += len(data) - len(made)  # octets
        else:
            self.counts["unchanged"] += 1
        packet.accept()


def main() -> int:
    """Serve the queue until a signal comes; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m nf_adapters.skb", description=__doc__)
    parser.add_argument("--queue", type=int, required=True, help="netfilter queue, 0 to 32767")
    number = parser.parse_args().queue
    logs.configure()
    squeezer = Squeezer()
    serve(number, squeezer.judge)
    _log.info("ended", queue=number, **squeezer.counts)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except M2MError as error:
        sys.exit(str(error))
