"""Plots are drawn, the same every time; a machine without matplotlib is told what to install."""

from __future__ import annotations

import sys

import pytest

from p2pllm.errors import UserError
from sim.plots import png
from sim.results import Plot, Series
from tests.sim.outcomes import EVERYTHING


@pytest.mark.parametrize("plot", EVERYTHING.plots, ids=lambda plot: plot.title)
def test_every_kind_is_drawn_and_always_the_same(plot):
    picture = png(plot)
    assert picture.startswith(b"\x89PNG")
    assert picture == png(plot)


def test_other_values_are_another_picture():
    one, other = (Plot("t", "x", "y", (Series("s", (1.0, 2.0), (1.0, y)),)) for y in (2.0, 3.0))
    assert png(one) != png(other)


def test_nothing_to_show_on_a_logarithmic_axis_is_no_error():
    assert png(Plot("t", "x", "y", (Series("s", (1.0,), (None,)),), log_y=True)).startswith(b"\x89PNG")


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'p2pllm\[sim\]'"):
        png(EVERYTHING.plots[0])
