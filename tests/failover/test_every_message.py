"""A generation of 24 tokens over three hops, each with a spare: any fault at any message, and nobody can tell."""

from __future__ import annotations

import functools

import pytest

from sim.failover import NEW_TOKENS, PROMPT, Case, Outcome, play, toy
from sim.faults import Mishap
from tests.failover.verdicts import MODE_NAMES, MODES, check_all, every_fault

EVERYWHERE = [Mishap.KILL, Mishap.HANG, Mishap.RESET, Mishap.CORRUPT, Mishap.GONE, Mishap.BUSY]
NOW_AND_THEN = [mishap for mishap in Mishap if mishap not in EVERYWHERE]
STRIDE = 4
"""What is much like another fault is played at every fourth message."""


@functools.cache
def clean(push: bool) -> Outcome:
    return play(Case(push=push))


@pytest.mark.parametrize("push", MODES, ids=MODE_NAMES.get)
def test_the_undisturbed_run_is_right_and_the_same_each_time(push: bool) -> None:
    run = clean(push)
    assert list(run.tokens) == toy(3).greedy(PROMPT, NEW_TOKENS)
    assert run.recoveries == 0
    assert not run.blamed
    assert play(Case(push=push)).trace == run.trace


@pytest.mark.parametrize("push", MODES, ids=MODE_NAMES.get)
@pytest.mark.parametrize("mishap", EVERYWHERE, ids=lambda mishap: mishap.value)
def test_any_message(mishap: Mishap, push: bool) -> None:
    run = clean(push)
    assert check_all(every_fault(run, Case(push=push), mishap), run) >= len(run.seen)


@pytest.mark.parametrize("push", MODES, ids=MODE_NAMES.get)
@pytest.mark.parametrize("mishap", NOW_AND_THEN, ids=lambda mishap: mishap.value)
def test_every_fourth_message(mishap: Mishap, push: bool) -> None:
    case = Case(push=push, pass_s=0.01, seed=1)
    run = play(case)
    assert run.tokens == clean(push).tokens
    moments = range(NOW_AND_THEN.index(mishap) % STRIDE, len(run.seen), STRIDE)
    assert check_all(every_fault(run, case, mishap, moments), run)
