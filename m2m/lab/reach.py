"""Whether a host can be reached from one of this host's addresses.

``python -m m2m.lab.reach SOURCE ADDRESS PORT``: a connection that is accepted or refused has gone
there and back; the exit status is then 0.
"""

from __future__ import annotations

import socket
import sys

_PATIENCE = 5.0  # s


def reached(source: str, address: str, port: int) -> bool:
    """Raises :exc:`OSError` when *source* is no address of this host."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PATIENCE)
        probe.bind((source, 0))
        try:
            probe.connect((address, port))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return True


if __name__ == "__main__":
    begin, end, number = sys.argv[1:]
    there = reached(begin, end, int(number))
    print(f"{begin} {'reaches' if there else 'does not reach'} {end}")
    sys.exit(not there)
