"""The failure table in short: every row is there, seen cells hold, and the paper's figures stand beside ours."""

from __future__ import annotations

import functools

import pytest

from sim.cost import FailureSetup
from sim.experiments.failure_table import KIND, OURS, PAPERS, Params, paper
from sim.kinds import Run, kind_of
from sim.results import Outcome


@functools.cache
def quick() -> Outcome:
    return KIND.play(Params(), Run(quick=True, processes=1))


def test_every_seen_cell_holds():
    outcome = quick()
    assert outcome.ok
    seen = [gate for gate in outcome.gates if gate.source == "S"]
    assert [gate.wanted for gate in seen] == [0.48, 1.0, 7.76, 2.17]  # 1.0: the dash is more than an hour
    assert all(gate.ok for gate in seen)
    assert all(gate.ok is None for gate in outcome.gates if gate.source == "R")
    assert kind_of("failure-table") is KIND


def test_the_rows_and_their_sources():
    outcome = quick()
    rows = outcome.tables[0].rows
    assert [row[0] for row in rows][::2] == ["caching with restarts", "cache-less", PAPERS, OURS]
    assert {line["algorithm"] for line in outcome.results} == {row[0] for row in rows}
    assert any("token by token" in note and "contradicts" in note for note in outcome.notes)
    assert paper(PAPERS, 1024, 1e-3) == (7.76, "S")
    assert paper(PAPERS, 1024, 0.0) == (10.7, "cal")
    assert paper("caching with restarts", 1024, 1e-2) == (None, "S")
    assert paper("cache-less", 77, 0.5) == (None, "R")


def test_the_paper_and_ours_in_the_plot():
    (plot,) = quick().plots
    names = [series.name for series in plot.series]
    assert OURS in names
    assert f"{PAPERS}: the paper's" in names
    assert plot.series[0].y == pytest.approx((17.1, 0.173), rel=0.01)


def test_the_published_algorithm_by_formula():
    """Calibrated without failures; the seen cells follow."""
    setup = FailureSetup.published()
    assert setup.replay_rate(128, 0.0) == pytest.approx(11.4)
    assert setup.replay_rate(1024, 0.0) == pytest.approx(10.7)
    assert setup.replay_rate(1024, 1e-3) == pytest.approx(7.76, rel=0.02)
    assert setup.replay_rate(1024, 1e-2) == pytest.approx(2.17, rel=0.02)
