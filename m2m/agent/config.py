"""The agent's options: one table, read from the command line and from a TOML file alike.

The command line wins over the file, the file over the defaults. Both use the same names, so a
line of ``m2m-agent --help`` is also the documentation of the file's key.
"""

from __future__ import annotations

import argparse
import difflib
import re
import socket
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from m2m.datapath import Limits
from m2m.errors import ConfigError
from m2m.policy.endpoint import POLICY_PORT, Endpoint
from m2m.protocol.flow import Address, is_ipv4, parse_address

AGENT_PORT = 5262

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


class Config(NamedTuple):
    """Everything an agent is told at its start. Times are in seconds."""

    role: str
    name: str
    policy_server: Endpoint | None
    key_file: Path | None  # None only with ``insecure``
    insecure: bool
    interfaces: tuple[str, ...]  # empty: all but loopback
    addresses: tuple[Address, ...]  # empty: all on those interfaces
    device_address: Address | None  # one that goes with the host, wherever it is
    port: int
    ports: tuple[int, int]  # first and last
    setup_timeout: float
    limits: Limits
    run_dir: Path
    proxy_group: str | None  # whose processes may tell of their sockets; None: root's alone
    datapath: str
    log_level: str
    cleanup: bool

    @property
    def control_socket(self) -> Path:
        return self.run_dir / f"{self.name}.sock"

    @property
    def nf_socket(self) -> Path:
        return self.run_dir / f"{self.name}.nf"

    @property
    def proxy_socket(self) -> Path:
        return self.run_dir / f"{self.name}.proxy"


def _text(value: str) -> str:
    if not value:
        raise ValueError("must not be empty")
    return value


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{value!r} is no name; use up to 63 letters, digits, dots, dashes and underscores"
        )
    return value


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"{value!r} is not one of {', '.join(allowed)}")
        return value

    return parse


def _number(kind: type[int | float], low: float, high: float, unit: str) -> Any:
    def parse(value: str) -> int | float:
        try:
            number = kind(value)
        except ValueError:
            raise ValueError(f"{value!r} is not a number of {unit}") from None
        if not low <= number <= high:
            raise ValueError(f"{value} {unit} is not between {low:g} and {high:g}")
        return number

    return parse


