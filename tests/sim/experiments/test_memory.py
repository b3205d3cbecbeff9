"""Histories are as large as the formula says, and what is beyond the bound comes back from the disk as it went."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pllm.config import MIB
from p2pllm.wire.messages import plain_size
from sim.experiments.memory import KIND, Params, Spill, measured, spill_over, step_bytes
from sim.kinds import Run, kind_of
from sim.run import run
from sim.shapes import SHAPES


def test_a_quick_run_holds():
    outcome = KIND.play(Params(), Run(quick=True))
    assert outcome.ok
    assert outcome == KIND.play(Params(), Run(quick=True))
    assert {line["model"] for line in outcome.results} == {"bloom-7.1b", "bloom-176b"}
    assert outcome.plots[0].series[0].x == (2048.0, 8192.0)
    assert kind_of("memory") is KIND


@pytest.mark.parametrize("codec", ["int8", "bf16"])
def test_bytes_grow_with_tokens_and_hops(codec):
    params = replace(Params(), hops=(3, 12), tokens=(128, 512))
    found = {(one.hops, one.tokens): one.bytes_ for one in measured("llama-3.1-405b", codec, params)}
    one = plain_size(codec, 1, SHAPES["llama-3.1-405b"].config.hidden_size)
    assert found == {(hops, tokens): one * hops * tokens for hops in (3, 12) for tokens in (128, 512)}


def test_what_does_not_fit_goes_to_the_disk_and_comes_back():
    spill = Spill("bloom-7.1b", "int8", 2, 1024, 2.0)
    found = run(lambda: spill_over(spill))
    assert found.same
    assert found.memory_bytes_max <= 2 * MIB + step_bytes(spill)
    assert found.memory_bytes + found.filed_bytes == plain_size("int8", 1024, 4096) * 2
    roomy = run(lambda: spill_over(replace(spill, memory_mib=64.0)))
    assert roomy.filed_bytes == 0
    assert roomy.same
