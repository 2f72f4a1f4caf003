"""The netfilter module ``kmod/m2m.ko`` behind the contract of :mod:`m2m.datapath`.

What the kernel has belongs to a network namespace, not to an agent's name: one agent for each. All
is there that packets need, so each method is one command (``kmod/uapi/m2m.h``), which the kernel
carries out before the system call returns.
"""

from __future__ import annotations

import errno
import math
import secrets
import select
import struct
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

import trio

from m2m.datapath import (
    NOTE_SIZE,
    Acked,
    Datapath,
    DatapathError,
    DatapathFull,
    Ended,
    Event,
    Held,
    Holding,
    HoldOverflow,
    Limits,
    Reached,
    Reason,
    Row,
    Verdict,
    check_notes,
    check_redirect,
    genl,
    layout,
)
from m2m.datapath.genl import Genl, GenlError
from m2m.datapath.hold_rules import Where
from m2m.datapath.ticker import Ticker
from m2m.errors import UnsupportedHost
from m2m.policy.rules import PolicySet
from m2m.protocol.flow import Address, Flow
from m2m.protocol.translation import Entry, Hook, Toward

__all__ = ["KmodDatapath", "has_state", "is_loaded"]

_HEARTBEAT = 1.0  # s between signs of life
_AWAY_AFTER = 3.0  # s without one, and the agent counts as away
_VERDICTS = {Verdict.STEER: 0, Verdict.PASS: 1, Verdict.DROP: 2}  # enum m2m_release
_RESULT = struct.Struct("=QII")  # struct m2m_result
_NOTE = struct.Struct(f"=Q{NOTE_SIZE}s")  # struct m2m_note
_ROW = layout.KEY4_SIZE + layout.FLAT_SIZE

_Item = TypeVar("_Item")


def is_loaded() -> bool:
    """Whether the module is there; it is not asked for."""
    return Path("/sys/module/m2m").exists()


def has_state() -> bool:
    """Whether an agent has left its tables in this network namespace."""
    if not is_loaded():
        return False
    control = Genl()
    try:
        family = control.family()
        if family is None:
            return False
        control.ask(family, "GET_REASONS")
    except GenlError as error:
        if error.errno == errno.ENODATA:
            return False
        raise
    finally:
        control.close()
    return True


