"""The same with a real model: the demo checkpoint in exact mode, a seeded sample of all faults at all messages."""

from __future__ import annotations

import random

import pytest

from p2pllm.model.tokenizer import load_tokenizer
from p2pllm.node.reference import Reference
from sim.checkpoints import CheckpointModel
from sim.failover import NEW_TOKENS, Case, Outcome, play
from sim.faults import Mishap
from tests.failover.verdicts import MODE_NAMES, MODES, check_all, every_fault

SPANS = ((0, 3), (3, 5), (5, 8), (0, 3), (2, 6), (5, 8))
BORDERS = (0, 3, 5, 8)
SAMPLE = 16


@pytest.fixture(scope="module")
def demo() -> CheckpointModel:
    model = CheckpointModel()
    assert model.exact
    return model


@pytest.mark.parametrize("push", MODES, ids=MODE_NAMES.get)
def test_a_sample_of_all_faults(demo: CheckpointModel, push: bool) -> None:
    def player(case: Case) -> Outcome:
        return play(case, demo)

    tokenizer = load_tokenizer(demo.checkpoint.source)
    assert tokenizer is not None
    prompt = tuple(tokenizer.encode("Once upon a time there was a brave knight"))
    case = Case(push=push, spans=SPANS, activations="int8", prompt=prompt)
    run = player(case)
    assert run.error is None
    reference = Reference(demo.checkpoint).greedy(prompt, NEW_TOKENS, BORDERS, "int8")
    assert list(run.tokens) == reference
    every = [other for mishap in Mishap for other in every_fault(run, case, mishap)]
    check_all(random.Random(2312).sample(every, SAMPLE), run, player)
