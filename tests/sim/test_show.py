"""Figures are printed so that people can read them, and nothing of an outcome is left out."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from sim.results import Table, gate
from sim.show import gate_table, is_number, show, text, wanted
from tests.sim.outcomes import EVERYTHING


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (None, ""), ("x", "x"), (3, "3"), (True, "True"), (1.0, "1"), (1.71, "1.71"), (253.6, "253.6"),
        (0.123456, "0.1235"), (12345.6, "12,346"), (8e18, "8e+18"), (math.inf, "inf"), (math.nan, ""), (0.0, "0"),
    ],
)  # fmt: skip
def test_cells_have_four_digits_that_count(cell, expected):
    assert text(cell) == expected


def test_everything_is_printed():
    out = io.StringIO()
    show("the [title]", EVERYTHING, Console(file=out, width=120))
    printed = out.getvalue()
    for piece in (
        "the [title]", "Steps/s <by> network", "relay, 16 bit", "1.71", "seen cell", "FAILS", "reported", "ok",
        "calibrated on 1.71", "lost a <token>", "crash@1=s0", "trace 0123456789abcdef",
    ):  # fmt: skip
        assert piece in printed


def test_gates_say_what_they_want():
    assert wanted(gate("x", 1.0, 2.0, 0.05, "S")) == "2 ± 5 %"
    assert wanted(gate("x", 1.0, 2.0, 0.0, "S", "at most")) == "≤ 2"
    assert wanted(gate("x", 1.0, None, 0.0, "R")) == ""
    assert "S: seen" in gate_table((gate("x", 1.0, 2.0, 0.05, "S"),)).note


def test_columns_of_figures_stand_to_the_right():
    table = Table("t", ("a", "b", "c"), (("x", 1, None), ("y", "inf", None)))
    assert [is_number(table, column) for column in range(3)] == [False, True, False]
