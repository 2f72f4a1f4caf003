"""The kernel module where one can be loaded: Debian's kernel in a virtual machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_TREE = Path(__file__).resolve().parents[2]
_HERE = _TREE / "tests/vm"
# Emulated processors are slow: one machine, and of `make test-vm` what tells most; the last one has
# the verifier of Debian's kernel look at the other datapath's programs, too.
_CHOSEN = (
    "tests/datapath/test_contract_entries.py tests/datapath/test_contract_migration.py"
    " tests/kmod/test_session.py tests/kmod/test_lifetimes.py::test_the_module_goes_under_packets"
    " tests/kmod/test_choose.py::test_sessions_are_taken_over_where_they_are"
)
# The tests pass; and had the kernel complained, that would have been noticed.
_SCRIPT = f"""
{_HERE}/with-module {sys.executable} -m pytest -q -k kmod --durations=15 {_CHOSEN} &&
! {_HERE}/with-module sh -c 'echo "BUG: made up by a test" >/dev/kmsg'
"""


@pytest.mark.needs("vm")
@pytest.mark.timeout(900)
def test_the_module_on_debians_kernel() -> None:
    subprocess.run([_TREE / "kmod/build", "--headers", "linux-headers-amd64"], check=True)
    done = subprocess.run(
        [_HERE / "boot.py", "--", "bash", "-c", _SCRIPT],
        capture_output=True,
        text=True,
        check=False,
    )
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BUG: made up by a test" in done.stdout
