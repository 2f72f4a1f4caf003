"""What a bench reports: medians beside each other, taken in turns."""

import io

import msgspec
import pytest
from rich.console import Console

from m2m.lab.bench.report import (
    Plan,
    Result,
    Samples,
    figure,
    interleave,
    joined,
    percentile,
    show,
    write_json,
)


def result(name="tap", paper=None):
    return Result.of(name, "ns", Samples((3.0, 1.0, 2.0), (4.0, 8.0)), "plain", paper)


def test_a_row_compares_medians():
    row = result()
    assert (row.ours, row.peer, row.ratio) == (2.0, 6.0, 2.0 / 6.0)


def test_turns_are_compared_with_their_own_moment():
    """A machine at half its speed for two turns of three: no median of one side shows the half."""
    slow = Samples((10.0, 5.0, 5.0), (10.0, 10.0, 5.0))
    row = Result.of("tap", "Gbit/s", slow, "plain")
    assert (row.ours, row.peer, row.ratio) == (5.0, 10.0, 1.0)


def test_percentiles_are_values_that_were_measured():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, rank) for rank in (0.0, 0.5, 0.99, 1.0)] == [1.0, 3.0, 5.0, 5.0]


def test_the_samples_of_several_runs_are_one_row():
    parts = [Samples((1.0,), (2.0,)), Samples((3.0, 4.0), (5.0, 6.0))]
    assert joined(parts) == Samples((1.0, 3.0, 4.0), (2.0, 5.0, 6.0))


def test_nothing_measured_is_an_error():
    with pytest.raises(ValueError, match="tap: nothing was measured"):
        Result.of("tap", "ns", Samples((), (1.0,)), "plain")


async def test_turns_swap_who_goes_first():
    order: list[str] = []

    async def ours() -> float:
        order.append("ours")
        return float(len(order))

    async def peer() -> float:
        order.append("peer")
        return float(len(order))

    samples = await interleave(ours, peer, 3)
    assert order == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert samples == Samples((1.0, 4.0, 5.0), (2.0, 3.0, 6.0))


def test_the_json_has_every_field(tmp_path):
    file = tmp_path / "rows.json"
    write_json(file, [result(paper=131.0)])
    [row] = msgspec.json.decode(file.read_bytes())
    assert row == {
        "name": "tap",
        "unit": "ns",
        "ours": 2.0,
        "peer": 6.0,
        "peer_name": "plain",
        "ratio": 2.0 / 6.0,
        "samples": {"ours": [3.0, 1.0, 2.0], "peer": [4.0, 8.0]},
        "paper": 131.0,
    }


def test_the_table_names_each_peer_once_and_fits_80_columns():
    out = io.StringIO()
    rows = [result("tap, 64 flows, offloads off"), result("inline, 1 flow, offloads off", 0.97)]
    show(Console(file=out, width=80), rows)
    text = out.getvalue()
    assert text.count("beside plain") == 1
    assert "0.33" in text
    assert "0.97" in text
    assert "…" not in text


@pytest.mark.parametrize(
    ("value", "text"), [(12345.6, "12,346"), (99.44, "99.4"), (9.994, "9.99"), (-0.5, "-0.50")]
)
def test_figures_have_three_digits(value, text):
    assert figure(value) == text


def test_a_plan_picks():
    assert Plan(quick=True).pick(9, 3) == 3
    assert Plan(quick=False).pick(9, 3) == 9
