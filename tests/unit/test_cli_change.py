"""m2mctl insert, remove, replace, drain, and m2m-nf: what is asked, shown and returned."""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
import trio
from rich.console import Console

from m2m.agent import control
from m2m.agent.api import ChangeReport
from m2m.agent.functions import Functions
from m2m.agent.order import ME, Do, Order, Wish
from m2m.cli import change, ctl, nf
from m2m.cli.change_view import Progress, report_view
from m2m.policy.rules import Asker, ChangeMode
from m2m.policy.syntax import matches
from m2m.protocol.flow import Flow
from nf_adapters.skb.leaving import Stays, leave
from tests.support.control import FakeSource, session

ID = session(0).id
NUMBER = int(ID, 16)
PATH = ("client", "ids/ids1", "server")
DONE = ChangeReport(ID, "op", PATH, ("client", "ids/ids2", "server"), 0.00123, 0.0041, 17, 1)
REFUSED = ChangeReport(
    ID, "lf", PATH, PATH, error="there is no room", by="ids/ids2", cause="install_failed"
)


class Ran(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Ran]:
    """Runs m2mctl, or m2m-nf, in the test's own run directory."""

    def run(*arguments: str, main: Callable[[list[str]], int] = ctl.main) -> Ran:
        capsys.readouterr()
        return Ran(main([*arguments, "--run-dir", str(tmp_path / "run")]), *capsys.readouterr())

    return run


@asynccontextmanager
async def an_agent(tmp_path: Path, *reports: ChangeReport) -> AsyncIterator[FakeSource]:
    source = FakeSource(1)
    source.reports = list(reports)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(control.serve, tmp_path / "run" / "client.sock", source)
            await nursery.start(
                control.serve_nfs, tmp_path / "run" / "client.nf", source, Functions()
            )
            yield source
            nursery.cancel_scope.cancel()


in_thread = trio.to_thread.run_sync


@pytest.mark.parametrize(
    ("line", "wish", "sessions"),
    [
        (f"remove ids {ID}", Wish(Do.REMOVE, ("ids",)), (NUMBER,)),
        (f"remove firewall,ids {ID} 7", Wish(Do.REMOVE, ("firewall", "ids")), (NUMBER, 7)),
        (
            f"insert ids/ids2 --after client {ID}",
            Wish(Do.INSERT, new=("ids/ids2",), after="client"),
            (NUMBER,),
        ),
        (
            "insert dpi --before server --match any",
            Wish(Do.INSERT, new=("dpi",), before="server"),
            (),
        ),
        (f"replace ids1 ids2 {ID}", Wish(Do.REPLACE, ("ids1",), ("ids2",)), (NUMBER,)),
        ("drain ids1", Wish(Do.DRAIN, ("ids1",)), ()),
        ("drain ids1 --to dpi --match any", Wish(Do.DRAIN, ("ids1",), ("dpi",)), ()),
    ],
)
async def test_commands_become_orders(
    tmp_path: Path, run: Callable[..., Ran], line: str, wish: Wish, sessions: tuple[int, ...]
) -> None:
    async with an_agent(tmp_path, DONE) as source:
        ran = await in_thread(run, *line.split(), "--mode", "ss+op")
    assert (ran.status, ran.err) == (0, "")
    (order,) = source.orders
    assert (order.wish, order.asker, order.sessions) == (wish, Asker.OPERATOR, sessions)
    assert order.mode is ChangeMode.SS_OP
    assert (order.predicate is not None) is ("--match" in line)


async def test_a_predicate_selects_and_its_error_shows_the_place(
    tmp_path: Path, run: Callable[..., Ran]
) -> None:
    async with an_agent(tmp_path, DONE) as source:
        ran = await in_thread(run, "remove", "ids", "--match", "srcip=10.0.1.0/24 & dstport=80")
        wrong = await in_thread(run, "remove", "ids", "--match", "dstprt=80")
    (order,) = source.orders
    assert ran.status == 0
    assert order.mode is None
    assert order.predicate is not None
    assert matches(order.predicate, Flow.of(6, "10.0.1.5", 4000, "10.0.9.1", 80))
    assert not matches(order.predicate, Flow.of(6, "10.0.2.5", 4000, "10.0.9.1", 80))
    assert wrong.status == 1
    assert "match:1:1: expected a field" in wrong.err
    assert "did you mean dstport?" in wrong.err


async def test_a_report_tells_what_it_cost_and_both_paths(
    tmp_path: Path, run: Callable[..., Ran]
) -> None:
    async with an_agent(tmp_path, DONE):
        ran = await in_thread(run, "replace", "ids1", "ids2", ID)
    assert ran == Ran(
        0,
        f"session {ID}: changed (op) in 1.23 ms, old path gone after 4.1 ms\n"
        "  before client -> ids/ids1 -> server\n"
        "  after  client -> ids/ids2 -> server\n"
        "  17 packets held, 1 retransmission\n",
        "",
    )


