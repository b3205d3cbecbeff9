"""Any swarm, any faults: the right tokens, or an error that names blocks which indeed nobody serves; never a hang."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given, note, settings
from hypothesis import strategies as st

from sim.failover import PROMPT, Case, play, toy
from sim.faults import FaultAt, Mishap
from tests.failover.verdicts import MODES, opened, out_of_replicas, quiet

BLOCKS = 4
NEW_TOKENS = 10
LAST_MESSAGE = 140

spans = st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, BLOCKS)).filter(lambda span: span[0] < span[1])
faults = st.builds(FaultAt, st.sampled_from(list(Mishap)), st.integers(0, LAST_MESSAGE), st.booleans())


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A chain for all blocks, and any other servers."""
    cuts = sorted({0, BLOCKS, *draw(st.lists(st.integers(1, BLOCKS - 1), max_size=2))})
    return Case(
        faults=tuple(draw(st.lists(faults, max_size=5, unique_by=lambda fault: fault.index))),
        push=draw(st.sampled_from(MODES)),
        spans=(*itertools.pairwise(cuts), *draw(st.lists(spans, max_size=6))),
        activations=draw(st.sampled_from(["fp32", "int8", "bf16"])),
        seed=draw(st.integers(0, 1000)),
        new_tokens=NEW_TOKENS,
        pass_s=draw(st.sampled_from([0.0, 0.01, 0.3])),
    )


@settings(max_examples=60, deadline=None)
@given(cases())
def test_the_right_tokens_or_a_named_gap(case: Case) -> None:
    note(case.command())
    with quiet():
        clean = play(replace(case, faults=()))
        outcome = play(case)
    if case.activations == "fp32":
        assert list(clean.tokens) == toy(BLOCKS).greedy(PROMPT, NEW_TOKENS)
    if outcome.error is None:
        assert len(outcome.tokens) == NEW_TOKENS
    late = all(fault.index >= opened(clean) for fault in case.faults)
    if late or case.activations == "fp32":  # else other borders may have been the first, and with them the rounding
        assert outcome.tokens == clean.tokens[: len(outcome.tokens)]
    assert outcome.error is None or out_of_replicas(case, outcome), outcome.error
