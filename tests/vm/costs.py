#!/usr/bin/python3
"""What the module's steps cost in the kernel that runs (kmod/bench.c): nanoseconds, by percentile.

    sudo tests/vm/boot.py -- tests/vm/costs [ROWS]

In an emulated processor only how they compare means anything.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

BUILT = Path(os.environ.get("M2M_KMOD", Path.home() / ".cache/m2m/headers/built"))
RESULTS = Path("/sys/kernel/debug/m2m_bench")
SHOWN = (5, 25, 50, 75, 95, 99)


def main() -> int:
    rows = sys.argv[1] if len(sys.argv) > 1 else "100000"
    if not RESULTS.parent.is_dir() or not any(RESULTS.parent.iterdir()):
        subprocess.run(["mount", "-t", "debugfs", "debugfs", RESULTS.parent], check=True)
    module = BUILT / platform.release() / "m2m_bench.ko"
    subprocess.run(["insmod", module, f"rows={rows}"], check=True)
    try:
        print(f"ns, {rows} rows".ljust(20), *(f"{f'p{percent}':>6}" for percent in SHOWN))
        for file in sorted(RESULTS.iterdir()):
            found = sorted(map(int, file.read_text().split()))
            at = (found[min(len(found) * percent // 100, len(found) - 1)] for percent in SHOWN)
            print(file.name.ljust(20), *(f"{value:>6}" for value in at))
    finally:
        subprocess.run(["rmmod", "m2m_bench"], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
