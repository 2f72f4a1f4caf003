"""m2mctl against a control socket: what a person reads, what a program reads, what is refused."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
import trio
import trio.testing
from rich.console import Console

from m2m.agent import control
from m2m.agent.api import (
    AgentInfo,
    Event,
    EventKind,
    FlowInfo,
    PathInfo,
    PolicyInfo,
    Role,
    SessionInfo,
    SessionState,
    Stats,
)
from m2m.agent.dialogue import Item, Snapshot
from m2m.cli import ctl, tables
from m2m.cli.query import find_socket
from m2m.errors import M2MError
from tests.support.control import AGENTS, POLICY, FakeSource, path, session

FIRST = session(0).id


class Ran(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("M2M_SOCKET", raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Ran]:
    """Runs m2mctl in the test's own run directory."""

    def run(*arguments: str) -> Ran:
        capsys.readouterr()
        status = ctl.main(["--run-dir", str(tmp_path / "run"), *arguments])
        return Ran(status, *capsys.readouterr())

    return run


@asynccontextmanager
async def agents(tmp_path: Path, *sources: FakeSource) -> AsyncIterator[None]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for source in sources:
                at = tmp_path / "run" / f"{source.name}.sock"
                await nursery.start(control.serve, at, source)
            yield
            nursery.cancel_scope.cancel()


in_thread = trio.to_thread.run_sync


async def test_sessions_fit_80_columns_and_show_what_matters(
    tmp_path: Path, run: Callable[..., Ran]
) -> None:
    async with agents(tmp_path, FakeSource(3)):
        ran = await in_thread(run, "sessions")
    lines = ran.out.splitlines()
    assert ran.status == 0
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert lines[0].split() == ["SESSION", "SUPERSESSION", "STATE", "TO", "SERVER", "TO", "CLIENT"]
    assert lines[1].split() == [
        FIRST,
        "10.0.1.2:40000",
        "established",
        "1.2k",
        "pkt",
        "2.4k",
        "pkt",
    ]
    assert lines[2].split() == [
        "client", "firewall->ids", ">", "10.0.4.2:80", "tcp", "idle", "30", "ms",
        "62.4", "kB", "3.5", "MB",
    ]  # fmt: skip
    assert len(lines) == 1 + 2 * 3


