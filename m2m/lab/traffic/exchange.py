"""What messages between agents cost before anybody looks into them.

``python -m m2m.lab.traffic.exchange relay NEXT`` passes every datagram on to NEXT until it is
killed; ``... lead NEXT --number N --period MS`` sends one that way and waits until it is back, N
times, and prints the times in milliseconds as JSON. What they do with it is what every agent does,
and nothing else: a Trio task hears of it, its MAC is verified, and it is sealed anew and sent on
as control messages are. So this is the least that three messages of a change can take here.
"""

from __future__ import annotations

import argparse
import itertools
import socket
from collections.abc import Sequence
from time import perf_counter

import msgspec
import trio

from m2m.auth import DomainKey
from m2m.protocol.codec import MAC_SIZE

PORT = 5263
_SIZE = 300  # bytes, as an UPDATE-SYN has
_CS6, _INTERACTIVE = 48 << 2, 6  # as m2m.agent.transport marks messages
_PATIENCE = 1.0  # s until one counts as lost
_BROKEN = 3  # lost in a row: the way does not carry any


class Exchange:
    """One host's socket; it sends to *following*, and listens at all addresses or at one."""

    def __init__(self, following: str, address: str = "") -> None:
        self._to = (following, PORT)
        self._key = DomainKey.insecure()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _CS6)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _INTERACTIVE)
        self._socket.bind((address, PORT))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Seal and send on."""
        self._socket.sendto(data + self._key.mac(data), self._to)

    async def receive(self) -> bytes:
        """The next one that is whole and authentic."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            datagram = self._socket.recv(2048)
            data, mac = datagram[:-MAC_SIZE], datagram[-MAC_SIZE:]
            if self._key.verify(data, mac):
                return data


async def relay(exchange: Exchange) -> None:
    """Pass on, for ever."""
    print("listening", flush=True)
    while True:
        exchange.send(await exchange.receive())


async def lead(exchange: Exchange, number: int, period: float) -> list[float]:
    """Milliseconds of each round, one begun every *period* seconds. One that is lost, as any
    datagram can be under load, is made again.

    Raises :exc:`trio.TooSlowError` when some in a row do not come back.
    """
    took: list[float] = []
    missing = 0
    for round_ in itertools.count():
        if len(took) == number:
            break
        await trio.sleep(period)
        data = round_.to_bytes(_SIZE, "big")
        began = perf_counter()
        exchange.send(data)
        with trio.move_on_after(_PATIENCE) as waiting:
            while await exchange.receive() != data:
                pass
        if not waiting.cancelled_caught:
            took.append((perf_counter() - began) * 1e3)
            missing = 0
        elif (missing := missing + 1) == _BROKEN:
            raise trio.TooSlowError
    return took


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``relay`` or ``lead``."""
    parser = argparse.ArgumentParser(prog="m2m.lab.traffic.exchange")
    parser.add_argument("part", choices=("relay", "lead"))
    parser.add_argument("following", metavar="NEXT")
    parser.add_argument("--number", type=int, default=1)
    parser.add_argument("--period", type=float, default=100.0, metavar="MS")
    options = parser.parse_args(argv)
    exchange = Exchange(options.following)
    if options.part == "relay":
        trio.run(relay, exchange)
    else:
        times = trio.run(lead, exchange, options.number, options.period / 1e3)
        print(msgspec.json.encode(times).decode())


if __name__ == "__main__":
    main()