async def test_a_report_tells_when_the_old_path_is_not_gone(
    tmp_path: Path, run: Callable[..., Ran]
) -> None:
    async with an_agent(tmp_path, msgspec.structs.replace(DONE, total=None)):
        ran = await in_thread(run, "replace", "ids1", "ids2", ID)
    assert ran.status == 0
    assert ran.out.startswith(f"session {ID}: changed (op) in 1.23 ms, old path not gone yet\n")


async def test_a_refusal_says_by_whom_and_why_and_is_an_error(
    tmp_path: Path, run: Callable[..., Ran]
) -> None:
    async with an_agent(tmp_path, DONE, REFUSED):
        ran = await in_thread(run, "replace", "ids1", "ids2", ID)
    assert ran.status == 1
    assert f"session {ID}: not changed\n  refused by ids/ids2: there is no room\n" in ran.out
    assert ran.out.endswith("  path   client -> ids/ids1 -> server\n")


async def test_json_is_one_line_per_session(tmp_path: Path, run: Callable[..., Ran]) -> None:
    async with an_agent(tmp_path, DONE, REFUSED):
        ran = await in_thread(run, "replace", "ids1", "ids2", ID, "--json")
    lines = [msgspec.json.decode(line, type=ChangeReport) for line in ran.out.splitlines()]
    assert (ran.status, lines) == (1, [DONE, REFUSED])
    assert msgspec.json.decode(ran.out.splitlines()[0])["before"] == list(PATH)


async def test_nothing_to_change_is_an_error(tmp_path: Path, run: Callable[..., Ran]) -> None:
    async with an_agent(tmp_path) as source:
        nothing = await in_thread(run, "drain", "ids1")
        unselected = await in_thread(run, "remove", "ids")
        unknown = await in_thread(run, "remove", "ids", "nonsense")
    assert nothing == Ran(1, "", "m2mctl: no session at this host is selected\n")
    assert "name sessions, or a predicate" in unselected.err
    assert "'nonsense' is no session id" in unknown.err
    assert len(source.orders) == 1


def test_an_unknown_mode_is_told_at_once(run: Callable[..., Ran]) -> None:
    with pytest.raises(SystemExit):
        run("drain", "ids1", "--mode", "fast")
    with pytest.raises(argparse.ArgumentTypeError, match="lf, op, ss\\+op"):
        change._mode("fast")


def test_words_that_mean_nothing_are_told(run: Callable[..., Ran]) -> None:
    for line in ("stats x", f"remove ids {ID} --fast", "drain ids1 --match any more"):
        with pytest.raises(SystemExit):
            run(*line.split())


# --- m2m-nf


@pytest.mark.parametrize(
    ("line", "wish"),
    [
        ("remove me", Wish(Do.REMOVE, (ME,))),
        ("insert dpi after me", Wish(Do.INSERT, new=("dpi",), after=ME)),
        ("migrate me to ids/ids2", Wish(Do.REPLACE, (ME,), ("ids/ids2",))),
    ],
)
async def test_a_network_function_asks_about_itself(
    tmp_path: Path, run: Callable[..., Ran], line: str, wish: Wish
) -> None:
    async with an_agent(tmp_path, DONE) as source:
        every = await in_thread(lambda: run(*line.split(), main=nf.main))
        await in_thread(
            lambda: run(*line.split(), "--session", ID, "--mode", "lf", "--nf", "ids", main=nf.main)
        )
    assert every.status == 0
    first, second = source.orders
    assert first == Order(wish, Asker.NF)
    assert second == Order(wish, Asker.NF, (NUMBER,), None, ChangeMode.LF, "ids")


async def test_a_network_function_names_a_session_by_what_it_sees(
    tmp_path: Path, run: Callable[..., Ran]
) -> None:
    flow = Flow.of(17, "10.0.1.5", 4000, "10.0.9.1", 53)
    async with an_agent(tmp_path, REFUSED) as source:
        ran = await in_thread(
            lambda: run("remove", "me", "--flow", "udp 10.0.1.5:4000 10.0.9.1:53", main=nf.main)
        )
        wrong = await in_thread(lambda: run("remove", "me", "--flow", "udp x", main=nf.main))
    assert ran.status == 1
    (order,) = source.orders
    assert order.predicate is not None
    assert matches(order.predicate, flow)
    assert not matches(order.predicate, flow._replace(sport=4001))
    assert wrong.err.startswith("m2m-nf: cannot read session")


