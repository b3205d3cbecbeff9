"""The offloading bounds are the papers', digit by digit; a small model with weights in a file computes what one in
memory does."""

from __future__ import annotations

import itertools

import pytest
import torch

from p2pllm.model.attention import Segment
from sim.offloading import BATCH_S, RealRun, SmallModel, forward_rate, honest_one_rate, load_s, one_rate
from sim.paper import OFFLOADS, Cell, Offload


def test_one_constant_gives_every_cell():
    assert pytest.approx(42.6, abs=0.01) == BATCH_S
    for row in OFFLOADS:
        assert round(1 / load_s(row), 2) == pytest.approx(row.step.value, abs=0.0051)
        assert round(forward_rate(row), 1) == row.forward.value
        assert round(one_rate(row), 1) == row.one.value


def test_a_single_sequence_is_not_a_64th_of_a_batch():
    """5.5 s of loading and 0.67 s of computing: 21 tokens/s, not 2.7."""
    assert honest_one_rate(OFFLOADS[0]) == pytest.approx(128 / (5.5 + 42.6 / 64), rel=1e-3)


def test_wider_links_only_help_until_computing_binds():
    cell = Cell(0.0, "R")
    rates = [forward_rate(Offload(1, gbit, cell, cell, cell)) for gbit in (64, 128, 256, 1e9)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(8192 / BATCH_S, rel=1e-6)


def test_offloaded_blocks_compute_what_resident_ones_do(tmp_path):
    SmallModel(64, 176, 3).write(tmp_path)
    seconds = itertools.count()
    real = RealRun(tmp_path, lambda: float(next(seconds)))
    hidden = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    segments = [Segment(2)]
    whole = [real._one(block) for block in range(3)]
    expected = hidden
    for span in whole:
        expected = span.run(expected, segments)
    assert not torch.equal(expected, hidden)
    timed = real.time(2, tries=1)
    assert (timed.resident_s, timed.read_s, timed.offloaded_s) == (1.0, 1.0, 1.0)  # of a clock that counts its readings
    assert timed.weight_bytes == 4 * sum(p.numel() for p in _weights(whole))


def _weights(spans):
    for span in spans:
        config = span.config
        hidden, inter, kv = config.hidden_size, config.intermediate_size, config.num_kv_heads * config.head_dim
        for shape in [(hidden, hidden)] * 2 + [(kv, hidden)] * 2 + [(inter, hidden)] * 3 + [(hidden,)] * 2:
            yield torch.empty(shape)
