"""What iptables is told, kept for tests to look at."""

from __future__ import annotations

from pathlib import Path

# Notes its arguments and its input, and answers as the file `answer` says, if there is one.
_STAND_IN = """#!/bin/sh
cd {place}
echo "$(basename "$0") $*" >> told
case "$0" in *restore) cat > rules;; esac
test ! -e answer || . ./answer
"""


class Iptables:
    """Stands in for iptables and iptables-restore."""

    def __init__(self, place: Path) -> None:
        self._place = place
        for name in ("iptables", "iptables-restore"):
            program = place / name
            program.write_text(_STAND_IN.format(place=place))
            program.chmod(0o755)

    def answers(self, script: str) -> None:
        (self._place / "answer").write_text(script)

    @property
    def told(self) -> list[str]:
        return (self._place / "told").read_text().splitlines()

    @property
    def rules(self) -> list[str]:
        return (self._place / "rules").read_text().splitlines()
