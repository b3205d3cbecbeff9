"""Replacements with other borders, and rounded activations: codec points stay where they were when the chain opened."""

from __future__ import annotations

import functools
import itertools

import pytest

from sim.failover import HOPS_AND_SPARES, OTHER_BORDERS, Case, Outcome, play
from sim.faults import Mishap
from tests.failover.verdicts import MODE_NAMES, MODES, check_all, every_fault, opened

TWO_FOR_ONE = ((0, 2), (2, 6), (0, 1), (1, 4), (3, 5), (4, 6))
"""Two or three servers replace one."""
STRIDE = 5
SHAPES = [
    pytest.param(HOPS_AND_SPARES, "int8", id="int8"),
    pytest.param(OTHER_BORDERS, "fp32", id="borders"),
    pytest.param(OTHER_BORDERS, "int8", id="borders-int8"),
    pytest.param(TWO_FOR_ONE, "int8", id="several-int8"),
]


@functools.cache
def clean(case: Case) -> Outcome:
    return play(case)


@pytest.mark.parametrize("push", MODES, ids=MODE_NAMES.get)
@pytest.mark.parametrize(("spans", "activations"), SHAPES)
def test_a_kill_at_every_fifth_message(spans: tuple[tuple[int, int], ...], activations: str, push: bool) -> None:
    case = Case(push=push, spans=spans, activations=activations)
    run = clean(case)
    assert run.error is None
    first = opened(run) + (STRIDE // 2 if push else 0)
    assert check_all(every_fault(run, case, Mishap.KILL, range(first, len(run.seen), STRIDE)), run)


def test_rounding_changes_the_toys_tokens() -> None:
    """Otherwise nothing of the above would show anything."""
    runs = [
        clean(Case(spans=spans, activations=codec)).tokens
        for spans, codec in itertools.product((OTHER_BORDERS, TWO_FOR_ONE), ("fp32", "int8"))
    ]
    assert runs[0] == runs[2]
    assert len(set(runs)) == 3
