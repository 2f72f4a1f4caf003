"""The contract: installing, replacing, removing entries; what packets become; what is counted."""

from __future__ import annotations

import pytest

from m2m.datapath import ALL_ADDRESSES, DatapathError, DatapathFull, Reason, Row, Verdict
from m2m.datapath.fake_packets import Tcp
from m2m.protocol.flow import Flow, Proto
from m2m.protocol.translation import Action, Entry, Hook, Position, Toward, view_of
from tests.datapath.conftest import LIMITS, OpenRig
from tests.support.rig import HOST_LEFT, HOST_RIGHT, LEFT, RIGHT, Place, Rig, Seen
from tests.support.sessions import entries, going_on, opening, session


async def dump(rig: Rig) -> list[Row]:
    return [row async for row in rig.datapath.dump()]


def keys(rows: tuple[Entry, ...]) -> list[tuple[Hook, Flow]]:
    return [entry.key for entry in rows]


@pytest.mark.parametrize("proto", Proto)
async def test_i7_other_traffic_is_untouched(rig: Rig, proto: Proto) -> None:
    await rig.datapath.install(entries(rig, session(Position.CLIENT, proto)))
    out = opening(proto, number=2)
    back = Flow(proto, RIGHT, 80, HOST_RIGHT, 41002)
    through = Flow(proto, LEFT, 40000, RIGHT, 80)
    await rig.packet(Hook.OUT, out, b"out", flags=Tcp.SYN)
    await rig.packet(Hook.IN, back, b"back")
    await rig.packet(Hook.IN, through, b"through")
    seen = await rig.seen()
    assert sorted(seen, key=lambda packet: packet.payload) == [
        Seen(Place.STACK, back, b"back"),
        Seen(Place.WIRE, out, b"out"),
        Seen(Place.WIRE, through, b"through"),
    ]
    assert not any((await rig.datapath.reasons()).values())


@pytest.mark.parametrize("proto", Proto)
@pytest.mark.parametrize("position", Position)
async def test_i2_i3_each_position_translates(rig: Rig, position: Position, proto: Proto) -> None:
    rows = entries(rig, session(position, proto))
    await rig.datapath.install(rows)
    by_key = {entry.key: entry for entry in rows}
    for number, entry in enumerate(rows):
        payload = b"packet %d" % number
        await rig.packet(entry.hook, entry.match, payload)
        out, place = entry.rewrite, Place.WIRE
        if entry.action is Action.DELIVER and position is Position.INLINE:
            # The host's stack forwards it, and it leaves by the entry for its restored flow.
            out = by_key[Hook.OUT, out].rewrite
        elif entry.action is Action.DELIVER:
            place = Place.STACK
        assert await rig.seen() == [Seen(place, out, payload)]


async def test_a_proxy_goes_on_by_a_flow_of_its_own(rig: Rig) -> None:
    """Both halves have one supersession, and neither meets the packets of the other."""
    came, goes = session(Position.PROXY, number=2), going_on()
    came = came._replace(supersession=goes.supersession)
    await rig.datapath.install(entries(rig, came))
    await rig.datapath.install(entries(rig, goes))
    assert came.left is not None and goes.right is not None and goes.local is not None
    await rig.packet(Hook.OUT, goes.local, b"onward", flags=Tcp.SYN)
    await rig.packet(Hook.OUT, goes.supersession.reverse(), b"to the client")
    assert sorted(await rig.seen(), key=lambda packet: packet.payload) == [
        Seen(Place.WIRE, goes.right, b"onward"),
        Seen(Place.WIRE, came.left.reverse(), b"to the client"),
    ]
    await rig.packet(Hook.IN, goes.right.reverse(), b"back")
    assert await rig.seen() == [Seen(Place.STACK, goes.local.reverse(), b"back")]
    found: dict[int, list[Entry]] = {}
    for row in await dump(rig):
        found.setdefault(row.entry.session, []).append(row.entry)
    assert {view_of(rows) for rows in found.values()} == {came, goes}