def _port_range(value: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", value)
    if not match:
        raise ValueError(f"{value!r} is not a range of ports such as 61000-65535")
    low, high = int(match[1]), int(match[2])
    if not 1024 <= low < high <= 65535:
        raise ValueError(f"{value} is not a rising range within 1024-65535")
    if high - low + 1 < 16:
        raise ValueError(f"{value} has {high - low + 1} ports; give at least 16")
    return low, high


def _endpoint(value: str) -> Endpoint:
    try:
        return Endpoint.parse(value)
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _own_address(value: str) -> Address:
    try:
        address = parse_address(value)
    except ValueError:
        raise ValueError(f"{value!r} is not an IP address") from None
    if not is_ipv4(address):
        raise ValueError(f"{value} is an IPv6 address; sessions are IPv4 in this version")
    return address


class _Option(NamedTuple):
    name: str
    group: str
    metavar: str | None  # None: a switch
    parse: Callable[[str], Any]
    default: Any
    help: str
    many: bool = False
    file: bool = True  # may stand in the file


_SECONDS_A_WEEK = 7 * 86400.0

_OPTIONS = (
    _Option(
        "role", "who this agent is", "ROLE",
        _one_of("client", "server", "middlebox", "gateway"), None,
        "client, server, middlebox or gateway. A client holds the first packet of sessions that a "
        "policy matches and sets up their chains; a middlebox runs network functions and passes "
        "chains on; a server is where chains end. A gateway is a router that does what clients and "
        "servers do, for the hosts behind it. Needed.",
    ),
    _Option(
        "name", "who this agent is", "NAME", _name, None,
        "this agent's name in m2mctl, in logs and in the paths of its control socket and of its "
        "pinned BPF objects. Two agents on one machine need two names. Default: the host name.",
    ),
    _Option(
        "policy-server", "policy and trust", "HOST[:PORT]", _endpoint, None,
        f"where m2m-policy serves (TCP, port {POLICY_PORT} unless given). A client needs it; the "
        "others get from it what runs on them and report their load to it. While it is away the "
        "last policies stay in force and the agent goes on trying.",
    ),
    _Option(
        "key-file", "policy and trust", "FILE", lambda value: Path(_text(value)), None,
        "the domain's secret, the same on all its hosts: every control message is authenticated "
        "with it. Made by 'm2m-policy keygen FILE'; must be readable by its owner alone.",
    ),
    _Option(
        "insecure", "policy and trust", None, bool, False,
        "run without a key: whoever can reach the agent's port can steer sessions. For closed "
        "labs only.",
    ),
    _Option(
        "interface", "network", "IF", _text, (),
        "translate packets on this interface; may be given more than once (in the file: a list). "
        "Default: every Ethernet-like interface, and new ones as they come.", many=True,
    ),
    _Option(
        "address", "network", "ADDRESS", _own_address, (),
        "an address of this host that sessions may use; may be given more than once. Default: "
        "all addresses of its interfaces, followed as they change.", many=True,
    ),
    _Option(
        "device-address", "network", "ADDRESS", _own_address, None,
        "an address of this client alone, never on an interface and never routed, such as "
        "100.64.0.7: sockets that use it, and policies about it, are the same wherever the "
        "client is. Default: none.",
    ),
    _Option(
        "port", "network", "PORT", _number(int, 1, 65535, "(port)"), AGENT_PORT,
        f"UDP port on which agents talk to each other, one for a whole domain. Default: "
        f"{AGENT_PORT}.",
    ),
    _Option(
        "ports", "network", "LO-HI", _port_range, (61000, 65535),
        "ports for subsessions, the first half as source ports, the other as destination ports. "
        "They are added to net.ipv4.ip_local_reserved_ports, so that no local socket gets one by "
        "chance. Default: 61000-65535.",
    ),
    _Option(
        "sessions", "sessions", "N", _number(int, 16, 4_000_000, "sessions"), Limits().sessions,
        "how many sessions may live at once on this host; kernel memory for them is taken at the "
        f"start (about 350 bytes each). Default: {Limits().sessions}.",
    ),
    _Option(
        "setup-timeout", "sessions", "S", _number(float, 0.05, 60.0, "seconds"), 1.0,
        "seconds a chain may take to be set up before its policy's fail=open or fail=closed "
        "decides. Default: 1.",
    ),
    _Option(
        "tcp-idle", "sessions", "S", _number(float, 1.0, _SECONDS_A_WEEK, "seconds"),
        Limits().tcp_idle,
        "seconds without a packet after which a TCP session counts as dead. Default: "
        f"{Limits().tcp_idle:g}.",
    ),
    _Option(
        "udp-idle", "sessions", "S", _number(float, 1.0, _SECONDS_A_WEEK, "seconds"),
        Limits().udp_idle,
        f"seconds without a packet after which a UDP session is over. Default: "
        f"{Limits().udp_idle:g}.",
    ),
    _Option(
        "linger", "sessions", "S", _number(float, 0.0, 600.0, "seconds"), Limits().linger,
        "seconds a finished TCP session is kept for its last retransmissions. Default: "
        f"{Limits().linger:g}.",
    ),
    _Option(
        "datapath", "running", "KIND", _one_of("auto", "ebpf", "kmod"), "auto",
        "the kernel part: ebpf (tc programs), kmod (the module m2m) or auto: kmod where it is "
        "loaded, but sessions are taken over where they are. Default: auto.",
    ),
    _Option(
        "run-dir", "running", "DIR", lambda value: Path(_text(value)), Path("/run/m2m"),
        "where the control socket NAME.sock is made for m2mctl. Default: /run/m2m.",
    ),
    _Option(
        "proxy-group", "running", "GROUP", _text, None,
        "the group whose processes may tell of a proxy's sockets, on the socket NAME.proxy in the "
        "run directory, which others can then enter. Default: none, root alone may.",
    ),
    _Option(
        "log-level", "running", "LEVEL", _one_of("debug", "info", "warning", "error"), "info",
        "debug, info, warning or error; logs go to standard error as key=value. Default: info.",
    ),
    _Option(
        "cleanup", "running", None, bool, False,
        "instead of running: take everything out that an agent of this name left in the kernel "
        "(programs, tables, rules, reserved ports), which ends its sessions, and exit. A stopped "
        "agent leaves its sessions running for the next one.", file=False,
    ),
)  # fmt: skip

_BY_NAME = {option.name: option for option in _OPTIONS}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see m2m-agent --help")


def parser() -> argparse.ArgumentParser:
    """The command line of ``m2m-agent``; values stay text until :func:`configure`."""
    made = _Parser(
        prog="m2m-agent",
        description="Steers this host's part of M2M sessions: one agent runs on every host.",
        epilog="Sessions outlive the agent: stop, kill or upgrade it, and the next one takes "
        "them over from the kernel.",
        allow_abbrev=False,
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in _OPTIONS:
        if option.group not in groups:
            groups[option.group] = made.add_argument_group(option.group)
        flag, text = f"--{option.name}", option.help.replace("%", "%%")
        if option.metavar is None:
            groups[option.group].add_argument(flag, action="store_true", default=None, help=text)
        else:
            groups[option.group].add_argument(
                flag,
                metavar=option.metavar,
                action="append" if option.many else "store",
                default=None,
                help=text,
            )
    groups["running"].add_argument(
        "--config",
        metavar="FILE",
        help="a TOML file with any of these options as keys, by the same names; what is given on "
        "the command line wins.",
    )
    return made


def configure(argv: Sequence[str]) -> Config:
    """Read options from *argv* (without the program's name) and the file that it may name.

    Raises :exc:`~m2m.errors.ConfigError` naming the option, its value and what is expected.
    ``--help`` prints and exits as argparse does.
    """
    given = {
        name.replace("_", "-"): value
        for name, value in vars(parser().parse_args(argv)).items()
        if value is not None
    }
    path = given.pop("config", None)
    values = {option.name: option.default for option in _OPTIONS}
    if path is not None:
        values |= _read(_load(Path(path)), path)
    values |= _read(given, "command line")
    return _checked(values)


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    known = [option.name for option in _OPTIONS if option.file]
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0)
            raise ConfigError(f"{path}: unknown key {key!r}; the nearest known one is {near[0]!r}")
    return found


def _read(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check and convert what one place gives; *where* names it in errors."""
    values: dict[str, Any] = {}
    for name, value in given.items():
        option = _BY_NAME[name]
        shown = name if where != "command line" else f"--{name}"
        try:
            if option.metavar is None:
                if not isinstance(value, bool):
                    raise ValueError(f"{value!r} is neither true nor false")
                values[name] = value
            elif option.many:
                if not isinstance(value, list):
                    raise ValueError(f"{value!r} is not a list")
                values[name] = tuple(option.parse(_scalar(item)) for item in value)
            else:
                values[name] = option.parse(_scalar(value))
        except ValueError as error:
            raise ConfigError(f"{where}: {shown}: {error}") from None
    return values


def _scalar(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{value!r} is neither text nor a number")
    return str(value)


def _checked(values: dict[str, Any]) -> Config:
    """Fill in what depends on the host and check what depends on several options."""
    name = values["name"]
    if name is None:
        try:
            name = _name(socket.gethostname())
        except ValueError as error:
            raise ConfigError(f"the host name {error}; give another one with --name") from None
    if not values["cleanup"]:
        if values["role"] is None:
            raise ConfigError("no role is given: add --role client, server, middlebox or gateway")
        if values["key-file"] is None and not values["insecure"]:
            raise ConfigError(
                "no key is given: add --key-file FILE (made by 'm2m-policy keygen FILE'), or "
                "--insecure in a closed lab"
            )
        if values["key-file"] is not None and values["insecure"]:
            raise ConfigError("--key-file and --insecure contradict each other: give one")
        if values["role"] in ("client", "gateway") and values["policy-server"] is None:
            raise ConfigError(
                f"a {values['role']} has no policies without --policy-server HOST[:PORT]"
            )
        if values["device-address"] is not None and values["role"] != "client":
            raise ConfigError(
                f"--device-address is for clients, not for a {values['role']}: nobody could find it"
            )
        low, high = values["ports"]
        if low <= values["port"] <= high:
            raise ConfigError(
                f"--port {values['port']} lies inside --ports {low}-{high}: move one of them"
            )
    return Config(
        role=values["role"] or "",
        name=name,
        policy_server=values["policy-server"],
        key_file=values["key-file"],
        insecure=values["insecure"],
        interfaces=values["interface"],
        addresses=values["address"],
        device_address=values["device-address"],
        port=values["port"],
        ports=values["ports"],
        setup_timeout=values["setup-timeout"],
        limits=Limits(
            sessions=values["sessions"],
            linger=values["linger"],
            tcp_idle=values["tcp-idle"],
            udp_idle=values["udp-idle"],
        ),
        run_dir=values["run-dir"],
        proxy_group=values["proxy-group"],
        datapath=values["datapath"],
        log_level=values["log-level"],
        cleanup=values["cleanup"],
    )
