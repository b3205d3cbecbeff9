"""Whose fault it is when a request is not for this server."""

from __future__ import annotations

import pytest

from p2pllm.server.offer import inner_points
from p2pllm.types import Span
from tests.server.support import offer


@pytest.mark.parametrize(("points", "inner"), [((), ()), ((2, 6), ()), ((0, 2, 3, 5, 6, 8), (3, 5)), ((4,), (4,))])
def test_borders_of_the_span_are_rounded_by_travelling(points: tuple[int, ...], inner: tuple[int, ...]):
    assert inner_points(points, Span(2, 6)) == inner


def test_an_offer_is_of_one_span():
    assert offer(Span(1, 3)).span == Span(1, 3)
