"""One agent: everything it owns, opened in order, run in one nursery, let go in reverse.

::

    kernel ──Held, Ended──►┐                        ┌──► datapath (install, redirect, hold, ...)
    other agents ──UDP────►├─ Sessions.feed ─ node ─┼──► other agents
    timers ───────────────►┘                        └──► timers, journal
    rtnetlink ──► interfaces, addresses, next hops ────► datapath
    policy server ──► rules ───────────────────────────► datapath
    m2mctl, m2m-nf ──► sockets ──► questions to all of these; changes of chains ─► Sessions.feed
"""

from __future__ import annotations

import gc
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import structlog
import trio

from m2m.agent import control, host, notify
from m2m.agent.api import EventKind
from m2m.agent.asking import Asking
from m2m.agent.config import Config
from m2m.agent.following import Following
from m2m.agent.functions import Functions
from m2m.agent.interception import Interception
from m2m.agent.journal import Journal
from m2m.agent.keeping import Keeping
from m2m.agent.names import NamingDatapath
from m2m.agent.path import Paths
from m2m.agent.policy_client import PolicyClient
from m2m.agent.promptness import run_before_others
from m2m.agent.proxies import Proxies
from m2m.agent.sessions import Sessions
from m2m.agent.source import Answers
from m2m.agent.transport import Transport
from m2m.agent.turn import Turn
from m2m.agent.watch import Network, NoRoute
from m2m.auth import DomainKey
from m2m.datapath import ALL_ADDRESSES, Datapath, DatapathError
from m2m.datapath.choose import left_behind
from m2m.datapath.hold_device import is_hold_device
from m2m.errors import ConfigError, UnsupportedHost
from m2m.identity import Identity
from m2m.policy.exempt import Service
from m2m.policy.messages import Load, Role
from m2m.policy.rules import Kind, PolicySet
from m2m.protocol.association import Association
from m2m.protocol.flow import Address, Proto, format_address, parse_address
from m2m.protocol.node import Node, Settings
from m2m.protocol.ports import PortAllocator
from m2m.protocol.wire import Message, PathRep, PathReq
from nf_adapters import pcap

__all__ = ["Agent", "serve"]

_log = structlog.get_logger()

_COLLECT_AFTER = 50_000  # objects; the interpreter's own 700 would be several times per set-up
_SETTLED = 0.01  # s after news of the network, while more may come
_STOPPING = 5.0  # s that letting go of the datapath may take


async def serve(config: Config, open_datapath: Callable[[Config], Awaitable[Datapath]]) -> None:
    """Be an agent until SIGTERM or SIGINT. Its sessions run on afterwards.

    Raises :exc:`~m2m.errors.M2MError` when the host, the configuration or the kernel does not
    allow it.
    """
    key = DomainKey.insecure() if config.key_file is None else DomainKey.load(config.key_file)
    config.run_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with Network() as network, trio.open_nursery() as nursery:
            agent = Agent(config, key, network)
            nursery.start_soon(_stop_on, signals, agent, nursery.cancel_scope)
            try:
                await agent.run(open_datapath)
            finally:
                agent.close()


async def _stop_on(signals: AsyncIterator[int], agent: Agent, scope: trio.CancelScope) -> None:
    async for number in signals:
        _log.info("stopping, sessions run on", signal=signal.Signals(number).name)
        notify.stopping()
        async with agent.turn:
            scope.cancel()


