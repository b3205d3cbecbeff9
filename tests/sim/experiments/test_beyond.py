"""Kind "beyond": switches gain what a shorter way and fewer bytes gain, and what does not exist is refused."""

from __future__ import annotations

import pytest

from p2pllm.errors import UserError
from sim.experiments.beyond import KIND, Params
from sim.kinds import Run


@pytest.fixture(scope="module")
def outcome():
    return KIND.play(Params(setups=("bloom-3",)), Run(quick=True, processes=1))


def table_of(outcome, word):
    table = next(table for table in outcome.tables if word in table.title)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_each_switch_gains_and_all_together_gain_most(outcome):
    rows = table_of(outcome, "steps")
    assert {row["network"] for row in rows} == {"1000 Mbit/s, 5 ms", "100 Mbit/s, 5 ms", "100 Mbit/s, 100 ms"}
    for row in rows:
        single = [row["x push"], row["x 8-bit"], row["x overhead"]]
        assert all(factor >= 1.0 for factor in single)
        assert row["x all"] > max(single)
    far = next(row for row in rows if row["network"].endswith("100 ms"))
    assert far["x push"] > 1.1  # two crossings of 50 ms less
    assert far["x all"] < 1.35  # the client and compute bind: no protocol makes a single stream much faster


def test_windows_matter_where_round_trips_are_long(outcome):
    rows = {row["network"]: row for row in table_of(outcome, "forwards")}
    assert rows["100 Mbit/s, 100 ms"]["x window"] > 1.5
    assert rows["100 Mbit/s, 5 ms"]["x window"] < 1.05
    assert all(row["x all"] > 1.1 for row in rows.values())


def test_nothing_of_it_is_a_gate(outcome):
    assert outcome.gates == ()
    assert "not this project's" in outcome.notes[0]


def test_speculation_is_refused_by_name():
    with pytest.raises(UserError, match=r"'speculation' cannot be played: the product does not speculate yet"):
        KIND.play(Params(switches=("push", "speculation")), Run(quick=True, processes=1))
