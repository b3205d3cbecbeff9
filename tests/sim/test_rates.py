"""Rates in virtual time are those of closed formulas, and every switch of a protocol does what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sim.calibrated import SETUPS
from sim.paper import FAR, NEAR, NETS, SLIM
from sim.rates import (
    PAPER,
    PAPER_FORWARD,
    ClientsJob,
    ForwardJob,
    PrefillJob,
    Protocol,
    StepsJob,
    TrainingJob,
    play,
)
from sim.shapes import SHAPES

SETUP = SETUPS["llama-3"]
FIT = SETUP.fit
HIDDEN_BYTES = SHAPES[SETUP.shape].hidden_bytes()


@pytest.mark.parametrize("push", [False, True])
def test_steps_are_what_the_closed_formula_says(push):
    """Within 1 %, in all three networks: compute, software per hop, and the crossings of each mode."""
    job = StepsJob(setup=SETUP, fit=FIT, protocol=replace(PAPER, push=push), nets=NETS)
    crossings = SETUP.crossings(push)
    assert crossings == (4 if push else 6)
    for net, rate in zip(NETS, play(job).values, strict=True):
        crossing_s = net.one_way_s + HIDDEN_BYTES / net.bytes_per_s
        assert rate == pytest.approx(1 / FIT.step_at(3, crossings, crossing_s, 128), rel=0.01)


def test_longer_caches_cost_what_the_fit_says():
    long, short = play(StepsJob(setup=SETUP, fit=FIT, lengths=(512, 128), protocol=Protocol(activations="int8"))).values
    assert 1 / long - 1 / short == pytest.approx(384 * FIT.cached_s, rel=1e-3)


def test_a_window_is_all_that_a_flow_carries_in_a_round_trip():
    """128 tokens there and back at three servers, 256 KiB per round trip; the product's own window grows instead."""
    fixed, grown = (
        play(ForwardJob(setup=SETUP, fit=FIT, net=FAR, sequences=1, protocol=replace(PAPER_FORWARD, window_bytes=w)))
        for w in (256 * 1024, None)
    )
    message_bytes = 128 * 1.01 * 8192
    one_way_s = message_bytes / (256 * 1024) * 0.1 + 0.05
    compute_s = FIT.pass_s + 128 * FIT.token_s + 3 * FIT.overhead_s
    assert 128 / fixed.values[0] == pytest.approx(compute_s + 6 * one_way_s, rel=0.05)
    assert grown.values[0] > 1.1 * fixed.values[0]


def test_micro_batches_overlap():
    """Eight of them in flight take far less than eight times one, and no less than one device needs for all."""
    fit = replace(FIT, overhead_s=0.0)
    one, all_ = (play(ForwardJob(setup=SETUP, fit=fit, sequences=rows)).values[0] for rows in (8, 16))
    busiest_s = 27 / 80 * 2 * (fit.pass_s + 1024 * fit.token_s)
    assert 2048 / all_ > busiest_s
    assert 2048 / all_ < 1.5 * 1024 / one


def test_servers_of_one_device_wait_for_each_other():
    shared = replace(SETUP, gpus=(0, 0, 0))
    rates = [play(ForwardJob(setup=setup, fit=FIT, sequences=16)).values[0] for setup in (SETUP, shared)]
    assert rates[1] < 0.8 * rates[0]


def test_clients_share_steps_where_that_is_on():
    """Six at once: one by one they wait for each other, together they hardly do."""
    alone, apart, together = (
        play(
            ClientsJob(
                setup=SETUP, fit=FIT, clients=clients, length=16, steps=12, protocol=Protocol(shared_steps=shared)
            )
        ).values
        for clients, shared in ((1, True), (6, False), (6, True))
    )
    assert len(apart) == len(together) == 6
    assert max(apart) < 0.7 * alone[0]
    assert min(together) > 1.2 * max(apart)


def test_chunks_of_a_prefill_overlap_across_hops():
    whole = PrefillJob(setup=SETUP, fit=FIT, tokens=512, protocol=Protocol(chunk_tokens=512))
    chunked = replace(whole, protocol=Protocol(chunk_tokens=128, in_flight=4))
    assert play(chunked).values[0] > 1.2 * play(whole).values[0]


def test_a_batch_through_a_session_is_no_faster_than_its_devices():
    """Chunks of eight tokens of each of 64 rows are steps to a server, and cost what any other tokens do."""
    protocol = Protocol(push=True, activations="int8", window_bytes=None, chunk_tokens=512, in_flight=8)
    job = PrefillJob(setup=SETUP, fit=FIT, protocol=protocol, rows=64, tokens=16, tail=-1)
    busiest_s = 27 / 80 * 1024 * FIT.token_s
    assert busiest_s < 1024 / play(job).values[0] < 3 * busiest_s


def test_gradients_go_back_slower_than_activations_go_forward():
    """A server computes forward again, and inputs travel with the gradient."""
    job = TrainingJob(setup=SETUP, fit=FIT, net=SLIM, sequences=2, tokens=64, protocol=PAPER_FORWARD)
    forward, back = play(job).values
    compute_s = FIT.pass_s + 128 * FIT.token_s
    assert 128 / forward > compute_s
    assert 128 / back > 2 * compute_s
    assert back < 0.7 * forward


def test_far_servers_are_as_far_as_their_cities():
    """Fourteen hops there and back over the ocean take longer than next door; the same job gives the same trace."""
    real, near = SETUPS["bloom-14"], replace(SETUPS["bloom-14"], regions=(), mbit_per_s=())
    jobs = [StepsJob(setup=setup, fit=real.fit, lengths=(16,), steps=1) for setup in (real, near)]
    far_rates, near_rates = (play(job) for job in jobs)
    # Seven servers are at most 29 ms away and seven at most 123, homes aside.
    late_s = 1 / far_rates.values[0] - 1 / near_rates.values[0]
    assert 7 * 0.09 < late_s < 7 * 0.13 + 7 * 0.03 + 14 * 0.02
    assert play(jobs[1]) == near_rates
    assert NEAR.rtt_ms == 5