class Agent:
    """The parts of one agent and how they are joined."""

    def __init__(self, config: Config, key: DomainKey, network: Network) -> None:
        """Raises :exc:`~m2m.errors.ConfigError` when the port is taken."""
        self._config = config
        self._role = Role(config.role)
        self._key = key
        self._network = network
        self._forwards = host.forwards()
        self._cpu = host.Cpu()
        # Whether the host's kernel part outlives us: sessions of a predecessor, or of our own. An
        # agent that fails to start leaves a host as it was.
        self._keeps = False
        self._network_changed = trio.Event()
        self.turn = Turn()
        self.journal = Journal()
        self._identity = Identity.load(device_file(config))
        self._keeping = Keeping(kept_record(config))
        self._interception = Interception(redirect_record(config))
        self._association = Association(key, random.SystemRandom(), device=self._identity.device)
        self.transport = Transport(self._association, config.port, network.has, self._source_to)

    def close(self) -> None:
        """Let go of the socket."""
        self.transport.close()

    async def run(
        self,
        open_datapath: Callable[[Config], Awaitable[Datapath]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; started when sessions can be set up."""
        config = self._config
        if self._role is Role.GATEWAY and not self._can_forward():
            raise UnsupportedHost(
                "a gateway forwards packets, but this host does not: run "
                "sysctl -w net.ipv4.ip_forward=1"
            )
        served = self._served(at_start=True)
        record = ports_record(config)
        self._keeps = left_behind(config.name)
        try:
            host.reserve_ports(*config.ports, record=record)
            mapping = pcap.Mapping(map_file(config), config.limits.sessions)
            datapath = NamingDatapath(await open_datapath(config), mapping)
            try:
                await datapath.attach(served)
                await datapath.set_addresses(self._local_addresses())
                self._warn_of_strict_filters(served)
                await self._run_with(datapath, task_status)
            finally:
                with trio.move_on_after(_STOPPING, shield=True):
                    await datapath.close(keep=self._keeps)
        finally:
            if not self._keeps:
                host.release_ports(record)
                self._interception.remove()
                self._keeping.nothing()
                device_file(config).unlink(missing_ok=True)
                map_file(config).unlink(missing_ok=True)
            self._keeping.close()

    async def _run_with(self, datapath: NamingDatapath, task_status: trio.TaskStatus[None]) -> None:
        config = self._config
        sessions = Sessions(
            self._node(datapath), datapath, self._network, self.transport.send, self.journal,
            self._can_forward, self._keeping, self.turn, self._own_traffic(),
            role=self._role,
        )  # fmt: skip
        self.sessions = sessions
        functions = Functions()
        sessions.states.quiesce_taps = functions.quiesce
        self.paths = Paths(config.name, self._role, sessions, self.transport.send, functions)
        asking = Asking(config.name, sessions, self.paths)
        self.following = Following(sessions, asking)
        sessions.moves.on_moved = self.following.policy_changed
        # Before sessions are taken over: of some the others say soon that a proxy has left them.
        proxies = Proxies(sessions, lambda: self._interception.listens(self.addresses()), asking)
        if config.device_address is not None:
            self._keeping.keep_lasting(config.device_address, self._ethernets())
        datapath.begin()
        await sessions.adopt()
        datapath.taken_over()
        await sessions.follow_network()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.transport.run, self._received)
                nursery.start_soon(self._follow_datapath, datapath)
                nursery.start_soon(sessions.run_timers)
                nursery.start_soon(sessions.moves.let_go)
                nursery.start_soon(datapath.forget_names)
                await nursery.start(sessions.states.run)
                nursery.start_soon(self.following.run)
                nursery.start_soon(notify.keep_alive)
                nursery.start_soon(run_before_others)
                client = self._policy_client()
                nursery.start_soon(self._follow_network, datapath)
                if client is None:
                    self._interception.remove()
                else:
                    await nursery.start(client.run)
                nursery.start_soon(self._tell_of_addresses, client)
                answers = Answers(
                    config.name, self._role, sessions, self.paths, asking, self.transport.counters,
                    client, "" if client is None else str(client.server), self._key, functions,
                )  # fmt: skip
                await nursery.start(control.serve, config.control_socket, answers)
                await nursery.start(control.serve_nfs, config.nf_socket, answers, functions)
                await nursery.start(proxies.serve, config.proxy_socket, config.proxy_group)
                _log.info(
                    "serving", role=config.role, name=config.name, sessions=len(sessions),
                    datapath=datapath.name, why=datapath.why, secure=not config.insecure,
                )  # fmt: skip
                self._keeps = True
                notify.ready(_status(self._served()))
                gc.collect()
                gc.freeze()  # what is there now stays: no need to look through it again
                gc.set_threshold(_COLLECT_AFTER, 20, 100)
                task_status.started()
        finally:
            if not len(sessions):  # else they run on, and need their addresses
                self._keeping.nothing()

    def addresses(self) -> tuple[Address, ...]:
        """The addresses of this host that sessions use."""
        device = self._config.device_address
        beside = () if device is None else (device,)
        if self._config.addresses:
            return (*self._config.addresses, *beside)
        served = self._served()
        found = tuple(
            address for address, ifindex in self._network.addresses.items() if ifindex in served
        )
        return (*found, *beside)

    def _ethernets(self) -> list[str]:
        return [link.name for link in self._network.links.values() if link.ethernet]

    def _local_addresses(self) -> frozenset[Address]:
        """Those, and the ones that only sessions keep alive; all, where nothing is forwarded: an
        address that another host had a moment ago has packets of its sessions coming."""
        if not host.forwards():
            return frozenset((ALL_ADDRESSES,))
        return self._keeping.kept.union(self.addresses())

    def _node(self, datapath: NamingDatapath) -> Node:
        rng = random.SystemRandom()
        settings = Settings(setup_timeout=self._config.setup_timeout, renames=datapath.splices)
        ports = PortAllocator(*self._config.ports, rng)
        return Node(settings, ports, rng, self._identity, self._association.devices)

    def _own_traffic(self) -> tuple[Service, ...]:
        """What no policy may hold: without it no chain could ever be set up. A gateway may also
        forward what belongs to hosts with agents."""
        services = [Service(Proto.UDP, self._config.port, symmetric=True)]
        if self._config.policy_server is not None:
            port = self._config.policy_server.port
            services.append(Service(Proto.TCP, port, symmetric=False))
        if self._role is Role.GATEWAY:
            low, high = self._config.ports
            services += [Service(proto, low, symmetric=True, last=high) for proto in Proto]
        return tuple(services)

    def _policy_client(self) -> PolicyClient | None:
        config = self._config
        if config.policy_server is None:
            return None
        return PolicyClient(
            config.policy_server,
            self._key,
            name=config.name,
            role=self._role,
            addresses=self.addresses,
            load=lambda: Load(len(self.sessions), self._cpu.busy()),
            on_policy=self._load_policy,
            on_link=self._heard_of_server,
            cache=config.run_dir / f"{config.name}.policy",
            is_here=self._network.has,
            source=self._source_to_server,
        )

    # -- what comes in ------------------------------------------------------------------

    async def _received(
        self, peer: Address, message: Message, at: Address | None, device: bytes
    ) -> None:
        if isinstance(message, PathReq):
            await self.paths.asked(peer, message, at)
        elif isinstance(message, PathRep):
            self.paths.answered(peer, message)
        else:
            await self.sessions.received(peer, message, device)

    async def _follow_datapath(self, datapath: Datapath) -> None:
        async for event in datapath.events():
            await self.sessions.told(event)

    async def _follow_network(self, datapath: Datapath) -> None:
        served, local = self._served(), self._local_addresses()
        async for _ in self._network.changes():
            wanted = self._served()
            if wanted != served:
                async with self.turn:
                    try:
                        await datapath.attach(wanted)
                    except DatapathError as error:  # gone already, or not ready: it will be told
                        _log.warning("interfaces not changed", why=str(error))
                    else:
                        served = wanted
                        _log.info("interfaces changed", interfaces=",".join(served.values()))
                        notify.status(_status(served))
            await self.sessions.follow_network()
            now_local = self._local_addresses()
            if now_local != local:
                local = now_local
                async with self.turn:
                    await datapath.set_addresses(local)
            self._network_changed.set()

    async def _tell_of_addresses(self, client: PolicyClient | None) -> None:
        """All but the sessions that move can wait until they have."""
        addresses = set(self.addresses())
        while True:
            await self._network_changed.wait()
            await trio.sleep(_SETTLED)
            self._network_changed = trio.Event()
            if set(self.addresses()) != addresses:
                addresses = set(self.addresses())
                await self.sessions.own_addresses_changed()
                self._interception.follow(self.sessions.chains.policy, addresses)
                if client is not None:
                    client.addresses_changed()

    async def _load_policy(self, policy: PolicySet) -> None:
        before = self.sessions.chains.policy
        await self.sessions.load_policy(policy)
        own = set(self.addresses())
        self._interception.follow(policy, own)
        if (policy.generation, policy.rules) != (before.generation, before.rules):
            self.following.policy_changed()
        if policy.generation == before.generation:
            return  # loads or addresses have changed
        inline = [
            nf.name
            for nf in policy.nfs
            if nf.kind is Kind.INLINE and any(one.address in own for one in nf.instances)
        ]
        if inline and not self._can_forward():
            _log.error(
                "an inline network function runs here but this host does not forward packets, "
                "its sessions are refused: run sysctl -w net.ipv4.ip_forward=1",
                nf=",".join(inline),
            )
        text = f"generation {policy.generation}, {len(policy.policies)} policies"
        _log.info("policy in force", generation=policy.generation, rules=len(policy.rules))
        self.journal.tell(EventKind.POLICY, text)

    def _source_to(self, host: Address) -> Address | None:
        """What this host's own messages leave from; never the address that only goes with it,
        which a route may prefer. None: let the route choose."""
        if self._config.device_address is None:
            return None
        try:
            return self._network.way_to(host).source
        except NoRoute:
            return None

    def _source_to_server(self) -> str | None:
        server = self._config.policy_server
        try:
            source = None if server is None else self._source_to(parse_address(server.host))
        except ValueError:  # a name, whose address the resolver finds
            return None
        return None if source is None else format_address(source)

    def _heard_of_server(self, connected: bool, why: str) -> None:
        self.journal.tell(EventKind.SERVER, "connected" if connected else f"away: {why}")

    # -- what the host allows -----------------------------------------------------------

    def _served(self, *, at_start: bool = False) -> dict[int, str]:
        """The interfaces to translate on: index -> name."""
        links = [one for one in self._network.links.values() if not is_hold_device(one.name)]
        wanted = self._config.interfaces
        if not wanted:
            return {link.ifindex: link.name for link in links if link.ethernet}
        if at_start and (missing := set(wanted) - {link.name for link in links}):
            there = ", ".join(sorted(link.name for link in links))
            raise ConfigError(
                f"there is no interface {', '.join(sorted(missing))} here; there are {there}"
            )
        return {link.ifindex: link.name for link in links if link.name in wanted}

    def _can_forward(self) -> bool:
        """Whether inline network functions can work; asked again only while they cannot."""
        self._forwards = self._forwards or host.forwards()
        return self._forwards

    def _warn_of_strict_filters(self, served: dict[int, str]) -> None:
        for name in host.strict_interfaces(served.values()):
            _log.warning(
                "strict reverse path filter: packets with restored addresses may be dropped; run "
                f"sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{name}.rp_filter=2",
                interface=name,
            )


def _status(served: dict[int, str]) -> str:
    return f"Serving on {', '.join(sorted(served.values())) or 'no interface'}"


def device_file(config: Config) -> Path:
    """The file that an agent of this name keeps its device key in."""
    return config.run_dir / f"{config.name}.device"


def map_file(config: Config) -> Path:
    """The file by which captures on this host show supersessions."""
    return config.run_dir / f"{config.name}.map"


def kept_record(config: Config) -> Path:
    """The file that tells which addresses an agent of this name keeps alive."""
    return config.run_dir / f"{config.name}.kept"


def redirect_record(config: Config) -> Path:
    """The file that tells that an agent of this name leads sessions to a proxy."""
    return config.run_dir / f"{config.name}.redirect"


def ports_record(config: Config) -> Path:
    """The file that tells which ports an agent of this name has reserved."""
    return config.run_dir / f"{config.name}.ports"
