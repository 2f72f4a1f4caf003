"""TCP sessions by the thousand: a program that tests run inside their hosts.

``python -m tests.support.connects serve PORT`` accepts, and closes after the other side.
``python -m tests.support.connects open ADDRESS PORT COUNT`` opens and closes so many, one after
the other, each from a port of its own; every second one is reset.
"""

import socket
import struct
import sys

_FIRST = 30000  # of the client's ports; the kernel would soon choose one again that was reset


def serve(port: int) -> None:
    listener = socket.create_server(("", port), backlog=64)
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    while True:
        there, _ = listener.accept()
        with there:
            try:
                there.sendall(there.recv(1))
                there.recv(1)
            except ConnectionResetError:
                continue


def connect(address: str, port: int, count: int) -> None:
    for number in range(count):
        own = ("", _FIRST + number)
        with socket.create_connection((address, port), timeout=10, source_address=own) as here:
            here.sendall(b"x")
            assert here.recv(1) == b"x"
            if number % 2:
                here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", port]:
            serve(int(port))
        case ["open", address, port, count]:
            connect(address, int(port), int(count))
        case _:
            sys.exit(__doc__)