async def test_only_what_opens_a_session_at_a_proxy_is_marked(rig: Rig) -> None:
    rows = [
        row
        for number, position in enumerate((Position.PROXY, Position.SERVER, Position.INLINE), 3)
        for row in entries(rig, session(position, number=number))
    ]
    await rig.datapath.install(rows)
    with rig.stops_marked():
        for row in rows:
            await rig.packet(row.hook, row.match, row.position.name.encode(), flags=Tcp.SYN)
        await rig.packet(rows[0].hook, rows[0].match, b"later")
        seen = [packet.payload for packet in await rig.seen()]
    # Its answers, and what comes later, go by what connection tracking knows of the first.
    assert sorted(seen) == [b"INLINE"] * 4 + [b"PROXY"] + [b"SERVER"] * 2 + [b"later"]
    assert rows[0].toward is Toward.RIGHT


@pytest.mark.parametrize("proto", Proto)
async def test_only_the_exact_flow_is_translated(rig: Rig, proto: Proto) -> None:
    rows = entries(rig, session(Position.CLIENT, proto))
    await rig.datapath.install(rows)
    flow = session(Position.CLIENT, proto).supersession
    others = [
        flow._replace(sport=flow.sport + 1),
        flow._replace(dport=flow.dport + 1),
        flow._replace(src=HOST_LEFT),
        flow._replace(dst=RIGHT),
        flow._replace(proto=Proto.UDP if proto is Proto.TCP else Proto.TCP),
    ]
    for other in others:
        await rig.packet(Hook.OUT, other, b"other")
        assert await rig.seen() == [Seen(Place.WIRE, other, b"other")]


async def test_entries_come_back_as_they_were_put_in(rig: Rig) -> None:
    rows = [
        entry
        for number, position in enumerate(Position, 1)
        for proto in Proto
        for entry in entries(rig, session(position, proto, 10 * number + proto))
    ]
    await rig.datapath.install(rows)
    by_key = {row.entry.key: row.entry for row in await dump(rig)}
    assert by_key == {entry.key: entry for entry in rows}


async def test_rows_are_those_asked_for_that_are_there(rig: Rig) -> None:
    rows = entries(rig, session(Position.TAP))
    await rig.datapath.install(rows)
    unknown = (Hook.OUT, opening())
    found = await rig.datapath.rows([unknown, rows[1].key])
    assert [row.entry for row in found] == [rows[1]]


async def test_a_full_table_takes_all_or_nothing(open_rig: OpenRig) -> None:
    rig = await open_rig(sessions=8)
    installed: list[tuple[Entry, ...]] = []

    async def fill() -> None:
        for number in range(1, 200):
            rows = entries(rig, session(Position.TAP, number=number))
            await rig.datapath.install(rows)
            installed.append(rows)

    with pytest.raises(DatapathFull):
        await fill()
    assert len(installed) >= 8
    expected = {entry.key for rows in installed for entry in rows}
    assert {row.entry.key for row in await dump(rig)} == expected

    # One that does not fit as a whole leaves nothing either: room is made for one entry only.
    await rig.datapath.remove([installed[0][0].key])
    refused = entries(rig, session(Position.TAP, number=500))
    filler = entries(rig, session(Position.INLINE, number=501))
    with pytest.raises(DatapathFull):
        await rig.datapath.install((*refused, *filler))
    assert await rig.datapath.rows(keys(refused + filler)) == []

    # What is there already needs no room.
    again = [entry._replace(generation=99) for entry in installed[-1]]
    await rig.datapath.install(again)
    assert [row.entry for row in await rig.datapath.rows(keys(installed[-1]))] == again

    # And room that is made is used.
    await rig.datapath.remove(keys(installed[1]))
    await rig.datapath.install(entries(rig, session(Position.TAP, number=502)))


async def test_an_entry_with_the_same_key_is_replaced(rig: Rig) -> None:
    old = entries(rig, session(Position.CLIENT))
    await rig.datapath.install(old)
    view = session(Position.CLIENT, number=2)._replace(
        supersession=session(Position.CLIENT).supersession
    )
    new = entries(rig, view)
    await rig.datapath.install(new)
    await rig.packet(Hook.OUT, view.supersession, b"x")
    assert view.right is not None
    assert await rig.seen() == [Seen(Place.WIRE, view.right, b"x")]
    by_key = {row.entry.key: row.entry for row in await dump(rig)}
    assert by_key[Hook.OUT, view.supersession] == new[0]


