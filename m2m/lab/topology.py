"""Lab topologies: a TOML file says which hosts there are, how they are linked, what runs where.

A file has these tables; ``docs/lab.md`` explains them with an example::

    name = "demo"                     lab name: [a-z][a-z0-9]{0,11}
    [policy]                          host, and file or text; absent: no agents, no policy server
    [hosts.NAME]                      role, forward, routes, agent
    [[hosts.NAME.run]]                what runs there: nft, nginx, iperf3 or a command
    [[links]]                         between, addresses, rate, mtu
    [[detours]]                       flows led along a chain's path by plain forwarding

The interface of a link is named after the host at its other end, so that ``tcpdump -i r0`` and
``ip route`` read like the drawing.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import msgspec

from m2m.errors import ConfigError

_LAB_NAME = re.compile(r"[a-z][a-z0-9]{0,11}")
# 12 characters, so that the name serves as an interface name (15) as well.
_HOST_NAME = re.compile(r"[a-z][a-z0-9-]{0,11}")
_RATE = re.compile(r"[1-9][0-9]*(\.[0-9]+)?[kmg]bit")


class Role(StrEnum):
    """The role a host's agent plays (``m2m-agent --role``)."""

    CLIENT = "client"
    SERVER = "server"
    MIDDLEBOX = "middlebox"
    GATEWAY = "gateway"


