#!/usr/bin/python3
"""Runs a command in this tree under another Debian kernel: a virtual machine, not installed.

    sudo tests/vm/boot.py [--kernel PACKAGE] [--time-limit S] [--accel WAY[:WAY]...] -- COMMAND...

The machine has the host's files under an overlay in memory: it sees this tree and its `.venv`, and
what it changes is gone with it. The command's output is this one's, as is its exit status; 124
means that time ran out. Kernel packages are kept in a cache folder (`--cache`).

Its processors are this one's own (`kvm`), or emulated: `tcg`, or `counted`, which is one processor
with a clock that counts instructions, so that two figures of one run compare as the work does,
whatever else this machine is doing meanwhile. Of several ways the first that starts is taken: there
are machines that have a /dev/kvm under which Linux does not.
"""

from __future__ import annotations

import argparse
import fcntl
import lzma
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
INIT = Path(__file__).with_name("init")
BUSYBOX = Path("/bin/busybox")
VIRTIOFSD = (Path("/usr/lib/qemu/virtiofsd"), Path("/usr/libexec/virtiofsd"))  # Debian 12, 13
TOOLS = {
    "apt-get": "apt",
    "busybox": "busybox-static",
    "depmod": "kmod",
    "qemu-system-x86_64": "qemu-system-x86",
}
# What the first script needs to reach the host's files; the rest is loaded from there.
MODULES = ("virtio_pci", "virtiofs", "overlay")
BOOT = (
    "console=ttyS0 panic=-1 reboot=t mitigations=off nokaslr random.trust_cpu=on apparmor=0"
    " init_on_alloc=0 tsc=reliable rcupdate.rcu_expedited=1 cryptomgr.notests log_buf_len=4M"
)
# tsc: emulated processors count alike, and are found not to where the host is busy.
# An emulated processor moves octets one at a time where it says that it does so fast.
PROCESSOR = "max,-erms,-fsrm"
WAYS = {
    "kvm": ["-accel", "kvm", "-smp", str(os.cpu_count())],
    "tcg": ["-accel", "tcg", "-smp", str(os.cpu_count())],
    "counted": ["-accel", "tcg", "-smp", "1", "-icount", "shift=1"],  # 2 ns for an instruction
}
# Linux has not started if its console stands still for so many seconds before the first program
# runs. An emulated one now and then gets its timers wrong while it looks how fast they are, if this
# machine is busy just then; it then takes interrupts for ever. So it may begin anew.
STANDS_STILL = {"kvm": 10, "tcg": 120, "counted": 120}
TRIES = {"kvm": 1, "tcg": 3, "counted": 3}
RUNS = b"m2m: the first program runs"  # said by it
KERNEL = "linux-image-amd64"
CACHE = Path.home() / ".cache/m2m/kernels"
TIME_IS_UP = 124  # as timeout(1) has it


class Impossible(Exception):
    """The machine cannot be run; says why, and what to do."""


class NotStarted(Exception):
    """Linux has not come to its first program; says what the console said last."""


def main() -> int:
    args = arguments()
    modules, kernel = ready(args.kernel, args.cache)
    with tempfile.TemporaryDirectory(prefix="m2m-vm-") as folder:
        run = Path(folder)
        command = f"cd {shlex.quote(str(TREE))} && {shlex.join(args.command)}"
        files = {"init": INIT.read_bytes(), "bin/busybox": BUSYBOX.read_bytes()}
        files["modules"] = str(modules).encode()
        files["command"] = command.encode()
        for number, module in enumerate(needed(modules, MODULES)):
            files[f"early/{number:02}.ko"] = contents(module)
        (run / "initramfs").write_bytes(b"".join(archive(files)))
        for way in args.accel:
            for attempt in range(TRIES[way]):
                try:
                    return machine(run / f"{way}{attempt}", kernel, way, args)
                except NotStarted as error:
                    sys.stderr.write(f"boot.py: with {way} Linux has not started\n")
                    told = error
        raise Impossible(f"Linux does not start; its console's last lines:\n{told}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kernel", default=KERNEL, metavar="PACKAGE")
    parser.add_argument("--time-limit", default=1800.0, type=float, metavar="S")
    parser.add_argument("--accel", type=ways, default=["kvm", "tcg"], metavar="WAY[:WAY]...")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


def ways(text: str) -> list[str]:
    found = text.split(":")
    if unknown := set(found) - set(WAYS):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(WAYS)}")
    return found


def ready(package: str = KERNEL, cache: Path = CACHE) -> tuple[Path, Path]:
    """The modules and the image of a kernel for a machine that can be run here."""
    if os.geteuid() != 0:
        raise Impossible("sharing the host's files with a machine needs root; run it with sudo")
    lacking = sorted(TOOLS[tool] for tool in TOOLS if not shutil.which(tool))
    if not any(path.exists() for path in VIRTIOFSD):
        lacking.append("qemu-system-common or virtiofsd")
    if lacking:
        raise Impossible(f"missing packages; run: apt-get install {' '.join(lacking)}")
    return unpacked(package, cache)


def unpacked(package: str, cache: Path) -> tuple[Path, Path]:
    """The modules' folder (lib/modules/VERSION) and the image of the newest such kernel; or of the
    one in a folder that is laid out like such a package (tests/vm/debug-kernel makes one)."""
    if Path(package).is_dir():
        (modules,) = (Path(package).resolve() / "lib/modules").iterdir()
        return modules, modules.parents[2] / f"boot/vmlinuz-{modules.name}"
    asked = ["apt-cache", "depends", "--no-recommends", "--no-suggests", package]
    known = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    # A kernel's own package depends on no other one's.
    package = next((word for word in known[1:] if word.startswith("linux-image-")), package)
    asked = ["apt-get", "download", "--print-uris", package]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    if found.returncode:
        raise Impossible(f"no kernel package {package}: {found.stderr.strip()}")
    name = found.stdout.split()[1].removesuffix(".deb")
    place = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several machines may start at once
        if not place.exists():
            fetch(package, place)
    (modules,) = (place / "lib/modules").iterdir()
    return modules, place / f"boot/vmlinuz-{modules.name}"