async def test_removed_entries_translate_no_more(rig: Rig) -> None:
    view = session(Position.CLIENT)
    rows = entries(rig, view)
    await rig.datapath.install(rows)
    await rig.datapath.remove([*keys(rows), (Hook.IN, opening(number=9))])
    assert await dump(rig) == []
    await rig.packet(Hook.OUT, view.supersession, b"x")
    assert await rig.seen() == [Seen(Place.WIRE, view.supersession, b"x")]
    await rig.datapath.remove(keys(rows))  # it is no error that they are gone


@pytest.mark.parametrize("proto", Proto)
async def test_i8_a_subsession_without_entry_is_dropped_and_counted(rig: Rig, proto: Proto) -> None:
    """The stack would answer with a reset, and end a session elsewhere."""
    stray = session(Position.SERVER, proto).left
    assert stray is not None
    await rig.packet(Hook.IN, stray, b"x")
    assert await rig.seen() == []
    assert (await rig.datapath.reasons())[Reason.NO_ENTRY] == 1
    # What is not ours is none of our business, whatever its ports are.
    transit = stray._replace(dst=RIGHT)
    await rig.packet(Hook.IN, transit, b"x")
    assert await rig.seen() == [Seen(Place.WIRE, transit, b"x")]
    assert (await rig.datapath.reasons())[Reason.NO_ENTRY] == 1
    # Unless nothing is forwarded: then it is for an address that is too new to be known.
    await rig.datapath.set_addresses([ALL_ADDRESSES])
    await rig.packet(Hook.IN, transit, b"x")
    assert await rig.seen() == []
    assert (await rig.datapath.reasons())[Reason.NO_ENTRY] == 2


async def test_packets_and_bytes_are_counted_per_entry(rig: Rig) -> None:
    rows = entries(rig, session(Position.TAP))
    await rig.datapath.install(rows)
    towards_server, towards_client = rows
    for size in (0, 10, 100):
        await rig.packet(Hook.IN, towards_server.match, b"x" * size)
    await rig.packet(Hook.IN, towards_client.match, b"y")
    assert len(await rig.seen()) == 4
    right, left = (row.counters for row in await rig.datapath.rows(keys(rows)))
    assert (right.packets, right.bytes) == (3, 3 * 40 + 110)
    assert (left.packets, left.bytes) == (1, 41)
    assert 0 <= right.idle < LIMITS.tcp_idle


async def test_how_long_entries_have_seen_nothing(rig: Rig) -> None:
    rows = [*entries(rig, session(Position.CLIENT)), *entries(rig, session(Position.TAP, number=2))]
    await rig.datapath.install(rows)
    await rig.packet(rows[0].hook, rows[0].match, b"x")
    await rig.datapath.redirect([rows[0]])  # an entry that changes is the same entry still
    unknown = Hook.IN, opening(Proto.TCP, number=3)
    # What is no session's is none of these entries.
    passed = opening(Proto.TCP, number=4)
    await rig.datapath.release(passed, Verdict.PASS)
    wanted = [*keys(tuple(rows)), unknown, (Hook.OUT, passed)]
    *there, none, of_no_session = await rig.datapath.idle(wanted)
    assert (none, of_no_session) == (None, None)
    same = [row.counters.idle for row in await rig.datapath.rows(wanted)]
    assert len(there) == len(same) == 4
    for one, other in zip(there, same, strict=True):
        assert one is not None and 0 <= one <= other < LIMITS.tcp_idle


async def test_udp_has_no_sequence_numbers(rig: Rig) -> None:
    rows = entries(rig, session(Position.TAP, Proto.UDP))
    await rig.datapath.install(rows)
    await rig.packet(Hook.IN, rows[0].match, b"x" * 5)
    assert len(await rig.seen()) == 1
    (row,) = await rig.datapath.rows([rows[0].key])
    counters = row.counters
    assert (counters.packets, counters.bytes, counters.max_seq) == (1, 33, None)


