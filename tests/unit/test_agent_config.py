"""Options: the command line wins over the file, and what is wrong is named."""

from pathlib import Path

import pytest

from m2m.agent import config
from m2m.errors import ConfigError
from m2m.protocol.flow import parse_address

GOOD = ["--role", "middlebox", "--insecure", "--name", "fw1"]


def configure(*argv: str) -> config.Config:
    return config.configure([*GOOD, *argv])


def test_defaults() -> None:
    got = configure()
    assert (got.role, got.name, got.insecure, got.key_file) == ("middlebox", "fw1", True, None)
    assert (got.port, got.ports) == (5262, (61000, 65535))
    assert got.control_socket == Path("/run/m2m/fw1.sock")
    assert got.limits.sessions == 65536


def test_every_option_is_understood(tmp_path: Path) -> None:
    line = (
        "--role client --name ue --policy-server 10.0.0.9:99 --key-file k --interface eth0 "
        "--interface eth1 --address 10.0.1.1 --port 700 --ports 2000-3000 --sessions 1000 "
        "--setup-timeout 0.5 --tcp-idle 60 --udp-idle 5 --linger 1 --run-dir /tmp/x "
        "--datapath ebpf --log-level debug"
    )
    got = config.configure(line.split())
    assert got.policy_server == ("10.0.0.9", 99)
    assert got.key_file == Path("k")
    assert got.interfaces == ("eth0", "eth1")
    assert got.addresses == (parse_address("10.0.1.1"),)
    assert (got.port, got.ports, got.setup_timeout) == (700, (2000, 3000), 0.5)
    assert (got.limits.sessions, got.limits.tcp_idle) == (1000, 60.0)
    assert (got.limits.udp_idle, got.limits.linger) == (5.0, 1.0)
    assert (got.run_dir, got.datapath, got.log_level) == (Path("/tmp/x"), "ebpf", "debug")


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(
        'role = "client"\nname = "ue"\ninsecure = true\npolicy-server = "[2001:db8::1]:99"\n'
        'port = 700\nsessions = 1000\ninterface = ["eth0"]\nlinger = 1.5\n'
    )
    got = config.configure(["--config", str(file), "--port", "800", "--role", "server"])
    assert (got.role, got.name, got.port) == ("server", "ue", 800)
    assert got.policy_server == ("2001:db8::1", 99)
    assert (got.limits.sessions, got.limits.linger, got.interfaces) == (1000, 1.5, ("eth0",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('rol = "client"', "unknown key 'rol'; the nearest known one is 'role'"),
        ("cleanup = true", "unknown key 'cleanup'"),
        ("port = true", "port: True is neither text nor a number"),
        ('interface = "eth0"', "interface: 'eth0' is not a list"),
        ('insecure = "yes"', "insecure: 'yes' is neither true nor false"),
        ("port =", "not a TOML file"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.configure(["--config", str(file)])
    assert str(file) in str(caught.value)
    assert said in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        config.configure(["--config", str(tmp_path / "none.toml")])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--role router", "--role: 'router' is not one of client, server, middlebox, gateway"),
        ("--port 0", "--port: 0 (port) is not between 1 and 65535"),
        ("--port x", "--port: 'x' is not a number"),
        ("--ports 65535-61000", "not a rising range"),
        ("--ports 100-2000", "not a rising range within 1024-65535"),
        ("--ports 61000-61004", "has 5 ports; give at least 16"),
        ("--ports 61000", "not a range of ports such as 61000-65535"),
        ("--port 61001", "--port 61001 lies inside --ports 61000-65535"),
        ("--address fw", "'fw' is not an IP address"),
        ("--address ::1", "is an IPv6 address"),
        ("--policy-server h:99999", "port 99999 in 'h:99999'"),
        ("--name a/b", "'a/b' is no name"),
        ("--sessions 1", "1 sessions is not between 16"),
        ("--setup-timeout nan", "nan seconds is not between"),
        ("--key-file k", "--key-file and --insecure contradict each other"),
        ("--role client", "--policy-server HOST[:PORT]"),
        ("--colour red", "unrecognized arguments: --colour red"),
    ],
)
def test_a_wrong_option_is_named(argv: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(*argv.split())
    assert said in str(caught.value)


def test_no_key_no_start() -> None:
    with pytest.raises(ConfigError, match="no key is given: add --key-file FILE"):
        config.configure(["--role", "server"])


def test_no_role_no_start() -> None:
    with pytest.raises(ConfigError, match="no role is given"):
        config.configure(["--insecure"])


def test_cleanup_needs_neither_role_nor_key() -> None:
    assert config.configure(["--cleanup", "--name", "fw1"]).cleanup


def test_help_explains_every_option() -> None:
    text = " ".join(config.parser().format_help().split())
    for action in config.parser()._actions:
        assert action.option_strings[-1] in text
        assert action.help is not None
        assert len(action.help) > 25 or action.dest == "help"


def test_a_device_address_is_for_clients() -> None:
    options = "--name a --insecure --policy-server 10.0.0.1 --device-address 100.64.0.7 --role"
    got = config.configure([*options.split(), "client"])
    assert got.device_address == parse_address("100.64.0.7")
    with pytest.raises(ConfigError, match="--device-address is for clients, not for a server"):
        config.configure([*options.split(), "server"])
