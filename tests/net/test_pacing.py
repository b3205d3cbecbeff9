"""p2pllm.net.pacing: bulk fills the path and leaves a short queue, whatever the path."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pllm.net.pacing import FRAME_BYTES_MIN, FRAME_BYTES_UNKNOWN, BulkPacer, bulk_budget, bulk_frame, wait_s

TARGET_S = 0.1
rates = st.floats(1e3, 1e9)
rtts = st.floats(0.0, 2.0)


def test_the_table() -> None:
    for rate, rtt_s, budget, frame in (
        (0, 0.0, 2 * FRAME_BYTES_UNKNOWN, FRAME_BYTES_UNKNOWN),
        (0, 0.2, 2 * FRAME_BYTES_UNKNOWN, FRAME_BYTES_UNKNOWN),
        (12.5e6, 0.0, 1_250_000, 312_500),
        (12.5e6, 0.1, 2_500_000, 312_500),
        (1e6, 0.05, 150_000, 25_000),
        (1e5, 0.05, 15_000, FRAME_BYTES_MIN),
        (1e3, 0.05, 2 * FRAME_BYTES_MIN, FRAME_BYTES_MIN),
    ):
        assert bulk_budget(rate, rtt_s, TARGET_S) == pytest.approx(budget)
        assert bulk_frame(rate, TARGET_S) == frame


@given(rates, rtts)
def test_the_queue_beyond_the_path_is_a_tenth_of_a_second_or_two_frames(rate: float, rtt_s: float) -> None:
    beyond = bulk_budget(rate, rtt_s, TARGET_S) - rate * rtt_s
    assert beyond <= max(rate * TARGET_S, 2 * FRAME_BYTES_MIN) + 1


@given(st.integers(1, 1 << 30), st.floats(0, 1e9))
def test_waits_are_short_and_never_nothing(excess: int, rate: float) -> None:
    assert 0.001 <= wait_s(excess, rate, TARGET_S) <= TARGET_S / 4


@pytest.mark.parametrize("rate", [1.2e5, 1e6, 1e7])
@pytest.mark.parametrize("rtt_s", [0.001, 0.05, 0.3])
def test_on_a_steady_path_it_finds_the_bandwidth_and_keeps_the_queue_short(rate: float, rtt_s: float) -> None:
    """A sender that obeys, over a path of ``rate`` and ``rtt_s`` with an endless buffer, 20 s long."""
    pacer = BulkPacer(TARGET_S)
    now, sent, delivered, busy_until = 0.0, 0, 0.0, 0.0
    arrivals: deque[tuple[float, int]] = deque()
    worst, tick = 0.0, 0.005
    while now < 20.0:
        while arrivals and arrivals[0][0] <= now:
            delivered += arrivals.popleft()[1]
        for _ in range(200):
            frame = min(pacer.frame_bytes, 65_000)
            queued = int(sent - delivered)
            pacer.observe(now, sent, queued)
            if pacer.hold_s(queued, frame, rtt_s) > 0:
                break
            sent += frame
            busy_until = max(now, busy_until) + frame / rate
            arrivals.append((busy_until + rtt_s, frame))
        worst = max(worst, busy_until - now) if now > 10 else 0.0
        now += tick
    carried = sent / 20.0
    assert worst <= 0.35 + 2 * 65_000 / rate, "the queue in front of a step"
    assert carried >= 0.5 * min(rate, 200 * FRAME_BYTES_UNKNOWN / tick), "and the path is used"


def test_a_path_that_got_slower_is_noticed() -> None:
    pacer = BulkPacer(TARGET_S)
    sent = 0
    for step in range(40):
        sent += 1_000_000
        pacer.observe(step * 0.2, sent, 1)
    assert pacer.rate == pytest.approx(5e6, rel=0.05)
    for step in range(40, 60):
        sent += 10_000
        pacer.observe(step * 0.2, sent, 1)
    assert pacer.rate == pytest.approx(5e4, rel=0.05)


def test_an_empty_queue_never_waits() -> None:
    assert BulkPacer(TARGET_S).hold_s(0, 1 << 20, 0.0) == 0.0
