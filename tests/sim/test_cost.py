from __future__ import annotations

import random
import statistics

import pytest

from p2pllm.types import Cost, WorkKind
from sim.cost import PAPER_FAILURES, FailureSetup

SETUP = FailureSetup()


def test_the_model_gives_back_the_cells_it_was_fitted_to():
    assert SETUP.restart_rate(128, 0.0) == pytest.approx(17.1, rel=1e-6)
    assert SETUP.restart_rate(1024, 0.0) == pytest.approx(15.5, rel=1e-6)
    assert SETUP.cacheless_rate(128) == pytest.approx(3.44, rel=1e-6)
    assert SETUP.cacheless_rate(1024) == pytest.approx(0.89, rel=1e-6)
    assert SETUP.step_s == pytest.approx(0.0576, abs=2e-4)
    assert SETUP.pass_s == pytest.approx(0.171, abs=1e-3)
    assert SETUP.token_s == pytest.approx(1.86e-3, abs=1e-5)


def test_restarts_reproduce_the_seen_cells():
    """0.48 steps/s is within 10 %, and the dash is a dash."""
    seen = {cell: rate for cell, (rate, source) in PAPER_FAILURES["caching with restarts"].items() if source == "S"}
    assert SETUP.restart_rate(1024, 1e-3) == pytest.approx(seen[1024, 1e-3], rel=0.1)
    assert seen[1024, 1e-2] is None
    assert SETUP.restart_rate(1024, 1e-2) == 0.0


@pytest.mark.parametrize(("tokens", "failure"), [(128, 1e-4), (128, 1e-3), (64, 1e-2), (1024, 1e-3)])
def test_the_formula_of_restarts_agrees_with_playing_them(tokens, failure):
    rng = random.Random(5)
    trials = [SETUP.restart_trial(tokens, failure, rng) for _ in range(40)]
    error = statistics.stdev(trials) / len(trials) ** 0.5
    assert abs(statistics.mean(trials) - SETUP.restart_steps(tokens, failure)) < 3 * error + 1e-9


def test_a_step_of_all_stages_and_its_hand_offs_take_what_the_table_says():
    model = SETUP.cost_model()
    for cached in (0, 64, 512):
        stages = sum(model(Cost(WorkKind.STEP, 1, cached, blocks), "cpu") for blocks in SETUP.spans)
        assert stages + SETUP.handoffs * SETUP.handoff_s == pytest.approx(SETUP.step_at(cached))
    prefill = sum(model(Cost(WorkKind.PREFILL, 512, 0, blocks), "cpu") for blocks in SETUP.spans)
    assert prefill == pytest.approx(1 / SETUP.cacheless_rate(1024))
    assert model(Cost(WorkKind.CLIENT, 1), "cpu") == 0.0


def test_an_ideal_replay_stays_close_to_the_speed_without_failures():
    for tokens, share in ((128, 0.95), (1024, 0.94)):
        assert SETUP.replay_rate(tokens, 1e-3) / SETUP.restart_rate(tokens, 0.0) == pytest.approx(share, abs=0.01)