def fetch(package: str, place: Path) -> None:
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        try:
            subprocess.run(
                ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package],
                cwd=folder, check=True,
            )  # fmt: skip
        except subprocess.CalledProcessError as error:
            raise Impossible(f"{package} is not to be had; run: apt-get update") from error
        (deb,) = Path(folder).glob("*.deb")
        root = Path(folder) / "root"
        subprocess.run(["dpkg", "-x", deb, root], check=True)
        (version,) = (root / "lib/modules").iterdir()
        subprocess.run(["depmod", "-b", root, version.name], check=True)
        root.rename(place)


def needed(modules: Path, names: tuple[str, ...]) -> list[Path]:
    """The files of these modules and of those they need, in the order to load them."""
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        file, _, others = line.partition(":")
        needs[file] = [*reversed(others.split()), file]
    by_name = {Path(file).name.partition(".")[0].replace("-", "_"): file for file in needs}
    ordered = dict.fromkeys(f for name in names if name in by_name for f in needs[by_name[name]])
    return [modules / file for file in ordered]


def contents(module: Path) -> bytes:
    data = module.read_bytes()
    return lzma.decompress(data) if module.suffix == ".xz" else data


def archive(files: dict[str, bytes]) -> Iterator[bytes]:
    """A cpio archive in the "newc" format, which the kernel unpacks as its first file system."""
    folders = dict.fromkeys(str(Path(name).parent) for name in files)
    entries = [(name, 0o040755, b"") for name in folders if name != "."]
    entries += [(name, 0o100755, data) for name, data in files.items()]
    for name, mode, data in [*entries, ("TRAILER!!!", 0, b"")]:
        path = name.encode() + b"\0"
        fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        yield head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def machine(run: Path, kernel: Path, way: str, args: argparse.Namespace) -> int:
    """Run the machine to its end, its second serial port to our output; the third's number.

    Raises NotStarted if Linux does not start.
    """
    run.mkdir()
    console, status, shared = run / "console", run / "status", run / "virtiofs"
    status.touch()
    virtiofsd = next(path for path in VIRTIOFSD if path.exists())
    memory = 2048
    # What the kernel does not know goes to init's environment.
    environment = f"CI={os.environ['CI']}" if os.environ.get("CI") else ""
    with ExitStack() as ended, console.open("ab") as log, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(shared))
        listener.listen()
        ended.enter_context(child(
            [virtiofsd, "-f", f"--fd={listener.fileno()}",
             "-o", "source=/,sandbox=chroot,cache=always"],
            stdout=log, stderr=log, pass_fds=[listener.fileno()],
        ))  # fmt: skip
        qemu = ended.enter_context(child(
            ["qemu-system-x86_64", *WAYS[way], "-cpu", PROCESSOR, "-m", str(memory),
             "-object", f"memory-backend-memfd,id=mem,size={memory}M,share=on",
             "-machine", "q35,memory-backend=mem", "-nodefaults", "-display", "none", "-no-reboot",
             "-chardev", f"socket,id=files,path={shared}",
             "-device", "vhost-user-fs-pci,chardev=files,tag=host",
             "-chardev", f"file,id=console,path={console},append=on", "-serial", "chardev:console",
             "-serial", "stdio", "-serial", f"file:{status}",
             "-kernel", kernel, "-initrd", run.parent / "initramfs",
             "-append", f"{BOOT} {environment}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
        ))  # fmt: skip
        clock = threading.Timer(args.time_limit, qemu.kill)
        ended.callback(clock.cancel)
        clock.start()
        over = threading.Event()
        ended.callback(over.set)
        threading.Thread(target=watch, args=(console, STANDS_STILL[way], qemu, over)).start()
        assert qemu.stdout is not None
        while chunk := os.read(qemu.stdout.fileno(), 1 << 16):
            sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
        in_time = clock.is_alive()
    shutil.copy(console, args.cache / "console.log")
    last = "\n".join(console.read_text(errors="replace").splitlines()[-30:])
    if in_time and RUNS not in console.read_bytes():
        raise NotStarted(last)
    if told := status.read_text().strip():
        return int(told)
    if not in_time:
        sys.stderr.write(f"boot.py: not done within {args.time_limit:.0f} s (--time-limit)\n")
        return TIME_IS_UP
    raise Impossible(f"the machine ended without a result; its console's last lines:\n{last}")


def watch(
    console: Path, patience: float, qemu: subprocess.Popen[bytes], over: threading.Event
) -> None:
    """End the machine if its console stands still before Linux has started."""
    seen = b""
    while RUNS not in seen and not over.wait(patience):
        if (now := console.read_bytes()) == seen:
            qemu.kill()
            return
        seen = now


@contextmanager
def child(command: list[object], **how: object) -> Iterator[subprocess.Popen[bytes]]:
    """Ended with the block, and with this program, however that ends."""
    bound = ["setpriv", "--pdeathsig", "KILL", *map(str, command)]
    process = subprocess.Popen(bound, **how)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("boot.py: ended"))
    try:
        sys.exit(main())
    except Impossible as error:
        sys.exit(f"boot.py: {error}")
