from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pllm.client.patience import CONTEXT_TOKENS, FACTOR, SAMPLES_MAX, SAMPLES_MIN, StepTimes, work

FLOOR, CAP = 2.0, 30.0


def seen(*samples: tuple[float, float]) -> StepTimes:
    times = StepTimes()
    for size, wall_s in samples:
        times.took(size, wall_s)
    return times


@pytest.mark.parametrize(
    ("samples", "size", "expected"),
    [
        ([], 1, CAP),
        ([(1, 0.1)] * (SAMPLES_MIN - 1), 1, CAP),
        ([(1, 0.1)] * SAMPLES_MIN, 1, FLOOR),
        ([(1, 1.0)] * SAMPLES_MIN, 1, 1.0 * FACTOR),
        ([(1, 20.0)] * SAMPLES_MIN, 1, CAP),
        ([(1, 0.1)] * 9, 10, 1.0 * FACTOR),  # ten times the work
        ([(1, 0.1)] * 9, 1000, CAP),
        ([(100, 1.0)] * 9, 1, 1.0 * FACTOR),  # less work: fixed costs may be all there is
        ([(1, 0.1)] * 20 + [(1, 4.0)], 1, FLOOR),  # one stray among many
        ([(1, 0.1)] * 20 + [(1, 3.0), (1, 4.0)], 1, 3.0 * FACTOR),
        ([(1, 0.1)] * 9, math.inf, CAP),
    ],
)
def test_timeouts(samples, size, expected):
    assert seen(*samples).timeout_s(size, FLOOR, CAP) == pytest.approx(expected)


def test_only_recent_steps_count():
    times = seen(*[(1, 5.0)] * SAMPLES_MAX, *[(1, 0.1)] * SAMPLES_MAX)
    assert times.timeout_s(1, FLOOR, CAP) == FLOOR


def test_forgetting_makes_generous():
    times = seen(*[(1, 0.1)] * 9)
    times.forget()
    assert times.timeout_s(1, FLOOR, CAP) == CAP


def test_work_grows_with_tokens_and_context():
    assert work(1, 0) == 1.0
    assert work(128, 0) == 128.0
    assert work(1, CONTEXT_TOKENS) == 2.0
    assert work(0, 0) == 1.0


sizes = st.floats(1, 1e5)
walls = st.floats(0, 100)


@given(st.lists(st.tuples(sizes, walls), max_size=50), sizes, sizes)
def test_within_bounds_and_never_less_for_more_work(samples, a, b):
    times = seen(*samples)
    small, large = sorted((a, b))
    assert FLOOR <= times.timeout_s(small, FLOOR, CAP) <= times.timeout_s(large, FLOOR, CAP) <= CAP


@given(st.lists(st.tuples(sizes, st.floats(0, 6)), min_size=SAMPLES_MIN, max_size=SAMPLES_MAX), sizes)
def test_a_step_like_most_that_were_seen_is_never_given_up(samples, size):
    """Whoever is as slow as before, in proportion to the work, has five times the time that it needs."""
    timeout_s = seen(*samples).timeout_s(size, 0.0, math.inf)
    late = [wall_s for seen_size, wall_s in samples if seen_size <= size and wall_s * FACTOR > timeout_s]
    assert len(late) <= 1
