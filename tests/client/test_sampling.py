from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.client.sampling import SamplingOptions, choose, draw, generator, penalize, probabilities
from p2pllm.errors import UserError

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0])  # probabilities 0.644 0.237 0.087 0.032


def kept(options: SamplingOptions, logits: torch.Tensor = LOGITS) -> list[int]:
    return probabilities(logits, options).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({"temperature": 1.0}, [0, 1, 2, 3]),
        ({"temperature": 1.0, "top_k": 1}, [0]),
        ({"temperature": 1.0, "top_k": 3}, [0, 1, 2]),
        ({"temperature": 1.0, "top_k": 99}, [0, 1, 2, 3]),
        ({"temperature": 1.0, "top_p": 0.6}, [0]),
        ({"temperature": 1.0, "top_p": 0.65}, [0, 1]),
        ({"temperature": 1.0, "top_p": 0.9}, [0, 1, 2]),
        ({"temperature": 1.0, "top_p": 1e-9}, [0]),
        ({"temperature": 1.0, "min_p": 0.3}, [0, 1]),
        ({"temperature": 1.0, "min_p": 1.0}, [0]),
        ({"temperature": 4.0, "min_p": 0.3}, [0, 1, 2, 3]),  # temperature comes first
        ({"temperature": 1.0, "top_k": 2, "top_p": 0.74}, [0, 1]),  # top_p counts what top_k left: 0.73, 0.27
        ({"temperature": 1.0, "top_k": 2, "top_p": 0.73}, [0]),
    ],
)
def test_filters(options, tokens):
    assert kept(SamplingOptions(**options)) == tokens


def test_ties_at_the_top_k_threshold_all_stay():
    assert kept(SamplingOptions(temperature=1.0, top_k=2), torch.tensor([1.0, 3.0, 1.0, 0.0])) == [0, 1, 2]


def test_greedy_takes_the_lowest_id_of_the_likeliest():
    assert choose(torch.tensor([0.0, 5.0, 5.0]), [], SamplingOptions(), None) == 1


def test_penalty_moves_logits_away_from_the_text_so_far():
    changed = penalize(LOGITS, [0, 3, 3], 2.0)
    assert changed.tolist() == [1.0, 1.0, 0.0, -2.0]
    assert LOGITS.tolist() == [2.0, 1.0, 0.0, -1.0]
    assert choose(LOGITS, [0], SamplingOptions(repetition_penalty=3.0), None) == 1
    assert penalize(LOGITS, [], 2.0) is LOGITS


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": 1e-9},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
    ],
)
def test_values_outside_their_range_are_the_users_mistake(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        SamplingOptions(**wrong)


def test_sampling_without_a_generator_is_refused():
    with pytest.raises(UserError, match="generator"):
        choose(LOGITS, [], SamplingOptions(temperature=1.0), None)


options = st.builds(
    SamplingOptions,
    temperature=st.floats(0.0001, 10.0),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.001, 1.0),
    min_p=st.floats(0.0, 1.0),
    repetition_penalty=st.floats(0.5, 3.0),
)
rows = st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=12)


@settings(deadline=None)
@given(rows, options, st.integers(0, 1 << 70))
def test_a_distribution_is_left_and_the_draw_is_from_it(row, chosen, seed):
    logits = torch.tensor(row)
    before = logits.clone()
    probs = probabilities(logits, chosen)
    assert torch.equal(logits, before)
    assert probs.sum() == pytest.approx(1.0, abs=1e-5)
    assert probs[logits.argmax()] > 0
    token = choose(logits, [0], chosen, generator(seed))
    assert token == choose(logits, [0], chosen, generator(seed))
    assert probabilities(penalize(logits, [0], chosen.repetition_penalty), chosen)[token] > 0


def test_every_token_costs_one_number_whatever_the_options():
    def state_after(chosen: SamplingOptions) -> torch.Tensor:
        chance = generator(3)
        for _ in range(5):
            choose(LOGITS, [0], chosen, chance)
        return chance.get_state()

    plain = state_after(SamplingOptions(temperature=1.0))
    assert torch.equal(plain, state_after(SamplingOptions(temperature=1.0, top_k=1)))
    assert torch.equal(plain, state_after(SamplingOptions(temperature=0.5, top_p=0.1, min_p=0.5)))


def test_rows_have_chance_of_their_own_and_row_0_is_the_seed():
    assert torch.equal(generator(7).get_state(), torch.Generator().manual_seed(7).get_state())
    states = [generator(7, row).get_state() for row in range(4)]
    assert all(not torch.equal(a, b) for i, a in enumerate(states) for b in states[:i])
    assert torch.equal(generator(7, 2).get_state(), states[2])


def test_draws_follow_the_distribution():
    chance, probs = generator(1), LOGITS.softmax(-1)
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[draw(probs, chance)] += 1
    assert torch.allclose(counts / 4000, probs, atol=0.025)


def test_a_filtered_token_is_never_drawn_even_at_the_ends():
    probs = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0])
    drawn = {draw(probs, generator(seed)) for seed in range(200)}
    assert drawn == {1, 3}


def test_distributions_equal_those_of_transformers():
    warpers = pytest.importorskip("transformers.generation.logits_process")
    rng = torch.Generator().manual_seed(0)
    for case in range(200):
        logits = torch.randn(50, generator=rng) * 4
        seen = torch.randint(0, 50, (7,), generator=rng)
        chosen = SamplingOptions(
            temperature=0.3 + case % 5 * 0.4,
            top_k=case % 4 * 9,
            top_p=1.0 - case % 7 * 0.13,
            min_p=case % 3 * 0.05,
            repetition_penalty=1.0 + case % 6 * 0.2,
        )
        scores, ids = logits[None], seen[None]
        scores = warpers.RepetitionPenaltyLogitsProcessor(chosen.repetition_penalty)(ids, scores)
        scores = warpers.TemperatureLogitsWarper(chosen.temperature)(ids, scores)
        if chosen.top_k:
            scores = warpers.TopKLogitsWarper(chosen.top_k)(ids, scores)
        scores = warpers.TopPLogitsWarper(chosen.top_p)(ids, scores)
        if chosen.min_p:
            scores = warpers.MinPLogitsWarper(chosen.min_p)(ids, scores)
        ours = probabilities(penalize(logits, seen, chosen.repetition_penalty), chosen)
        assert torch.allclose(ours, scores[0].softmax(-1), atol=1e-6), f"case {case}: {chosen}"
