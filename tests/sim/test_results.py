"""Gates decide what they promise to decide, and tables are whole."""

from __future__ import annotations

import math

import pytest

from sim.results import Gate, Outcome, Series, Table, combined, gate


@pytest.mark.parametrize(
    ("ours", "wanted", "tolerance", "source", "sense", "ok"),
    [
        (1.05, 1.0, 0.05, "S", "near", True),
        (1.06, 1.0, 0.05, "S", "near", False),
        (0.94, 1.0, 0.05, "S", "near", False),
        (9.00, 1.0, 0.05, "R", "near", None),
        (9.00, None, 0.05, "S", "near", None),
        (None, 1.0, 0.05, "cal", "near", False),
        (math.nan, 1.0, 0.05, "ours", "near", False),
        (0.0, 0.0, 0.0, "ours", "near", True),
        (0.1 + 0.2, 0.3, 0.0, "ours", "near", True),
        (3.0, 3.0, 0.0, "ours", "at most", True),
        (3.1, 3.0, 0.0, "ours", "at most", False),
        (-9.0, 3.0, 0.0, "ours", "at most", True),
        (math.inf, 3600.0, 0.0, "S", "at least", True),
        (19.0, 20.0, 0.0, "ours", "at least", False),
        (19.0, 20.0, 0.05, "ours", "at least", True),
    ],
)
def test_a_gate_holds_within_its_tolerance(ours, wanted, tolerance, source, sense, ok):
    assert gate("x", ours, wanted, tolerance, source, sense).ok is ok


def test_a_ratio_needs_two_figures():
    assert Gate("x", 3.0, 2.0, 0.0, None, "R").ratio == 1.5
    assert Gate("x", 3.0, None, 0.0, None, "R").ratio is None
    assert Gate("x", 3.0, 0.0, 0.0, None, "R").ratio is None


def test_an_outcome_is_ok_unless_something_it_promised_is_not_so():
    def outcome(*gates, violations=()):
        return Outcome((), (), gates, (), (), "00", violations)

    reported, failed = gate("a", 9.0, 1.0, 0.1, "R"), gate("b", 9.0, 1.0, 0.1, "S")
    assert outcome(reported).ok
    assert not outcome(reported, failed).ok
    assert not outcome(reported, violations=("lost a token",)).ok


def test_tables_and_series_are_rectangular():
    with pytest.raises(ValueError, match="2 cells under 1 columns"):
        Table("t", ("a",), ((1, 2),))
    with pytest.raises(ValueError, match="1 places for 2 values"):
        Series("s", (1.0,), (1.0, 2.0))


def test_a_combined_hash_depends_on_order():
    assert combined(["a", "b"]) == combined(["a", "b"]) != combined(["b", "a"])
