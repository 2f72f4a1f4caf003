"""A program's agent that does not answer for a while."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path

from nf_adapters.sockets import SIZE, Kind, Message, decode, encode

_AT_ONCE = 20
_PROGRAM = f"""
import socket, sys, threading
from nf_adapters.sockets import m2m_nf

listener = socket.create_server(("127.0.0.1", 0))
socket.create_connection(listener.getsockname())
accepted, _ = listener.accept()
asking = [threading.Thread(target=m2m_nf.accepted, args=(accepted,)) for _ in range({_AT_ONCE})]
for thread in asking:
    thread.start()
for thread in asking:
    thread.join()
print("nobody has answered", flush=True)
sys.stdin.readline()
m2m_nf.accepted(accepted)
"""


def test_questions_that_wait_at_once_are_one_silence(tmp_path: Path) -> None:
    """An agent that was busy once, when many asked, is asked again by the next."""
    path = tmp_path / "host.proxy"
    heard: list[Message] = []
    answers = threading.Event()

    def talk(process: socket.socket) -> None:
        with process:
            while data := process.recv(SIZE):
                heard.append(decode(data))
                if answers.is_set():
                    process.send(encode(Message(Kind.UNKNOWN, heard[-1].number)))

    def serve() -> None:
        while True:
            try:
                process, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(process,), daemon=True).start()

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(_AT_ONCE)
        threading.Thread(target=serve, daemon=True).start()
        with subprocess.Popen(
            [sys.executable, "-c", _PROGRAM], text=True, env={"M2M_SOCKETS": str(path)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as program:  # fmt: skip
            assert program.stdout is not None
            assert program.stdout.readline() == "nobody has answered\n"
            assert len(heard) == _AT_ONCE
            answers.set()
            program.communicate("now\n", timeout=20)
        assert program.returncode == 0
        assert [one.kind for one in heard] == [Kind.ACCEPTED] * (_AT_ONCE + 1)
        listener.shutdown(socket.SHUT_RDWR)
