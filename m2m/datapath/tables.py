"""The tables of the BPF programs, spoken to in the words of the contract."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

from m2m.datapath import DatapathError, DatapathFull, Limits, Reason, Row, layout
from m2m.datapath._bpf import EXIST, BpfError, Map, Object, possible_cpus
from m2m.datapath.flow_table import FlowTable
from m2m.datapath.splice_table import SpliceTable
from m2m.policy.rules import PolicySet
from m2m.protocol.flow import Address, Flow
from m2m.protocol.translation import Entry, Hook, Toward

ENTRIES_PER_SESSION = 2  # a session takes four at an inline middlebox, which then holds half
_HERE = b"\1"


class Config:
    """``struct m2m_config`` as it lies in the kernel: each field is one aligned load or store."""

    def __init__(self, table: Map) -> None:
        self._memory = mmap.mmap(table.fd, mmap.PAGESIZE)
        view = memoryview(self._memory)
        self._views = {"Q": view.cast("Q"), "I": view.cast("I"), "H": view.cast("H")}

    def __getitem__(self, field: layout.Field) -> int:
        value: int = self._views[field.format][field.offset // struct.calcsize(field.format)]
        return value

    def __setitem__(self, field: layout.Field, value: int) -> None:
        self._views[field.format][field.offset // struct.calcsize(field.format)] = value

    def close(self) -> None:
        for view in self._views.values():
            view.release()
        self._memory.close()


class Tables:
    """Flows, rules, own addresses, reasons."""

    def __init__(self, loaded: Object) -> None:
        self.config = Config(loaded.map("config"))
        self._let_in_ports = 0xFFFF, 0  # lowest, highest; see _let_in()
        self._set_clock = loaded.program("m2m_set_clock")
        self._flows = FlowTable(loaded.map("flows"))
        self._redirects = loaded.map("redirects")
        self.splices = SpliceTable(loaded.map("splices"))
        self._rules = loaded.map("rules")
        self._addresses = loaded.map("addresses")
        self._reasons = loaded.map("reasons")

    def configure(self, limits: Limits, ports: tuple[int, int], heartbeat_limit: float) -> None:
        config = self.config
        config[layout.LINGER] = layout.ticks(limits.linger)
        config[layout.TCP_IDLE] = layout.ticks(limits.tcp_idle)
        config[layout.UDP_IDLE] = layout.ticks(limits.udp_idle)
        config[layout.PORT_LO], config[layout.PORT_HI] = ports
        if config[layout.LAYOUT_VERSION]:
            self._let_in_ports = config[layout.IN_PORT_LO], config[layout.IN_PORT_HI]
        self._let_in(*ports)
        config[layout.JIFFY] = layout.jiffy()
        self.set_clock()
        config[layout.HEARTBEAT_LIMIT] = int(heartbeat_limit * 1e9)
        config[layout.LAYOUT_VERSION] = layout.VERSION

    def set_clock(self) -> None:
        """Bring the programs' time into line with CLOCK_MONOTONIC."""
        self._set_clock.run()

    def _let_in(self, *ports: int) -> None:
        """Have incoming packets with these ports looked up: a neighbour's may differ from ours.

        The range never shrinks: what a session that is over has left of it only costs time.
        """
        lowest, highest = self._let_in_ports
        lowest, highest = min(lowest, *ports), max(highest, *ports)
        self.config[layout.IN_PORT_LO], self.config[layout.IN_PORT_HI] = lowest, highest
        self._let_in_ports = lowest, highest

    # -- entries ------------------------------------------------------------------------

    def rows_of(self, entries: Sequence[Entry]) -> list[tuple[bytes, bytes]]:
        """Entries as the table has them, to be installed now.

        What comes back is to be in place before what goes out; of two entries in one direction,
        the later one on a packet's way comes first.
        """
        if len(entries) > 1:
            entries = sorted(entries, key=_install_order)
        now = layout.now_ticks()
        rows = [layout.pack_entry(entry, now) for entry in entries]
        lowest, highest = self._let_in_ports
        for entry in entries:
            sport, dport = entry.match.sport, entry.match.dport
            if entry.hook is Hook.IN and not (
                lowest <= sport <= highest and lowest <= dport <= highest
            ):
                self._let_in(sport, dport)
        return rows

    def install(self, rows: Iterable[tuple[bytes, bytes]], splices: Mapping[bytes, bytes]) -> None:
        """All or none, in their order; the *splices* of those that have one, by key."""
        flows = self._flows
        done: list[tuple[bytes, bytes | None]] = []
        before = {key: self.splices.put(key, splice) for key, splice in splices.items()}
        try:
            for key, value in rows:
                replaced = None
                if not flows.add(key, value):
                    replaced = flows.lookup(key)
                    flows.update(key, value)
                done.append((key, replaced))
        except BpfError as error:
            for key, replaced in reversed(done):
                if replaced is None:
                    flows.delete(key)
                else:
                    flows.update(key, replaced, EXIST)
            for key, splice in before.items():
                if splice is None:
                    self.splices.drop(key)
                else:
                    self.splices.put(key, splice)
            if error.errno == _TABLE_FULL:
                raise DatapathFull(
                    f"the translation table is full: it has room for {flows.max_entries} entries;"
                    " start the agent with room for more sessions (--sessions)"
                ) from error
            raise DatapathError(f"the kernel refuses an entry: {error.strerror}") from error
        for key, replaced in done:
            if replaced is not None and key not in splices:
                self.splices.drop(key)

    def remove(self, keys: Iterable[tuple[Hook, Flow]]) -> None:
        for hook, flow in keys:
            key = layout.pack_key(hook, flow)
            self._flows.delete(key)
            self.splices.drop(key)

    def rows(self, keys: Iterable[tuple[Hook, Flow]]) -> list[Row]:
        now, found = layout.now_ticks(), []
        for hook, flow in keys:
            key = layout.pack_key(hook, flow)
            value = self._flows.lookup(key)
            if value is not None and layout.session_of(value):
                found.append(self._row(key, value, now))
        return found

    def idle(self, keys: Iterable[tuple[Hook, Flow]]) -> list[float | None]:
        now = layout.now_ticks()
        return layout.idle(self._flows.lookup_each([layout.pack_key(*key) for key in keys]), now)

    def _row(self, key: bytes, value: bytes, now: int) -> Row:
        """The row as it counts: with its redirect and its splice, if there are any."""
        redirect = self._redirects.lookup(key) if layout.is_changing(value) else None
        if redirect is not None:
            value, splice = layout.redirected(value, redirect), layout.redirected_splice(redirect)
        else:
            splice = self.splices.get(key) if layout.is_spliced(value) else None
        return layout.unpack_row(key, value, now, splice)

    def batches(self) -> Iterator[list[Row]]:
        """Every entry of every session, some thousand at a time."""
        for batch in self._flows.batches():
            now = layout.now_ticks()
            yield [self._row(key, value, now) for key, value in batch if layout.session_of(value)]

    # -- the rest -----------------------------------------------------------------------

    def set_rules(self, policy: PolicySet) -> None:
        """Fill the set of rules that is not in use, and make it the one that is.

        No program may be reading that set any more since it was last in use.
        """
        if len(policy.rules) > layout.MAX_RULES:
            raise DatapathError(
                f"policy set {policy.generation} compiles to {len(policy.rules)} rules, more than"
                f" the {layout.MAX_RULES} the datapath holds; simplify its predicates"
            )
        config = self.config
        spare = 1 - config[layout.ACTIVE_RULES]
        first, count = spare * layout.MAX_RULES, len(policy.rules)
        if count:
            self._rules.update_batch(
                struct.pack(f"={count}I", *range(first, first + count)), layout.pack_rules(policy)
            )
        config[layout.RULE_COUNT[spare]] = count
        config[layout.GENERATION[spare]] = policy.generation & 0xFFFFFFFF
        config[layout.ACTIVE_RULES] = spare

    @property
    def rule_count(self) -> int:
        """Rules in force."""
        return self.config[layout.RULE_COUNT[self.config[layout.ACTIVE_RULES]]]

    def set_addresses(self, addresses: Iterable[Address]) -> None:
        wanted, there, key = set(addresses), set(), None
        while (key := self._addresses.next_key(key)) is not None:
            there.add(key)
        try:
            for address in wanted - there:
                self._addresses.update(address, _HERE)
        except BpfError as error:
            raise DatapathError(
                f"of this host's {len(wanted)} addresses only {self._addresses.max_entries} find"
                f" room ({error.strerror}); name those to use (--address)"
            ) from error
        for address in there - wanted:
            self._addresses.delete(address)

    def reasons(self) -> dict[Reason, int]:
        counts = {}
        for reason in Reason:
            value = self._reasons.lookup(struct.pack("=I", reason))
            counts[reason] = sum(struct.unpack(f"={possible_cpus()}Q", value)) if value else 0
        return counts

    def close(self) -> None:
        """The tables themselves belong to the object they were loaded with."""
        self.config.close()


_TABLE_FULL = 7  # E2BIG


def _install_order(entry: Entry) -> tuple[bool, bool]:
    return entry.toward is Toward.RIGHT, entry.hook is Hook.IN
