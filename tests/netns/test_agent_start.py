"""An agent that cannot work here says so in one sentence, and leaves the host as it was.

Each host lacks one thing: really, by what the kernel lets a process give up.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from m2m.auth import DomainKey
from m2m.datapath.pins import directory_of
from nf_adapters.state.lock import TABLE
from tests.support.namespaces import Namespace, NamespaceFactory, run_prefix
from tests.support.processes import start

pytestmark = pytest.mark.needs("netns", "bpffs", "nfqueue", "setpriv", "unshare", "setarch")

NAME = run_prefix() + "start"
# Nobody in particular, who may read everything: the tests may live where only root can look.
NOT_ROOT = (
    "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
    "--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search",
)  # fmt: skip


def without(*capabilities: str) -> tuple[str, ...]:
    return ("setpriv", "--bounding-set", ",".join(f"-{name}" for name in capabilities))


def in_mounts_of_its_own(script: str) -> tuple[str, ...]:
    """Run *script* in a mount namespace that ends with the command behind it."""
    return ("unshare", "--mount", "sh", "-ec", f'{script}; exec "$@"', "sh")


NO_BPFFS = in_mounts_of_its_own("umount -l /sys/fs/bpf; mount -t tmpfs none /sys/fs")
NO_MOUNTING = (*in_mounts_of_its_own("umount -l /sys/fs/bpf"), *without("sys_admin"))
NO_MOUNT_PROGRAM = (*in_mounts_of_its_own("umount -l /sys/fs/bpf"), "env", "PATH=/nowhere")


@pytest.fixture
def host(netns: NamespaceFactory) -> Iterator[Namespace]:
    made = netns("start")
    made.run("ip", "link", "add", "eth0", "type", "veth", "peer", "eth1")
    made.sysctl("net.ipv4.ip_local_reserved_ports", "7,62000-62010")
    yield made
    assert not directory_of(NAME).exists()


def traces(host: Namespace, run_dir: Path) -> dict[str, object]:
    """All that an agent changes on a host."""
    with host.entered():
        queues = Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text()
    return {
        "ports": host.run("sysctl", "-n", "net.ipv4.ip_local_reserved_ports").stdout,
        "rules": host.run("iptables-save").stdout.count("M2M"),
        "queues": queues,
        "pins": directory_of(NAME).exists(),
        "files": sorted(path.name for path in run_dir.glob("*")),
    }


@pytest.mark.parametrize(
    ("lacking", "sentence"),
    [
        pytest.param(NOT_ROOT, ("as user 65534", "start it as root"), id="root"),
        pytest.param(
            without("bpf", "sys_admin"), ("lacks CAP_BPF;", "run the agent as root"), id="bpf"
        ),
        pytest.param(
            without("perfmon", "sys_admin"),
            ("lacks CAP_PERFMON;", "run the agent as root"),
            id="perfmon",
        ),
        pytest.param(
            without("net_admin"), ("lacks CAP_NET_ADMIN;", "run the agent as root"), id="net-admin"
        ),
        pytest.param(NO_BPFFS, ("/sys/fs/bpf is missing", "mount -t sysfs sysfs /sys"), id="bpffs"),
        pytest.param(
            NO_MOUNTING,
            ("cannot be mounted on /sys/fs/bpf (mount: ", "mount -t bpf bpf /sys/fs/bpf"),
            id="mounting",
        ),
        pytest.param(
            NO_MOUNT_PROGRAM,
            ("(mount: No such file or directory)", "mount -t bpf bpf /sys/fs/bpf"),
            id="mount-program",
        ),
        pytest.param(
            ("setarch", "--uname-2.6"),
            ("Linux 2.6.", "is too old for the eBPF datapath, which needs", "newer kernel"),
            id="kernel",
        ),
        pytest.param(
            ("env", "PATH=/nowhere"),
            ("iptables-restore is missing", "install iptables"),
            id="iptables",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(
    host: Namespace, tmp_path: Path, lacking: tuple[str, ...], sentence: tuple[str, ...]
) -> None:
    DomainKey.generate(tmp_path / "key")
    before = traces(host, tmp_path / "run")
    said = refused(host, tmp_path, *lacking)
    for part in sentence:
        assert part in said
    assert traces(host, tmp_path / "run") == before


def refused(host: Namespace, directory: Path, *lacking: str, options: tuple[str, ...] = ()) -> str:
    """Start an agent; the one sentence that it ends with."""
    done = host.run(
        *lacking, sys.executable, "-m", "m2m.cli.agent", "--role", "server", "--name", NAME,
        "--key-file", str(directory / "key"), "--run-dir", str(directory / "run"), *options,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    (said,) = done.stderr.splitlines()
    assert said.startswith("m2m-agent: ")
    return said


def test_an_agent_that_fails_late_leaves_nothing_either(host: Namespace, tmp_path: Path) -> None:
    DomainKey.generate(tmp_path / "key")
    host.run("ip", "tuntap", "add", "dev", "tunnel0", "mode", "tun")
    (tmp_path / "run").mkdir()
    before = traces(host, tmp_path / "run")
    said = refused(host, tmp_path, options=("--interface", "eth0", "--interface", "tunnel0"))
    assert "interface tunnel0" in said and "leave it out (--interface)" in said
    assert traces(host, tmp_path / "run") == before

    in_the_way = tmp_path / "run" / f"{NAME}.sock"
    in_the_way.write_text("not a socket")
    before = traces(host, tmp_path / "run")
    assert f"{NAME}.sock" in refused(host, tmp_path)
    assert traces(host, tmp_path / "run") == before


@pytest.mark.needs("nft")
async def test_a_successor_that_cannot_start_leaves_what_it_found(
    host: Namespace, tmp_path: Path
) -> None:
    DomainKey.generate(tmp_path / "key")
    host.run("ip", "tuntap", "add", "dev", "tunnel0", "mode", "tun")
    host.sysctl("net.ipv4.ip_local_reserved_ports", "61000-65535")  # nothing to take back later
    command = (
        "m2m.cli.agent", "--role", "server", "--name", NAME, "--key-file", str(tmp_path / "key"),
        "--run-dir", str(tmp_path / "run"), "--interface", "eth0",
    )  # fmt: skip
    killed = await start(host, tmp_path, "agent", *command)
    await killed.stop(signal.SIGKILL)
    left = sorted(path.name for path in directory_of(NAME).iterdir())
    assert {"flows", "hold"} < set(left)
    refused(host, tmp_path, options=("--interface", "tunnel0"))
    assert sorted(path.name for path in directory_of(NAME).iterdir()) == left
    host.run("nft", "add", "table", "ip", TABLE)  # as one that was killed while it moved state
    host.run(
        sys.executable, "-m", "m2m.cli.agent", "--cleanup", "--name", NAME,
        "--run-dir", str(tmp_path / "run"),
    )  # fmt: skip
    assert TABLE not in host.run("nft", "list", "tables").stdout


def test_cleaning_up_a_host_that_lacks_something_says_so_too(
    host: Namespace, tmp_path: Path
) -> None:
    done = host.run(
        *without("bpf", "sys_admin"), sys.executable, "-m", "m2m.cli.agent", "--cleanup",
        "--name", NAME, "--run-dir", str(tmp_path / "run"), check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "lacks CAP_BPF;" in done.stderr