class KmodDatapath(Datapath):
    """One agent's hold on its network namespace's tables in the module. Made by :meth:`open`.

    Methods can be cancelled before they begin, and do not let other tasks run: each is a system
    call or two. They work in the namespace in which it was opened.
    """

    name: ClassVar[str] = "kmod"
    splices: ClassVar[bool] = False  # it carries through splices, but makes none

    def __init__(self) -> None:
        """Use :meth:`open`."""
        self._family = genl.find_family()
        self._control, self._reader = Genl(), Genl()
        self._events = genl.listen(self._family)
        self._ticker = Ticker(_HEARTBEAT)
        self._ready = select.epoll()
        self._ready.register(self._ticker.fileno(), select.EPOLLIN)
        self._ready.register(self._events.fileno(), select.EPOLLIN)
        self._serial = secrets.randbits(31)
        # By key: of the last wish; what is told of an earlier one counts no more.
        self._held: dict[bytes, int] = {}
        self._acks: dict[bytes, int] = {}
        self._counts: dict[bytes, int] = {}
        self._first: dict[bytes, int] = {}  # flows that are to be released, and what they wait by
        self._limits = Limits()

    @classmethod
    async def open(
        cls,
        limits: Limits = Limits(),  # noqa: B008 - immutable
        *,
        ports: tuple[int, int] = (61000, 65535),
        where: Where = Where.OUTPUT,
    ) -> KmodDatapath:
        """Make, or take over, the tables of this network namespace.

        *ports* are the first and the last subsession port; *where* tells whose first packets are
        held. Tables that carry sessions keep their size.
        Raises :exc:`~m2m.errors.UnsupportedHost` without the module or the privilege, and
        :exc:`~m2m.datapath.DatapathError` when another agent has the tables.
        """
        await trio.lowlevel.checkpoint()
        datapath = cls()
        try:
            datapath._open(limits, ports, where)
        except BaseException:
            datapath._let_go()
            raise
        return datapath

    def _open(self, limits: Limits, ports: tuple[int, int], where: Where) -> None:
        self._limits = limits
        attributes: list[tuple[str, object]] = [
            ("VERSION", layout.VERSION),
            ("SESSIONS_MAX", limits.sessions),
            ("LINGER", layout.ticks(limits.linger)),
            ("TCP_IDLE", layout.ticks(limits.tcp_idle)),
            ("UDP_IDLE", layout.ticks(limits.udp_idle)),
            ("HOLD_PACKETS", limits.hold_packets),
            ("HOLD_TIME", math.ceil(limits.hold_time * 1000)),
            ("AWAY_AFTER", int(_AWAY_AFTER * 1000)),
            ("PORT_LO", ports[0]),
            ("PORT_HI", ports[1]),
        ]
        if where is Where.FORWARD:
            attributes.append(("FORWARDED", True))
        try:
            self._ask("OPEN", *attributes)
        except GenlError as error:
            if error.errno == errno.EBUSY:
                raise DatapathError(
                    "another agent has the tables of the module m2m in this network namespace; stop"
                    " it, or run this one in another namespace"
                ) from error
            if error.errno == errno.EPERM:
                raise UnsupportedHost(
                    "the module m2m may only be used with CAP_NET_ADMIN; run the agent as root"
                ) from error
            if error.errno == errno.EPROTO:
                raise UnsupportedHost(
                    f"the module m2m that is loaded is not of this version of M2M (layout"
                    f" {layout.VERSION}); build and load its own (make kmod)"
                ) from error
            raise _refused("be opened", error) from error

    # -- the contract -------------------------------------------------------------------

    async def attach(self, ifindexes: Iterable[int]) -> None:
        await trio.lowlevel.checkpoint()
        indexes = list(ifindexes)
        try:
            self._ask("SET_LINKS", ("LINKS", struct.pack(f"={len(indexes)}I", *indexes)))
        except GenlError as error:
            if error.errno != errno.ENODEV:
                raise _refused("attach interfaces", error) from error
            raise DatapathError(
                f"interface number {indexes[error.element(4)]} cannot be served: there is none"
            ) from error

    async def set_addresses(self, addresses: Iterable[Address]) -> None:
        await trio.lowlevel.checkpoint()
        self._do("set the host's addresses", "SET_ADDRESSES", ("ADDRESSES", b"".join(addresses)))

    async def load_policy(self, policy: PolicySet) -> None:
        await trio.lowlevel.checkpoint()
        if len(policy.rules) > layout.MAX_RULES:
            raise DatapathError(
                f"policy set {policy.generation} compiles to {len(policy.rules)} rules, more than"
                f" the {layout.MAX_RULES} the datapath holds; simplify its predicates"
            )
        rules = layout.pack_rules(policy)
        step = genl.MAX_RULES_EACH * layout.RULE_SIZE
        self._do(
            "load a policy", "SET_RULES",
            ("GENERATION", policy.generation & 0xFFFFFFFF),
            *(("RULES", rules[at : at + step]) for at in range(0, len(rules), step)),
        )  # fmt: skip

    async def install(self, entries: Sequence[Entry]) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if len(entries) > 1:
            entries = sorted(entries, key=_install_order)
        rows = _packed(entries)
        # More than one command takes is not done as one by the kernel: undone here, if need be.
        old = set() if len(rows) <= genl.MAX_ROWS else self._there(rows)
        done: list[bytes] = []
        for part in _parts(rows, genl.MAX_ROWS):
            try:
                self._ask("SET_ROWS", ("ROWS", b"".join(key + value for key, value in part)))
            except GenlError as error:
                self._remove([key for key in done if key not in old])
                raise self._not_installed(error, entries, len(done)) from error
            done += [key for key, _ in part]
        self._forget_wishes(done)

    def _there(self, rows: list[tuple[bytes, bytes]]) -> set[bytes]:
        return {key for key, _ in self._rows([key for key, _ in rows])}

    def _not_installed(
        self, error: GenlError, entries: Sequence[Entry], first: int
    ) -> DatapathError:
        if error.errno == errno.ENOSPC:
            return DatapathFull(
                "the translation table is full: it was made for"
                f" {self._limits.sessions} sessions; start the agent with room for more sessions"
                " (--sessions)"
            )
        entry = entries[first + error.element(_ROW)]
        return DatapathError(f"the kernel refuses an entry: {error.strerror} ({entry.match})")

    async def remove(self, keys: Iterable[tuple[Hook, Flow]]) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._remove(_keys(keys))

    def _remove(self, keys: list[bytes]) -> None:
        for part in _parts(keys, genl.MAX_KEYS):
            self._do("remove rows", "DEL_ROWS", ("KEYS", b"".join(part)))
        self._forget_wishes(keys)

    async def redirect(self, entries: Sequence[Entry]) -> list[int]:
        await trio.lowlevel.checkpoint_if_cancelled()
        rows = _packed(entries)
        try:
            results = self._results(
                "REDIRECT", ("ROWS", b"".join(key + value for key, value in rows))
            )
        except GenlError as error:
            entry = entries[error.element(_ROW)]
            if error.errno == errno.ENOENT:
                raise _no_row(entry.key) from error
            found = self._rows([_key(entry.key)])
            if found:
                check_redirect(_row(*found[0], 0).entry, entry)
            raise _refused(f"redirect {entry.match}", error) from error
        return [packets for packets, _, _ in results]

    async def hold(
        self, keys: Iterable[tuple[Hook, Flow]], *, substream: bool = False
    ) -> list[Holding]:
        await trio.lowlevel.checkpoint_if_cancelled()
        keys = list(keys)
        packed, serial = _keys(keys), self._next_serial()
        only: tuple[tuple[str, object], ...] = (("SUBSTREAM", True),) if substream else ()
        before = {key: self._held.get(key) for key in packed}
        self._held.update(dict.fromkeys(packed, serial))
        try:
            results = self._results("HOLD", ("KEYS", b"".join(packed)), ("SERIAL", serial), *only)
        except GenlError as error:
            self._held.update({key: known for key, known in before.items() if known is not None})
            for key, known in before.items():
                if known is None:
                    del self._held[key]
            hook, flow = keys[error.element(layout.KEY4_SIZE)]
            if error.errno == errno.ENOENT:
                raise _no_row((hook, flow)) from error
            if error.errno == errno.EOPNOTSUPP:
                raise DatapathError(
                    f"packets of {flow} cannot be held: they are not sent on here"
                ) from error
            if error.errno == errno.EPROTONOSUPPORT:
                raise DatapathError(
                    f"packets of {flow} have no substreams: they are not TCP"
                ) from error
            raise _refused(f"hold packets of {flow}", error) from error
        return [
            Holding(packets, checkpoint if has_checkpoint else None)
            for packets, checkpoint, has_checkpoint in results
        ]

    async def resume(self, keys: Iterable[tuple[Hook, Flow]]) -> list[int]:
        await trio.lowlevel.checkpoint_if_cancelled()
        packed = _keys(keys)
        for key in packed:
            self._held.pop(key, None)
        try:
            return [each for each, _, _ in self._results("RESUME", ("KEYS", b"".join(packed)))]
        except GenlError as error:
            raise _refused("let held packets go", error) from error

    async def watch_ack(self, keys: Iterable[tuple[Hook, Flow]], number: int) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._watch("WATCH_ACK", self._acks, list(keys), number & 0xFFFFFFFF)

    async def watch_count(self, keys: Iterable[tuple[Hook, Flow]], number: int) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._watch("WATCH_COUNT", self._counts, list(keys), number)

    def _watch(
        self, command: str, wishes: dict[bytes, int], keys: list[tuple[Hook, Flow]], number: int
    ) -> None:
        packed, serial = _keys(keys), self._next_serial()
        try:
            self._ask(command, ("KEYS", b"".join(packed)), ("SERIAL", serial), ("NUMBER", number))
        except GenlError as error:
            key = keys[error.element(layout.KEY4_SIZE)]
            if error.errno == errno.ENOENT:
                raise _no_row(key) from error
            raise _refused(f"watch {key[1]}", error) from error
        wishes.update(dict.fromkeys(packed, serial))

    async def inherit(self, old: tuple[Hook, Flow], new: tuple[Hook, Flow]) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._do("inherit counters", "INHERIT", ("KEYS", _key(old) + _key(new)))

    async def splice(
        self, rows: tuple[Entry, Entry], silent: tuple[tuple[Hook, Flow], tuple[Hook, Flow]]
    ) -> tuple[bool, bool]:
        await trio.lowlevel.checkpoint_if_cancelled()
        raise DatapathError("with the module proxies stay in their sessions: use --datapath=ebpf")

    async def rename(self, keys: Iterable[tuple[Hook, Flow]], session: int, name: int) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        raise DatapathError("with the module sessions keep their names: use --datapath=ebpf")

    async def rows(self, keys: Iterable[tuple[Hook, Flow]]) -> list[Row]:
        await trio.lowlevel.checkpoint_if_cancelled()
        found, now = self._rows(_keys(keys)), layout.now_ticks()
        return [_row(key, value, now) for key, value in found]

    async def idle(self, keys: Iterable[tuple[Hook, Flow]]) -> list[float | None]:
        await trio.lowlevel.checkpoint_if_cancelled()
        wanted = _keys(keys)
        found = {key: value[: layout.ENTRY_SIZE] for key, value in self._rows(wanted)}
        return layout.idle([found.get(key) for key in wanted], layout.now_ticks())

    async def dump(self) -> AsyncIterator[Row]:
        parts: list[list[tuple[bytes, bytes]]] = []
        reading = self._reader.dump(self._family, "GET_ROWS")
        try:
            for message in reading:
                parts.append(_unpacked(message))
                await trio.lowlevel.checkpoint()
        finally:
            for _ in reading:  # the socket is the next one's, whatever has ended this one
                pass
        for part in parts:
            now = layout.now_ticks()
            for key, value in part:
                yield _row(key, value, now)

    async def keep(self, notes: Mapping[int, bytes]) -> None:
        check_notes(notes)
        await trio.lowlevel.checkpoint_if_cancelled()
        packed = [_NOTE.pack(session, note) for session, note in notes.items()]
        for part in _parts(packed, genl.MAX_NOTES):
            try:
                self._ask("SET_NOTES", ("NOTES", b"".join(part)))
            except GenlError as error:
                if error.errno != errno.ENOSPC:
                    raise _refused("keep a session's note", error) from error
                raise DatapathFull(
                    f"no room for another session's note: there are {self._limits.sessions};"
                    " start the agent with room for more sessions (--sessions)"
                ) from error

    async def forget(self, sessions: Iterable[int]) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        for part in _parts(list(sessions), genl.MAX_KEYS):
            packed = struct.pack(f"={len(part)}Q", *part)
            self._do("forget notes", "DEL_NOTES", ("SESSIONS", packed))

    async def kept(self) -> dict[int, bytes]:
        await trio.lowlevel.checkpoint_if_cancelled()
        found: dict[int, bytes] = {}
        for message in self._reader.dump(self._family, "GET_NOTES"):
            found.update(_NOTE.iter_unpack(message.get_attr("NOTES")))
        return found

    async def release(self, flow: Flow, verdict: Verdict) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        key = _key((Hook.OUT, flow))
        self._first.pop(key, None)
        self._do(f"release {flow}", "RELEASE", ("KEYS", key), ("VERDICT", _VERDICTS[verdict]))

    async def events(self) -> AsyncIterator[Event]:
        self._do("say that an agent is here", "BEAT")
        while True:
            await trio.lowlevel.wait_readable(self._ready)
            if self._ticker.rings():
                self._do("say that an agent is here", "BEAT")
            for message in genl.heard(self._events):
                event = self._event(message)
                if event is not None:
                    yield event

    def _event(self, message: genl.Message) -> Event | None:
        """What a message says, unless it has been told, or is about an earlier wish."""
        kind = message.get_attr("EVENT")
        key, session = message.get_attr("KEY"), message.get_attr("SESSION")
        if kind == genl.HELD:
            serial = message.get_attr("SERIAL")
            if self._first.get(key) == serial:
                return None
            self._first[key] = serial
            return Held(Flow.unpack(layout.widen(key)))
        if kind == genl.ENDED:
            reason = layout.end_reason(message.get_attr("END"))
            return None if reason is None else Ended(session, reason)
        wishes = {
            genl.OVERFLOW: self._held, genl.ACKED: self._acks, genl.REACHED: self._counts
        }[kind]  # fmt: skip
        if wishes.get(key) != message.get_attr("SERIAL"):
            return None
        del wishes[key]
        toward = Toward(message.get_attr("TOWARD"))
        if kind == genl.OVERFLOW:
            return HoldOverflow(session, toward)
        return (Acked if kind == genl.ACKED else Reached)(session, toward)

    async def reasons(self) -> Mapping[Reason, int]:
        await trio.lowlevel.checkpoint()
        answer = self._do("read its counters", "GET_REASONS")
        assert answer is not None
        counts = struct.unpack(f"={len(Reason)}Q", answer.get_attr("REASONS"))
        return {reason: counts[reason] for reason in Reason}

    async def close(self, *, keep: bool) -> None:
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()
        try:
            self._do("be closed", "CLOSE", *((("KEEP", True),) if keep else ()))
        finally:
            self._let_go()

    # -- commands -----------------------------------------------------------------------

    def _let_go(self) -> None:
        self._ready.close()
        self._ticker.close()
        self._events.close()
        self._reader.close()
        self._control.close()

    def _ask(self, command: str, *attributes: tuple[str, object]) -> genl.Message | None:
        return self._control.ask(self._family, command, *attributes)

    def _do(self, what: str, command: str, *attributes: tuple[str, object]) -> genl.Message | None:
        """The same for commands that only fail for reasons that say enough."""
        try:
            return self._ask(command, *attributes)
        except GenlError as error:
            raise _refused(what, error) from error

    def _results(self, command: str, *attributes: tuple[str, object]) -> list[tuple[int, int, int]]:
        answer = self._ask(command, *attributes)
        assert answer is not None
        return list(_RESULT.iter_unpack(answer.get_attr("RESULTS")))

    def _rows(self, keys: list[bytes]) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        for part in _parts(keys, genl.MAX_ROWS):
            answer = self._do("read rows", "GET_ROWS", ("KEYS", b"".join(part)))
            assert answer is not None
            found += _unpacked(answer)
        return found

    def _next_serial(self) -> int:
        self._serial = (self._serial + 1) & 0x7FFFFFFF
        return self._serial

    def _forget_wishes(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            for wishes in (self._held, self._acks, self._counts):
                wishes.pop(key, None)


def _refused(what: str, error: GenlError) -> DatapathError:
    return DatapathError(f"the module m2m cannot {what}: {error.strerror}")


def _no_row(key: tuple[Hook, Flow]) -> DatapathError:
    hook, flow = key
    return DatapathError(f"there is no row for {flow} ({hook.name})")


def _key(key: tuple[Hook, Flow]) -> bytes:
    return layout.narrow(layout.pack_key(*key))


def _keys(keys: Iterable[tuple[Hook, Flow]]) -> list[bytes]:
    return [_key(key) for key in keys]


def _packed(entries: Sequence[Entry]) -> list[tuple[bytes, bytes]]:
    rows = []
    for entry in entries:
        key, value = layout.pack_entry(entry, 0)
        splice = b"" if entry.splice is None else entry.splice.pack()
        rows.append((layout.narrow(key), (value + splice).ljust(layout.FLAT_SIZE, b"\0")))
    return rows


def _row(key: bytes, value: bytes, now: int) -> Row:
    entry, splice = value[: layout.ENTRY_SIZE], value[layout.ENTRY_SIZE : -4]
    spliced = splice if layout.is_spliced(entry) else None
    return layout.unpack_row(layout.widen(key), entry, now, spliced)


def _unpacked(message: genl.Message) -> list[tuple[bytes, bytes]]:
    data = message.get_attr("ROWS") or b""
    rows = (data[at : at + _ROW] for at in range(0, len(data), _ROW))
    return [(row[: layout.KEY4_SIZE], row[layout.KEY4_SIZE :]) for row in rows]


def _parts(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def _install_order(entry: Entry) -> tuple[bool, bool]:
    return entry.toward is Toward.RIGHT, entry.hook is Hook.IN