class Ready(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a process counts as started: each condition given here must hold."""

    port: int | None = None  # a TCP socket of its namespace listens on this port
    log: str | None = None  # this text stands in its output
    notify: bool = False  # it has sent READY=1 (sd_notify)


class Nft(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="nft", tag_field="kind"):
    """An nftables rule set, loaded into the host's namespace."""

    ruleset: str
    nf: str | None = None  # the NF type of the policy that this is an instance of


class Nginx(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="nginx", tag_field="kind"):
    """nginx with a private configuration. A page's value is its text, or its size in bytes."""

    ports: list[int]
    pages: dict[str, str | int] = {}
    nf: str | None = None


class Iperf3(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="iperf3", tag_field="kind"
):
    """One ``iperf3 -s`` per port."""

    ports: list[int]
    nf: str | None = None


class Command(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="command", tag_field="kind"
):
    """Any other program that stays in the foreground."""

    name: str
    command: list[str]
    ready: Ready = Ready()
    nf: str | None = None


class GivenRoute(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A route instead of the computed ones: a prefix or ``default``, by a neighbour's address."""

    to: str
    via: str


class Host(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One network namespace and what runs in it."""

    role: Role | None = None  # None: no agent (a router, a policy server's host)
    forward: bool | None = None  # None: unless it is a client or a server
    routes: list[GivenRoute] | None = None  # None: computed, shortest paths
    agent: list[str] = []  # further options of m2m-agent
    run: list[Nft | Nginx | Iperf3 | Command] = []

    @property
    def forwards(self) -> bool:
        """Whether the host forwards packets that are not its own."""
        by_itself = self.role in (None, Role.MIDDLEBOX, Role.GATEWAY)
        return by_itself if self.forward is None else self.forward


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A point-to-point link: a veth pair."""

    between: tuple[str, str]
    addresses: tuple[str, str]  # with prefix length, in the order of *between*
    rate: str | None = None  # "100mbit": shaped by tbf in both directions; None: as fast as it goes
    mtu: int = 1500

    def other(self, host: str) -> str:
        """The host at the other end."""
        return self.between[1] if host == self.between[0] else self.between[0]

    def address(self, host: str) -> ipaddress.IPv4Interface:
        """The address of *host* on this link."""
        return ipaddress.IPv4Interface(self.addresses[self.between.index(host)])

    @property
    def subnet(self) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Interface(self.addresses[0]).network


class Detour(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Lead TCP flows to some server ports along a chain's path, by policy routing alone.

    The peer of every comparison: the same hosts and links as the chain, plain IP forwarding.
    """

    between: tuple[str, str]  # client, server
    via: list[str]
    ports: list[int]  # of the server


class PolicyServer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the policy server runs and what it serves. A *file* is relative to the lab's file."""

    host: str
    text: str | None = None
    file: str | None = None


class Topology(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A checked lab description; made by :func:`load`, :func:`parse`, :func:`chain`."""

    name: str
    hosts: dict[str, Host]
    links: list[Link]
    policy: PolicyServer | None = None
    detours: list[Detour] = []

    def links_of(self, host: str) -> list[Link]:
        """The links of *host*, in the file's order."""
        return [link for link in self.links if host in link.between]

    def address(self, host: str) -> str:
        """The address of *host* on its first link: the one that others know it by."""
        return str(self.links_of(host)[0].address(host).ip)

    def with_role(self) -> Iterator[tuple[str, Host]]:
        """The hosts that have an agent."""
        return ((name, host) for name, host in self.hosts.items() if host.role is not None)


class _Place(NamedTuple):
    """Where in the file something stands, for messages."""

    file: str
    key: str = ""

    def at(self, key: str) -> _Place:
        return _Place(self.file, f"{self.key}.{key}" if self.key else key)

    def fail(self, what: str) -> NoReturn:
        raise ConfigError(
            f"{self.file}: {self.key}: {what}" if self.key else f"{self.file}: {what}"
        )


def load(path: Path) -> Topology:
    """Read a topology file. Raises :exc:`ConfigError` naming file, key and value."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a topology file: {error}") from error
    topology = parse(text, file=str(path))
    if topology.policy is None or topology.policy.file is None:
        return topology
    policy = path.parent / topology.policy.file
    try:
        served = msgspec.structs.replace(topology.policy, file=None, text=policy.read_text())
    except (OSError, UnicodeDecodeError) as error:
        _Place(str(path), "policy.file").fail(f"{policy} cannot be read: {error}")
    return msgspec.structs.replace(topology, policy=served)


def parse(text: str, *, file: str = "<text>") -> Topology:
    """Make a checked topology from TOML *text*. Raises :exc:`ConfigError`."""
    place = _Place(file)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place.fail(f"not valid TOML: {error}")
    # Table by table, so that a message can name the host or the link.
    for key, kind in (("hosts", dict), ("links", list)):
        if not isinstance(data.get(key), kind) or not data[key]:
            place.at(key).fail("missing or empty; a lab needs [hosts.NAME] and [[links]] tables")
    hosts = {n: _convert(h, Host, place.at(f"hosts.{n}")) for n, h in data.pop("hosts").items()}
    links = [_convert(k, Link, place.at(f"links[{i}]")) for i, k in enumerate(data.pop("links"))]
    data.setdefault("name", Path(file).stem)
    topology = _convert({**data, "hosts": {}, "links": []}, Topology, place)
    topology = msgspec.structs.replace(topology, hosts=hosts, links=links)
    _check(topology, place)
    return topology


def checked(topology: Topology, made_by: str) -> Topology:
    """*topology* as it is; raises :exc:`ConfigError` as :func:`parse` does, naming *made_by*."""
    _check(topology, _Place(made_by))
    return topology


_T = TypeVar("_T")


def _convert(data: Any, to: type[_T], place: _Place) -> _T:
    try:
        return msgspec.convert(data, to)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `")
        path = path.rstrip("`").removeprefix("$").lstrip(".")
        value = data
        for step in re.findall(r"[^.\[\]]+", path):
            try:
                value = value[int(step) if isinstance(value, list) else step]
            except (KeyError, ValueError, TypeError, IndexError):
                break  # msgspec writes [...] for a key it does not name
        shown = repr(value) if not isinstance(value, dict) or len(value) < 4 else "this table"
        (place.at(path) if path else place).fail(f"{what[0].lower()}{what[1:]}: {shown}")


def _check(topology: Topology, place: _Place) -> None:
    if not _LAB_NAME.fullmatch(topology.name):
        place.at("name").fail(f"{topology.name!r} is not of the form {_LAB_NAME.pattern}")
    for name in topology.hosts:
        if not _HOST_NAME.fullmatch(name):
            place.at(f"hosts.{name}").fail(f"{name!r} is not of the form {_HOST_NAME.pattern}")
    _check_links(topology, place)
    for name, host in topology.hosts.items():
        _check_host(topology, name, host, place.at(f"hosts.{name}"))
    policy = topology.policy
    if policy is None and any(topology.with_role()):
        place.at("policy").fail("missing, but there are hosts with a role; give host and text")
    if policy is not None:
        _known(policy.host, topology.hosts, place.at("policy.host"))
        if (policy.text is None) == (policy.file is None):
            place.at("policy").fail("give either text or file")
    for i, detour in enumerate(topology.detours):
        at = place.at(f"detours[{i}]")
        for name in (*detour.between, *detour.via):
            _known(name, topology.hosts, at)
        _check_ports(detour.ports, at.at("ports"))


def _check_host(topology: Topology, name: str, host: Host, place: _Place) -> None:
    links = topology.links_of(name)
    if not links:
        place.fail("is on no link; add one or take the host out")
    if host.agent and host.role is None:
        place.at("agent").fail(f"{host.agent!r} given to a host without a role")
    for i, route in enumerate(host.routes or ()):
        at = place.at(f"routes[{i}]")
        if route.to != "default":
            _network(route.to, at.at("to"))
        if all(route.via != str(link.address(link.other(name)).ip) for link in links):
            at.at("via").fail(f"{route.via!r} is not the address of a neighbour of {name}")
    for i, program in enumerate(host.run):
        if isinstance(program, Nginx | Iperf3):
            _check_ports(program.ports, place.at(f"run[{i}].ports"))
        elif isinstance(program, Command) and not program.command:
            place.at(f"run[{i}].command").fail("is empty")


def _check_links(topology: Topology, place: _Place) -> None:
    pairs: set[frozenset[str]] = set()
    used: dict[ipaddress.IPv4Address, str] = {}
    for i, link in enumerate(topology.links):
        at = place.at(f"links[{i}]")
        for name in link.between:
            _known(name, topology.hosts, at.at("between"))
        pair = frozenset(link.between)
        if len(pair) < 2 or pair in pairs:
            at.at("between").fail(
                f"{list(link.between)}: two different hosts have one link at most"
            )
        pairs.add(pair)
        addresses = [_interface(text, at.at("addresses")) for text in link.addresses]
        if addresses[0].network != addresses[1].network:
            at.at("addresses").fail(f"{list(link.addresses)} are not in one subnet")
        for name, address in zip(link.between, addresses, strict=True):
            if address.ip in used:
                at.at("addresses").fail(f"{address.ip} of {name} is taken by {used[address.ip]}")
            used[address.ip] = name
        if link.rate is not None and not _RATE.fullmatch(link.rate):
            at.at("rate").fail(f'{link.rate!r} is not a rate such as "100mbit" or "1gbit"')
        if not 576 <= link.mtu <= 65535:
            at.at("mtu").fail(f"{link.mtu} is not between 576 and 65535")


def _known(host: str, hosts: Mapping[str, Host], place: _Place) -> None:
    if host not in hosts:
        place.fail(f"{host!r} is not one of the hosts: {', '.join(hosts)}")


def _check_ports(ports: list[int], place: _Place) -> None:
    if not ports:
        place.fail("is empty")
    for port in ports:
        if not 0 < port < 65536:
            place.fail(f"{port} is not a port")


def _network(text: str, place: _Place) -> None:
    try:
        ipaddress.IPv4Network(text)
    except ValueError as error:
        place.fail(f"{text!r} is not an IPv4 prefix: {error}")


def _interface(text: str, place: _Place) -> ipaddress.IPv4Interface:
    try:
        interface = ipaddress.IPv4Interface(text)
    except ValueError as error:
        place.fail(f"{text!r} is not an IPv4 address with prefix length: {error}")
    if interface.network.prefixlen > 31:
        place.fail(f"{text!r} lacks a prefix length of at most 31, such as {interface.ip}/24")
    return interface


def chain(
    middleboxes: int = 1,
    *,
    kind: str = "tap",
    ports: tuple[int, ...] = (5201,),
    name: str = "chain",
) -> Topology:
    """A line client - mb1 - ... - server, whose policy leads *ports* through all middleboxes.

    Plain forwarding takes the same path, which makes other ports the peer in comparisons. *kind*
    is the kind of every NF: ``tap`` or ``inline``. The policy server runs on the client.
    """
    boxes = [f"mb{i}" for i in range(1, middleboxes + 1)]
    line = ["client", *boxes, "server"]
    nfs = "".join(
        f"nf {box} {kind} {{ {box} = 10.0.{i}.2 }}\n" for i, box in enumerate(boxes, start=1)
    )
    rules = "".join(
        f"match(srcip=10.0.1.0/24 & dstport={port}) >> {{{' -> '.join(boxes)}}} fail=closed\n"
        for port in ports
    )
    roles = {"client": Role.CLIENT, "server": Role.SERVER}
    topology = Topology(
        name=name,
        hosts={host: Host(role=roles.get(host, Role.MIDDLEBOX)) for host in line},
        links=[
            Link((left, right), (f"10.0.{i}.1/24", f"10.0.{i}.2/24"))
            for i, (left, right) in enumerate(pairwise(line), start=1)
        ],
        policy=PolicyServer("client", text=nfs + rules),
    )
    return checked(topology, f"chain({middleboxes})")
