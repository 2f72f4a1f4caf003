"""The example configuration is one that works, and says what it says it says."""

from __future__ import annotations

import configparser
import shlex
from pathlib import Path

import pytest

from m2m.agent.config import configure
from m2m.cli import policy

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_agents_file_shows_the_defaults() -> None:
    """All that stands below its three needed keys is what is in force without it."""
    file = configure(["--config", str(EXAMPLES / "agent.toml")])
    needed = [
        "--role", "middlebox", "--key-file", "/etc/m2m/key", "--policy-server", "10.0.9.1",
    ]  # fmt: skip
    assert file == configure(needed)


def unit(name: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None, strict=False)
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read(EXAMPLES / "systemd" / name)
    return parsed


def command(name: str) -> list[str]:
    return shlex.split(unit(name)["Service"]["ExecStart"])


def test_the_agents_unit_starts_an_agent() -> None:
    program, *arguments = [
        part.replace("%i", "fw1").replace("/etc/m2m/fw1.toml", str(EXAMPLES / "agent.toml"))
        for part in command("m2m-agent@.service")
    ]
    assert Path(program).name == "m2m-agent"
    config = configure(arguments)
    service = unit("m2m-agent@.service")["Service"]
    assert config.name == "fw1"
    assert config.run_dir == Path("/run") / service["RuntimeDirectory"]
    assert {"CAP_BPF", "CAP_NET_ADMIN"} <= set(service["CapabilityBoundingSet"].split())


def test_the_policy_servers_unit_starts_a_policy_server() -> None:
    program, *arguments = command("m2m-policy.service")
    assert Path(program).name == "m2m-policy"
    args = policy._parser().parse_args(arguments)
    service = unit("m2m-policy.service")["Service"]
    assert Path(args.store).parent == Path("/var/lib") / service["StateDirectory"]
    assert args.file.startswith("/etc/m2m/")


@pytest.mark.parametrize("name", ["m2m-agent@.service", "m2m-policy.service"])
def test_both_units_wait_for_readiness_and_come_back(name: str) -> None:
    service = unit(name)["Service"]
    assert (service["Type"], service["Restart"]) == ("notify", "always")
