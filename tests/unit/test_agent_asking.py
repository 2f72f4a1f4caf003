"""Who asks for a change, whether they may, and what they are told: over agents in memory."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from m2m.agent.api import ChangeReport, format_session
from m2m.agent.asking import Asking
from m2m.agent.order import ME, Do, Order, Wish
from m2m.agent.wishes import carry_out
from m2m.errors import M2MError
from m2m.policy.language import parse_predicate
from m2m.policy.rules import Asker, ChangeMode
from m2m.protocol.flow import Flow, parse_address
from m2m.protocol.splice import Splice
from m2m.protocol.translation import Hook
from m2m.protocol.update import Mode, Request, UpdateSyn
from tests.support.agents import FIREWALL, IDS, SERVER, Host
from tests.support.changing import OTHER, PORT, LiveSession, a_live_session, larger_policy

BEFORE = ("10.0.0.1", "firewall/fw1", "ids/ids1", SERVER)
IDS2 = Wish(Do.REPLACE, ("ids",), ("ids/ids2",))


async def ask(
    host: Host, wish: Wish, *sessions: int, asker: Asker = Asker.OPERATOR, **options: object
) -> tuple[list[ChangeReport], list[str]]:
    """The reports, and how far it was in between."""
    reports: list[ChangeReport] = []
    stages: list[str] = []
    order = Order(wish, asker, sessions, **options)  # type: ignore[arg-type]
    with trio.fail_after(30):
        await carry_out(
            order, host.sessions, host.asking, reports.append,
            lambda _session, stage: stages.append(stage),
        )  # fmt: skip
    return reports, stages


async def ask_one(host: Host, wish: Wish, chain: LiveSession, **options: object) -> ChangeReport:
    (report,), _ = await ask(host, wish, chain.session, **options)  # type: ignore[arg-type]
    return report


async def test_the_host_that_leads_reports_all_of_it(autojump_clock: MockClock) -> None:
    async with a_live_session() as chain:
        (report,), stages = await ask(chain.firewall, IDS2, chain.session)
        assert (report.session, report.mode) == (format_session(chain.session), "op")
        assert report.before == BEFORE
        assert report.after == ("10.0.0.1", "firewall/fw1", "ids/ids2", SERVER)
        assert report.duration is not None
        assert report.total is not None
        assert 0 < report.duration < report.total
        assert (report.error, report.by, report.cause, report.held) == (None, None, None, 0)
        assert stages == ["asked", "switched"]
        assert chain.carries(FIREWALL, OTHER)
        placed = chain.firewall.sessions.chains.loads.placed
        assert placed == {parse_address(OTHER): 1, parse_address(IDS): -1}, "for those to come"


@pytest.mark.parametrize("asked", ["client", "ids", "server"])
async def test_any_host_of_the_path_can_be_asked(autojump_clock: MockClock, asked: str) -> None:
    async with a_live_session() as chain:
        (report,), stages = await ask(getattr(chain, asked), IDS2, chain.session)
        assert (report.error, report.before) == (None, BEFORE)
        assert report.after == ("10.0.0.1", "firewall/fw1", "ids/ids2", SERVER)
        assert report.duration == report.total
        assert stages == ["asked"]
        requests = [one for _, to, one in chain.seen if isinstance(one, Request)
                    and to == parse_address(FIREWALL)]  # fmt: skip
        assert requests
        assert chain.carries(FIREWALL, OTHER)


@pytest.mark.parametrize(
    ("wish", "way"),
    [
        (Wish(Do.REMOVE, ("ids",)), (FIREWALL,)),
        (Wish(Do.REMOVE, ("firewall", "ids")), ()),
        (Wish(Do.INSERT, new=("ids2",), after="client"), (OTHER, FIREWALL, IDS)),
        (Wish(Do.INSERT, new=("ids2",), before="server"), (FIREWALL, IDS, OTHER)),
        (Wish(Do.REPLACE, ("firewall", "ids"), ("fw2",)), (OTHER,)),
        (Wish(Do.DRAIN, ("fw1",)), (OTHER, IDS)),
    ],
)
async def test_what_is_wished_comes_true(
    autojump_clock: MockClock, wish: Wish, way: tuple[str, ...]
) -> None:
    async with a_live_session() as chain:
        report = await ask_one(chain.client, wish, chain)
        assert report.error is None
        assert chain.carries(*way)


async def test_the_state_of_an_inline_function_moves_along(autojump_clock: MockClock) -> None:
    async with a_live_session() as chain:
        flow = chain.client.flow(PORT)
        report = await ask_one(chain.client, Wish(Do.DRAIN, ("fw1",)), chain)
        assert (report.error, report.mode) == (None, "op")
        await wait_all_tasks_blocked()
        assert chain.firewall.nf_state.known == {}
        assert chain.other.nf_state.known == {flow: f"{FIREWALL} {OTHER}".encode()}
        assert chain.ids.nf_state.known == {}


async def test_a_network_function_takes_itself_out_or_has_another_take_over(
    autojump_clock: MockClock,
) -> None:
    async with a_live_session() as chain:
        await chain.load(larger_policy("allow={nf}"))
        insert = Wish(Do.INSERT, new=("ids2",), after=ME)
        report = await ask_one(chain.firewall, insert, chain, asker=Asker.NF, nf="firewall")
        assert (report.error, report.after[1:4]) == (None, ("firewall/fw1", "ids/ids2", "ids/ids1"))
        report = await ask_one(chain.ids, Wish(Do.REMOVE, (ME,)), chain, asker=Asker.NF)
        assert (report.error, report.after[1:-1]) == (None, ("firewall/fw1", "ids/ids2"))
        migrate = Wish(Do.REPLACE, (ME,), ("ids/ids1",))
        (report,), _ = await ask(chain.other, migrate, asker=Asker.NF)  # all that pass there
        assert (report.error, report.after[1:-1]) == (None, ("firewall/fw1", "ids/ids1"))
        assert chain.carries(FIREWALL, IDS)


async def test_a_host_that_is_something_else_to_the_session_is_left_out(
    autojump_clock: MockClock,
) -> None:
    async with a_live_session() as chain:
        await chain.load(larger_policy("allow={nf}"))
        with pytest.raises(M2MError, match="this host is not ids to the session"):
            await ask(chain.firewall, Wish(Do.REMOVE, (ME,)), asker=Asker.NF, nf="ids")


@pytest.mark.parametrize(
    ("options", "asker", "who"),
    [
        ("", Asker.NF, "operator, policy may"),
        ("allow={}", Asker.OPERATOR, "nobody may"),
        ("allow={nf, policy}", Asker.OPERATOR, "nf, policy may"),
    ],
)
async def test_the_policy_says_who_may_ask(
    autojump_clock: MockClock, options: str, asker: Asker, who: str
) -> None:
    async with a_live_session() as chain:
        await chain.load(larger_policy(options))
        report = await ask_one(chain.ids, Wish(Do.REMOVE, (ME,)), chain, asker=asker)
        assert report.error is not None
        assert who in report.error
        assert f"{asker} may not ask" in report.error
        assert (report.by, report.cause, report.duration) == (IDS, None, None)
        assert chain.carries(FIREWALL, IDS)


async def test_a_session_without_a_policy_obeys_the_defaults(autojump_clock: MockClock) -> None:
    async with a_live_session() as chain:
        policy = larger_policy()
        await chain.load(type(policy)(policy.generation + 1, policies=(), rules=(), nfs=policy.nfs))
        report = await ask_one(chain.ids, Wish(Do.REMOVE, (ME,)), chain, asker=Asker.NF)
        assert report.error is not None
        assert "by default operator, policy may" in report.error
        report = await ask_one(chain.ids, Wish(Do.REMOVE, (ME,)), chain)
        assert (report.error, report.mode) == (None, "op")


@pytest.mark.parametrize(
    ("options", "mode", "expected"),
    [
        ("", None, Mode.OP),
        ("change=lf", None, Mode.LF),
        ("change=ss+op", None, Mode.SS_OP),
        ("change=lf", ChangeMode.SS_OP, Mode.SS_OP),
    ],
)
async def test_the_mode_is_the_policys_unless_the_command_says_another(
    autojump_clock: MockClock, options: str, mode: ChangeMode | None, expected: Mode
) -> None:
    async with a_live_session() as chain:
        assert chain.carries(FIREWALL, IDS)
        await chain.load(larger_policy(options))
        report = await ask_one(chain.client, IDS2, chain, mode=mode)
        assert (report.error, report.mode) == (None, ChangeMode[expected.name])
        assert {one.mode for _, _, one in chain.seen if isinstance(one, UpdateSyn)} == {expected}


async def test_udp_is_changed_by_op_where_the_policy_says_ss_op(autojump_clock: MockClock) -> None:
    async with a_live_session() as chain:
        flow = Flow(17, chain.client.address, 40000, parse_address(SERVER), PORT)
        await chain.load(larger_policy("change=ss+op"))
        chain.client.datapath.packet(Hook.OUT, flow)
        await wait_all_tasks_blocked()
        (udp,) = set(chain.client.sessions.node.sessions) - {chain.session}
        (report,), _ = await ask(chain.client, Wish(Do.REMOVE, ("ids",)), udp)
        assert (report.error, report.mode) == (None, "op")
        (report,), _ = await ask(
            chain.client, Wish(Do.REMOVE, ("firewall",)), udp, mode=ChangeMode.SS_OP
        )
        assert (report.cause, report.mode) == ("mode", "ss+op")


async def test_a_refusal_says_by_whom_and_why(autojump_clock: MockClock) -> None:
    async with a_live_session() as chain:
        chain.other.routes.cut.add(parse_address(SERVER))
        report = await ask_one(chain.server, IDS2, chain)
        assert report.error is not None
        assert "no route to" in report.error
        assert report.cause == "no_route"
        assert report.by == SERVER  # at fault: the host that cannot be reached
        assert report.before == report.after == BEFORE
        assert (report.duration, report.total) == (None, None)


async def test_a_path_that_is_not_whole_is_not_touched(autojump_clock: MockClock) -> None:
    async with a_live_session() as chain:
        chain.kill(chain.ids)
        report = await ask_one(chain.client, IDS2, chain)
        assert report.error is not None
        assert "its path is not whole: 10.0.0.3 does not answer" in report.error


async def test_sessions_are_selected_by_id_by_predicate_or_all_of_an_instance(
    autojump_clock: MockClock,
) -> None:
    async with a_live_session() as chain:
        for sport in range(1000, 1010):
            chain.client.open(PORT, sport)
        await wait_all_tasks_blocked()
        sessions = len(chain.client.sessions)
        some = parse_predicate("srcport=1000-1003")
        reports, _ = await ask(chain.client, Wish(Do.REMOVE, ("ids",)), predicate=some)
        assert [report.error for report in reports] == [None] * 4
        every = parse_predicate("any")
        through = len(chain.ids.sessions)
        assert 0 < through < sessions
        reports, _ = await ask(chain.client, Wish(Do.DRAIN, ("ids1",)), predicate=every)
        assert len(reports) == through
        # Those whose firewall is at the other host cannot have their IDS there as well.
        stay = {report.session for report in reports if "firewall/fw2" in report.before}
        assert {report.session for report in reports if report.error is not None} == stay
        assert len(chain.ids.sessions) == len(stay)
        with pytest.raises(M2MError, match=r"none of the sessions .* \(11\): .* fw2 -> ids2"):
            await ask(chain.client, Wish(Do.REMOVE, ("fw2", "ids2")), predicate=every)
        with pytest.raises(M2MError, match="no session at this host is selected"):
            await ask(chain.client, IDS2, predicate=parse_predicate("srcport=1"))


async def test_one_that_is_named_and_does_not_fit_is_told_so(autojump_clock: MockClock) -> None:
    async with a_live_session() as chain:
        (report,), _ = await ask(chain.client, Wish(Do.REMOVE, ("ids2",)), chain.session)
        assert report.error is not None
        assert "the session does not pass ids2" in report.error
        (report,), _ = await ask(chain.client, IDS2, 4711)
        assert (report.error, report.before) == (
            "the session is not established at this host", ()
        )  # fmt: skip


async def test_a_plan_that_another_change_overtakes_is_made_anew(
    autojump_clock: MockClock,
) -> None:
    """Both get what they want, whoever is first."""
    async with a_live_session() as chain:
        reports: list[ChangeReport] = []

        async def one(host: Host, wish: Wish) -> None:
            reports.append(await ask_one(host, wish, chain))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, chain.server, Wish(Do.REMOVE, ("ids",)))
            nursery.start_soon(one, chain.client, Wish(Do.REPLACE, ("firewall",), ("fw2",)))
        assert [report.error for report in reports] == [None, None]
        assert chain.carries(OTHER)


async def test_changes_of_one_session_take_turns(autojump_clock: MockClock) -> None:
    async with a_live_session() as chain:
        reports: list[ChangeReport] = []

        async def one(wish: Wish) -> None:
            reports.append(await ask_one(chain.client, wish, chain))

        async with trio.open_nursery() as nursery:
            for wish in (Wish(Do.REMOVE, ("ids",)), Wish(Do.INSERT, new=("ids",), before="server")):
                nursery.start_soon(one, wish)
        assert [report.error for report in reports] == [None, None]
        assert not chain.client.asking._turns


async def test_who_goes_away_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    async with a_live_session() as chain:
        chain.lose = lambda _from, _to, message: isinstance(message, UpdateSyn)
        asking: Asking = chain.client.asking
        with trio.move_on_after(0.1):
            await ask_one(chain.client, IDS2, chain)
        assert not asking._turns
        assert not chain.client.sessions.changes._expected


# --- a function that has changed lengths

LEAVE = Wish(Do.REMOVE, (ME,))


async def test_what_it_has_added_is_added_to_its_left(autojump_clock: MockClock) -> None:
    async with a_live_session() as chain:
        await chain.load(larger_policy("allow={nf}"))
        report = await ask_one(chain.firewall, LEAVE, chain, asker=Asker.NF, added=(22, -5))
        assert (report.error, report.after) == (None, ("10.0.0.1", "ids/ids1", SERVER))
        splice = chain.client.sessions.node.sessions[chain.session].splice
        assert splice == Splice((22, 2**32 - 5), (0, 0), (0, 0))
        flow = chain.client.flow(PORT)
        out, back = (
            chain.client.kernel.rows([(hook, one)])[0].entry
            for hook, one in (
                (Hook.OUT, flow),
                (Hook.IN, chain.client.sessions.node.sessions[chain.session].right.reverse()),
            )
        )
        assert out.splice == back.splice == splice
        assert chain.carries(IDS)


async def test_a_sum_of_nothing_is_none(autojump_clock: MockClock) -> None:
    async with a_live_session() as chain:
        await chain.load(larger_policy("allow={nf}"))
        report = await ask_one(chain.firewall, LEAVE, chain, asker=Asker.NF, added=(0, 0))
        assert report.error is None
        assert chain.client.sessions.node.sessions[chain.session].splice is None


async def test_where_nothing_can_have_been_added_it_is_refused(autojump_clock: MockClock) -> None:
    async with a_live_session() as chain:
        with pytest.raises(M2MError, match="to this session the host is a tap"):
            await ask(chain.ids, LEAVE, chain.session, asker=Asker.NF, added=(1, 0))
        chain.client.open(PORT, 40001)
        await wait_all_tasks_blocked()
        with pytest.raises(M2MError, match="2 are selected here"):
            await ask(chain.firewall, LEAVE, asker=Asker.NF, added=(1, 0))
        chain.firewall.datapath.splices = False  # type: ignore[misc]  # as with the module
        with pytest.raises(M2MError, match="use --datapath=ebpf"):
            await ask(chain.firewall, LEAVE, chain.session, asker=Asker.NF, added=(1, 0))
        assert chain.carries(FIREWALL, IDS)