async def test_a_wide_terminal_gets_one_line_for_each_session(
    tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    async with agents(tmp_path, FakeSource(3)):
        ran = await in_thread(run, "sessions")
    assert len(ran.out.splitlines()) == 1 + 3


async def test_no_sessions_are_said_to_be_none(tmp_path: Path, run: Callable[..., Ran]) -> None:
    async with agents(tmp_path, FakeSource(0)):
        assert (await in_thread(run, "sessions")).out == "no sessions\n"
        assert (await in_thread(run, "sessions", "--json")).out == "[]\n"


async def test_a_path_shows_hosts_and_the_legs_between(
    tmp_path: Path, run: Callable[..., Ran]
) -> None:
    async with agents(tmp_path, FakeSource(1)):
        ran = await in_thread(run, "session", FIRST)
    lines = ran.out.splitlines()
    assert lines[0] == f"session {FIRST}  10.0.1.2:40000 > 10.0.4.2:80 tcp"
    hosts = [line for line in lines if line.startswith("●")]
    assert hosts[1] == "● fw1  inline  firewall/fw1  10.0.2.2  established"
    assert [line.split()[1] for line in hosts] == ["client", "fw1", "ids1", "server"]
    legs = [line for line in lines if line.startswith("│ ") and line.endswith(" tcp")]
    assert legs[1] == "│ 10.0.2.2:61200 > 10.0.3.2:63100 tcp"
    assert len(legs) == 3
    assert lines[-1] == "complete, from client to server"


@pytest.mark.parametrize(
    ("command", "kind", "expected"),
    [
        (["sessions"], list[SessionInfo], [session(0), session(1)]),
        (["session", FIRST], PathInfo, path(0)),
        (["policy"], PolicyInfo, POLICY),
        (["agents"], tuple[AgentInfo, ...], AGENTS),
        (["end", FIRST], dict[str, str], {"ended": FIRST}),
    ],
)
async def test_json_is_the_agents_own_answer(
    tmp_path: Path,
    run: Callable[..., Ran],
    command: list[str],
    kind: type[object],
    expected: object,
) -> None:
    async with agents(tmp_path, FakeSource(2)):
        behind = await in_thread(run, *command, "--json")
        before = await in_thread(run, "--json", *command)
    assert msgspec.json.decode(behind.out, type=kind) == expected
    assert before == behind


async def test_stats_show_what_is_not_zero_and_json_shows_all(
    tmp_path: Path, run: Callable[..., Ran]
) -> None:
    async with agents(tmp_path, FakeSource(1)):
        ran = await in_thread(run, "stats")
        stats = msgspec.json.decode((await in_thread(run, "stats", "--json")).out, type=Stats)
    assert ["refused", "12", "345"] in [line.split() for line in ran.out.splitlines()]
    assert "no entry" not in ran.out
    assert stats.reasons["no_entry"] == 0


async def test_policy_and_agents_fit_80_columns(tmp_path: Path, run: Callable[..., Ran]) -> None:
    async with agents(tmp_path, FakeSource(1)):
        policy = (await in_thread(run, "policy")).out
        listed = (await in_thread(run, "agents")).out
    assert max(len(line.rstrip()) for line in (policy + listed).splitlines()) <= 80
    assert "policy server 10.0.9.1:5263 connected" in policy
    assert policy.splitlines()[-1].split() == ["ids2", "10.0.5.2", "away"]
    assert ["fw1", "middlebox", "10.0.2.2", "3", "3", "41%", "connected"] in [
        line.split() for line in listed.splitlines()
    ]


async def test_ending_a_session_ends_it(tmp_path: Path, run: Callable[..., Ran]) -> None:
    source = FakeSource(1)
    async with agents(tmp_path, source):
        ran = await in_thread(run, "end", FIRST)
    assert ran.out == f"session {FIRST} is being torn down\n"
    assert source.ended == [FIRST]


@pytest.mark.needs("root")
async def test_a_process_moves(tmp_path: Path, run: Callable[..., Ran]) -> None:
    source, second = FakeSource(2), session(1).id
    async with agents(tmp_path, source):
        file = str(tmp_path / "deeds")
        ran = await in_thread(run, "hand-over", FIRST, second, "--to", file)
        assert (ran.status, ran.err) == (0, "") and "2 sessions are in" in ran.out
        assert source.handed == [((FIRST, second), Path(file))]
        ran = await in_thread(run, "take-over", file)
        assert ran.status == 1 and f"{second} is refused: it is at this host" in ran.out
        ran = await in_thread(run, "lead-here", FIRST)
        assert (ran.status, ran.out) == (0, "1 sessions lead here\n")
        ran = await in_thread(run, "lead-here")
        assert ran.status == 1 and "m2mctl take-over comes first" in ran.err


async def test_an_unknown_session_says_which_there_are(
    tmp_path: Path, run: Callable[..., Ran]
) -> None:
    async with agents(tmp_path, FakeSource(1)):
        ran = await in_thread(run, "session", "abc")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == (f"m2mctl: no session 0000000000000abc is at this host; there are {FIRST}\n")


async def test_an_agent_is_found_by_name_or_by_being_alone(
    tmp_path: Path, run: Callable[..., Ran]
) -> None:
    async with agents(tmp_path, FakeSource(1, "one"), FakeSource(1, "two")):
        several = await in_thread(run, "stats")
        unknown = await in_thread(run, "stats", "--agent", "three")
        named = await in_thread(run, "--agent", "two", "stats")
    assert several.err == "m2mctl: several agents run here: choose one with --agent: one, two\n"
    assert f"there is no agent 'three' in {tmp_path / 'run'}; there is one, two" in unknown.err
    assert named.out.startswith("two ")


async def test_a_dead_agents_socket_is_passed_over(tmp_path: Path, run: Callable[..., Ran]) -> None:
    async with agents(tmp_path, FakeSource(1, "alive")):
        with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as dead:
            await dead.bind(os.fspath(tmp_path / "run" / "dead.sock"))
        ran = await in_thread(run, "stats")
        named = await in_thread(run, "stats", "--agent", "dead")
    assert ran.out.startswith("alive ")
    assert "no agent answers at" in named.err


def test_without_any_agent_it_says_how_to_get_one(run: Callable[..., Ran]) -> None:
    ran = run("sessions")
    assert ran.status == 1
    assert "start one with m2m-agent" in ran.err


def test_the_environment_names_the_agent_unless_the_command_line_does(tmp_path: Path) -> None:
    environment = {"M2M_SOCKET": "/lab/client.sock"}
    assert find_socket(None, None, environment) == Path("/lab/client.sock")
    with pytest.raises(M2MError, match="no agent runs here"):
        find_socket(tmp_path, None, environment)


async def test_watch_prints_events_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The agent goes after two events, which ends the watch with an error that says so."""
    source = FakeSource(1)
    flow = FlowInfo("tcp", "10.0.1.2", 40000, "10.0.4.2", 80)
    ran: list[int] = []
    arguments = ["--run-dir", str(tmp_path / "run"), "watch"]

    async def watch() -> None:
        ran.append(await in_thread(ctl.main, arguments))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, agents(tmp_path, source):
            nursery.start_soon(watch)
            while not source.watchers:
                await source.changed.wait()
            source.tell(Event(0.0, EventKind.ESTABLISHED, "in 0.4 ms", FIRST, flow))
            source.tell(Event(1.0, EventKind.POLICY, "generation 4"))
            await trio.testing.wait_all_tasks_blocked()
    out, err = capsys.readouterr()
    assert ran == [1]
    assert "established " + FIRST + " 10.0.1.2:40000 > 10.0.4.2:80 tcp in 0.4 ms" in out
    assert "policy" in out.splitlines()[1]
    assert "ended before it had answered" in err


# --- tables


def shown(renderable: object, width: int = 80) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(renderable)
    return console.export_text()


def test_rates_are_differences_over_time() -> None:
    before, now = session(0, packets=1000), session(0, packets=3000)
    table = tables.sessions_table([now], 80, before={now.id: before}, seconds=2.0)
    lines = shown(table).splitlines()
    assert "1.0k pkt/s" in lines[1]
    assert "416 kbit/s" in lines[2]


def test_a_session_that_is_new_has_no_rate() -> None:
    assert "pkt/s" not in shown(tables.sessions_table([session(0)], 80, before={}))


def test_hosts_that_disagree_over_a_leg_are_shown_both_ways() -> None:
    whole = path(0)
    odd = FlowInfo("tcp", "10.9.9.9", 1, "10.0.3.2", 2)
    hops = (*whole.hops[:2], msgspec.structs.replace(whole.hops[2], left=odd), *whole.hops[3:])
    text = shown(tables.path_view(msgspec.structs.replace(whole, hops=hops)))
    assert "10.0.2.2:61200 > 10.0.3.2:63100 tcp  as fw1 sends it" in text
    assert "10.9.9.9:1 > 10.0.3.2:2 tcp  as ids1 expects it" in text


def test_a_hop_that_does_not_answer_is_shown_where_the_path_ends() -> None:
    whole = path(0)
    silent = msgspec.structs.replace(
        whole.hops[2], host="", role=None, position="", nf=None, state=SessionState.UNREACHABLE,
        left=None, right=None, to_server=None, to_client=None, supersession=None,
    )  # fmt: skip
    broken = PathInfo(whole.session, (*whole.hops[:2], silent), False, "10.0.3.2 is silent")
    text = shown(tables.path_view(broken))
    assert "● 10.0.3.2  unreachable" in text
    assert "incomplete: 10.0.3.2 is silent" in text


def test_both_halves_at_a_proxy_are_shown() -> None:
    whole = path(0)
    local = FlowInfo("tcp", "10.0.3.2", 50123, "10.0.4.2", 80)
    at_proxy = msgspec.structs.replace(
        whole.hops[2], host="squid", position="proxy", nf="cache/squid"
    )
    came = msgspec.structs.replace(at_proxy, right=None, next=None)
    goes = msgspec.structs.replace(at_proxy, left=None, prev=None, local=local)
    right = PathInfo("b" * 16, (goes, *whole.hops[3:]), True)
    left = PathInfo(whole.session, (*whole.hops[:2], came), True, behind=(right,))
    lines = shown(tables.path_view(left)).splitlines()
    joint = lines.index("complete, from client to proxy")
    assert lines[joint + 2].startswith(f"session {'b' * 16}  10.0.1.2:40000 > 10.0.4.2:80 tcp")
    at = "● squid  proxy  cache/squid  10.0.3.2"
    assert f"{at}  established" in lines[joint - 4 : joint]
    assert f"{at}  as 10.0.3.2:50123  established" in lines[joint:]
    assert lines[-1] == "complete, from proxy to server"
    seen = msgspec.structs.replace(session(0), position="proxy", right=None, local=local)
    assert "as 10.0.3.2:50123" in shown(tables.sessions_table([seen], 80))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_949, "99.9 kB"), (99_950, "100 kB"),
     (999_499, "999 kB"), (999_500, "1.0 MB"), (3.2e15, "3.2 PB")],
)  # fmt: skip
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert tables.count(value, "B") == text


def test_a_picture_of_more_sessions_than_rows_counts_the_rest() -> None:
    console = Console(width=80, height=24)
    stats = Stats("a", Role.CLIENT, 1.0, 90, {}, {}, {}, "fake")
    snapshot = Snapshot(5.0, stats, tuple(session(number) for number in range(50)))
    text = shown(ctl._picture(snapshot, None, console))
    assert "and 85 more" in text
    assert len(text.splitlines()) <= 24 - ctl._EVENTS_SHOWN


def test_items_of_the_socket_are_told_apart() -> None:
    packed = msgspec.json.encode(Snapshot(1.0, Stats("a", Role.CLIENT, 1.0, 0, {}, {}, {}), ()))
    assert isinstance(msgspec.json.decode(packed, type=Item), Snapshot)