async def test_a_network_function_tells_what_it_has_added(
    tmp_path: Path, run: Callable[..., Ran]
) -> None:
    async with an_agent(tmp_path, DONE) as source:
        done = await in_thread(
            lambda: run("remove", "me", "--session", ID, "--added=-22,7", main=nf.main)
        )
        with pytest.raises(SystemExit):
            run("remove", "me", "--added=22", main=nf.main)
        async with await trio.open_unix_socket(os.fspath(tmp_path / "run" / "client.nf")) as stream:
            request = {"request": "me", "do": "insert", "new": ["dpi"], "added": [1, 2]}
            await stream.send_all(msgspec.json.encode(request) + b"\n")
            assert b"a removal alone" in await stream.receive_some()
    assert done.status == 0
    (order,) = source.orders
    assert (order.wish, order.added) == (Wish(Do.REMOVE, (ME,)), (-22, 7))


async def test_a_network_functions_socket_takes_nothing_else(tmp_path: Path) -> None:
    async with an_agent(tmp_path, DONE) as source:
        async with await trio.open_unix_socket(os.fspath(tmp_path / "run" / "client.nf")) as stream:
            for request in (
                {"request": "end", "id": ID}, {"request": "sessions"},
                {"request": "change", "do": "drain", "old": ["ids1"]},
            ):  # fmt: skip
                await stream.send_all(msgspec.json.encode(request) + b"\n")
                answer = msgspec.json.decode(await stream.receive_some())
                assert answer["item"] == "failed"
                assert "this is no request" in answer["why"]
            drain = {"request": "me", "do": "drain"}
            await stream.send_all(msgspec.json.encode(drain) + b"\n")
            assert "migrates" in msgspec.json.decode(await stream.receive_some())["why"]
        assert (source.orders, source.ended) == ([], [])


async def test_who_asks_and_goes_does_not_stop_the_agent(tmp_path: Path) -> None:
    async with an_agent(tmp_path, *[DONE] * 5000) as source:
        at = os.fspath(tmp_path / "run" / "client.sock")
        request = msgspec.json.encode({"request": "change", "do": "drain", "old": ["x"]})
        async with await trio.open_unix_socket(at) as stream:
            await stream.send_all(request + b"\n")
            await stream.receive_some(10)
        async with await trio.open_unix_socket(at) as stream:
            await stream.send_all(b'{"request": "policy"}\n')
            assert b'"policy"' in await stream.receive_some()
        assert len(source.orders) == 1


# --- what a person sees


def shown(renderable: object) -> str:
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(renderable)
    return console.export_text()


def test_progress_is_one_line() -> None:
    progress = Progress()
    for number in range(3):
        progress.is_at(str(number), "asked")
    progress.is_at("2", "switched")
    assert progress.text == (
        "2 under way, 1 on the new path, the old one is emptied, 0 changed"
    )  # fmt: skip
    progress.ended(msgspec.structs.replace(DONE, session="0"))
    progress.ended(msgspec.structs.replace(REFUSED, session="1"))
    assert progress.text.endswith("emptied, 1 changed, 1 not changed")
    assert "1 changed" in shown(progress)


def test_of_many_the_sum_is_told() -> None:
    many = [
        msgspec.structs.replace(DONE, duration=number / 1000, retransmissions=None)
        for number in range(1, 100)
    ]
    text = shown(report_view([*many, REFUSED, REFUSED]))
    assert text.splitlines() == [
        "99 of 101 sessions changed",
        "  op: median 50 ms, 95 % within 95 ms, all within 99 ms",
        "  1683 packets held, retransmissions not known",
        "  2 refused by ids/ids2: there is no room",
    ]


def test_of_many_reasons_the_commonest_are_told() -> None:
    reports = [msgspec.structs.replace(REFUSED, error=f"reason {n}") for n in range(8)]
    lines = shown(report_view([*reports, *reports[:5]])).splitlines()
    assert lines[0] == "0 of 13 sessions changed"
    assert lines[1] == "  2 refused by ids/ids2: reason 0"
    assert lines[-1] == "  3 for other reasons: --json tells each"


FLOW = Flow.of(6, "10.0.1.5", 4000, "10.0.9.1", 80)


async def test_a_function_that_leaves_knows_what_may_come_still(tmp_path: Path) -> None:
    def go() -> bool:
        return leave(FLOW, (16, -4), run_dir=tmp_path / "run")

    async with an_agent(tmp_path, DONE) as source:
        assert await in_thread(go)
        (order,) = source.orders
        assert order.predicate is not None
        assert matches(order.predicate, FLOW)
        assert (order.mode, order.added) == (ChangeMode.LF, (16, -4))
        source.reports = [msgspec.structs.replace(DONE, total=None)]
        assert not await in_thread(go)
        for cause, free in (("busy", True), ("timeout", False)):
            source.reports = [msgspec.structs.replace(REFUSED, cause=cause)]
            with pytest.raises(Stays) as stays:
                await in_thread(go)
            assert stays.value.free is free
        source.reports = []  # it says that there is nothing to change
        with pytest.raises(Stays) as stays:
            await in_thread(go)
        assert stays.value.free
    with pytest.raises(Stays, match="no agent") as stays:
        await in_thread(go)
    assert stays.value.free
