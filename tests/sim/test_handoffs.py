"""Hand-offs fail as often as they should, and what is played is what the formulas of the cost model say."""

from __future__ import annotations

import pytest

from sim.handoffs import ONE_SHOT, PUBLISHED, STAGES, Job, _undisturbed, cacheless, played, restarted


@pytest.mark.parametrize(("replay", "setup"), [("one shot", ONE_SHOT), ("published", PUBLISHED)])
def test_without_failures_the_node_is_as_fast_as_the_model_says(replay, setup):
    found = played(Job(replay, 64, 0.0))
    assert found.steps_per_s == pytest.approx(1 / setup.step_at(32), rel=0.01)
    assert (found.failures, found.right) == (0, True)
    handoffs = _undisturbed[replay, 64][2]
    assert sum(handoffs) == 64 * (STAGES + 1)


@pytest.mark.parametrize("replay", ["one shot", "published"])
def test_failures_cost_time_and_no_tokens(replay):
    jobs = [Job(replay, 64, 0.02, seed) for seed in range(3)]
    found = [played(job) for job in jobs]
    assert all(one.right for one in found)
    assert sum(one.failures for one in found) >= 6
    without = played(Job(replay, 64, 0.0)).steps_per_s
    assert all(one.steps_per_s < without for one in found if one.failures)
    assert played(jobs[0]) == found[0]


def test_a_generation_without_any_failure_is_the_undisturbed_one():
    assert played(Job("one shot", 64, 1e-9, 7)) == played(Job("one shot", 64, 0.0))


def test_a_token_by_token_replay_costs_what_decoding_costs():
    """One failure in the middle: the difference to the undisturbed run is the replay, but for connecting."""
    found = next(one for seed in range(40) if (one := played(Job("published", 64, 0.003, seed))).failures == 1)
    lost_s = 63 / found.steps_per_s - 63 / played(Job("published", 64, 0.0)).steps_per_s
    assert 0 < lost_s < 64 * PUBLISHED.token_s / STAGES + 0.1


def test_restarts_and_passes_without_caches_agree_with_their_formulas():
    assert cacheless(64).steps_per_s == pytest.approx(ONE_SHOT.cacheless_rate(64), rel=0.05)
    calm = restarted(Job("one shot", 32, 0.0))
    assert calm.steps_per_s == pytest.approx(1 / ONE_SHOT.step_at(16), rel=0.05)
    troubled = restarted(Job("one shot", 32, 0.02, 1))
    assert troubled.failures
    assert troubled.steps_per_s < calm.steps_per_s