@pytest.mark.parametrize("isn", [0, 1000, 2**31 - 50, 2**32 - 50, 2**32 - 1])
async def test_largest_sequence_number_wraps(rig: Rig, isn: int) -> None:
    """The number is one past the last that a segment takes: what its ACK will say."""

    def at(offset: int) -> int:
        return (isn + offset) % 2**32

    rows = entries(rig, session(Position.TAP))
    await rig.datapath.install(rows)

    async def largest() -> int | None:
        await rig.seen()
        (row,) = await rig.datapath.rows([rows[0].key])
        return row.counters.max_seq

    assert await largest() is None
    await rig.packet(Hook.IN, rows[0].match, seq=isn, flags=Tcp.SYN)
    assert await largest() == at(1)
    await rig.packet(Hook.IN, rows[0].match, b"x" * 100, seq=at(1))
    assert await largest() == at(101)
    await rig.packet(Hook.IN, rows[0].match, b"x" * 40, seq=at(1))  # a retransmission
    assert await largest() == at(101)
    await rig.packet(Hook.IN, rows[0].match, seq=at(101), flags=Tcp.FIN | Tcp.ACK)
    assert await largest() == at(102)


async def test_fin_and_rst_are_marked_in_their_direction(rig: Rig) -> None:
    rows = entries(rig, session(Position.TAP))
    await rig.datapath.install(rows)
    await rig.packet(Hook.IN, rows[0].match, flags=Tcp.FIN | Tcp.ACK)
    await rig.packet(Hook.IN, rows[1].match, flags=Tcp.RST)
    await rig.packet(Hook.IN, rows[0].match)
    await rig.seen()
    right, left = (row.counters for row in await rig.datapath.rows(keys(rows)))
    assert (right.fin, right.rst) == (True, False)
    assert (left.fin, left.rst) == (False, True)


async def test_i8_hops_run_out_only_in_transit(rig: Rig) -> None:
    rows = entries(rig, session(Position.TAP))
    await rig.datapath.install(rows)
    await rig.packet(Hook.IN, rows[0].match, b"last", ttl=1)
    await rig.packet(Hook.IN, rows[0].match, b"next to last", ttl=2)
    assert [packet.payload for packet in await rig.seen()] == [b"next to last"]
    assert (await rig.datapath.reasons())[Reason.TTL_EXPIRED] == 1


async def test_i8_larger_than_the_next_link(rig: Rig) -> None:
    rows = [
        entry._replace(hop=entry.hop._replace(mtu=600)) if entry.hop else entry
        for entry in entries(rig, session(Position.TAP))
    ]
    await rig.datapath.install(rows)
    await rig.packet(Hook.IN, rows[0].match, b"x" * 561)
    assert await rig.seen() == []
    await rig.packet(Hook.IN, rows[0].match, b"x" * 560)
    assert len(await rig.seen()) == 1
    assert (await rig.datapath.reasons())[Reason.TOO_BIG] == 1


async def test_a_neighbour_may_use_other_ports(rig: Rig) -> None:
    view = session(Position.TAP)
    assert view.left is not None and view.right is not None
    view = view._replace(left=view.left._replace(sport=20001, dport=1024))
    await rig.datapath.install(entries(rig, view))
    assert view.left is not None
    await rig.packet(Hook.IN, view.left, b"x")
    assert await rig.seen() == [Seen(Place.WIRE, view.right, b"x")]
    await rig.close(keep=True)
    await rig.open()
    await rig.packet(Hook.IN, view.left, b"y")
    assert await rig.seen() == [Seen(Place.WIRE, view.right, b"y")]


async def test_only_attached_interfaces_translate(rig: Rig) -> None:
    view = session(Position.CLIENT)
    await rig.datapath.install(entries(rig, view))
    await rig.datapath.attach([])
    await rig.packet(Hook.OUT, view.supersession, b"x")
    assert await rig.seen() == [Seen(Place.WIRE, view.supersession, b"x")]
    await rig.datapath.attach(rig.links())
    await rig.packet(Hook.OUT, view.supersession, b"y")
    assert view.right is not None
    assert await rig.seen() == [Seen(Place.WIRE, view.right, b"y")]


async def test_an_unknown_interface_is_named(rig: Rig) -> None:
    with pytest.raises(DatapathError, match="999999"):
        await rig.datapath.attach([*rig.links(), 999999])
