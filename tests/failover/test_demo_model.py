"""The same with a real model: the demo checkpoint in exact mode, a seeded sample of all faults at all messages."""

from __future__ import annotations

import functools
import random

import pytest
import torch

from p2pllm.local.models import resolve_model
from p2pllm.local.storage import DiskStorage
from p2pllm.model.checkpoint import Checkpoint
from p2pllm.model.ends import Ends
from p2pllm.model.exact import check_exact, numerics
from p2pllm.model.span import SpanModel
from p2pllm.model.tokenizer import load_tokenizer
from p2pllm.node.reference import Reference
from p2pllm.types import Span
from sim.failover import NEW_TOKENS, Case, Outcome, play
from sim.faults import Mishap
from tests.failover.verdicts import MODE_NAMES, MODES, check_all, every_fault

SPANS = ((0, 3), (3, 5), (5, 8), (0, 3), (2, 6), (5, 8))
BORDERS = (0, 3, 5, 8)
SAMPLE = 16


class DemoBlocks:
    """Spans and ends of the demo checkpoint."""

    def __init__(self) -> None:
        self.checkpoint = Checkpoint(resolve_model("demo", "", DiskStorage()))
        self.config = self.checkpoint.config
        self.numerics = numerics(torch.float32, True, "cpu")
        self.span = functools.cache(self._span)
        self.ends = functools.cache(self._ends)

    def _span(self, span: Span) -> SpanModel:
        tensors = self.checkpoint.span_tensors(span, torch.float32)
        model = SpanModel.load(self.config, span, tensors, exact=True)
        assert check_exact(model)
        return model

    def _ends(self) -> Ends:
        return Ends.load(self.config, self.checkpoint.ends_tensors(torch.float32), exact=True)


@pytest.fixture(scope="module")
def demo() -> DemoBlocks:
    torch.set_num_threads(1)
    return DemoBlocks()


@pytest.mark.parametrize("push", MODES, ids=MODE_NAMES.get)
def test_a_sample_of_all_faults(demo: DemoBlocks, push: bool) -> None:
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
