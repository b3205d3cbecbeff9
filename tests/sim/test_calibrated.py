"""Fits hit the cells that they are solved on, and setups are the papers'."""

from __future__ import annotations

import pytest

from p2pllm.types import Cost, WorkKind
from sim.calibrated import BLOOM, LLAMA, SETUPS
from sim.devices import DEVICES
from sim.shapes import SHAPES


def step(blocks, context=128, tokens=1):
    return Cost(WorkKind.STEP, tokens, context, blocks)


def test_a_step_is_what_the_client_and_all_blocks_take():
    model = BLOOM.cost_model()
    parts = sum(model(step(blocks), "cpu") for blocks in SETUPS["bloom-3"].blocks)
    client_s = BLOOM.client_model()(Cost(WorkKind.CLIENT, tokens=1), "cpu")
    assert parts + client_s == pytest.approx(BLOOM.step_s)
    assert model(step(70, 2048), "cpu") - model(step(70), "cpu") == pytest.approx(1920 * BLOOM.cached_s)
    assert model(Cost(WorkKind.CLIENT, tokens=1), "cpu") == 0.0


def test_steps_that_share_a_pass_share_the_weights_and_nothing_else():
    """Eight rows cost one pass, and for each of the seven others a token of a batch and its cache."""
    model = BLOOM.cost_model()
    more_s = model(step(70, 8 * 128, 8), "cpu") - model(step(70), "cpu")
    assert more_s == pytest.approx(7 * (BLOOM.token_s + 128 * BLOOM.cached_s))
    assert 8 * model(step(70), "cpu") > 5 * model(step(70, 8 * 128, 8), "cpu")


@pytest.mark.parametrize("fit", [BLOOM, LLAMA])
@pytest.mark.parametrize("kind", [WorkKind.STEP, WorkKind.PREFILL, WorkKind.FORWARD])
def test_no_way_of_cutting_work_beats_the_devices(fit, kind):
    """Short steps of many rows count as steps; their tokens cost no less than those of batches."""
    for tokens in (8, 512, 1024):
        assert fit.cost_model()(Cost(kind, tokens, 0, fit.blocks), "cpu") > tokens * fit.token_s


def test_going_back_computes_forward_again():
    model = LLAMA.cost_model()
    forward, back = (model(Cost(kind, 1024, 0, 80), "cpu") for kind in (WorkKind.FORWARD, WorkKind.BACKWARD))
    assert back == 2 * forward == pytest.approx(2 * (LLAMA.pass_s + 1024 * LLAMA.token_s))


def test_solving_for_steps_is_exact():
    """A network that adds 0.1 s: afterwards the formula with it gives both cells."""
    network_s = 0.1
    measured = 1 / (BLOOM.step_at(3, 6, 0.0, 128) + network_s)
    fit = BLOOM.solved_steps(measured, 1.71, 1.54)
    assert 1 / (fit.step_at(3, 6, 0.0, 128) + network_s) == pytest.approx(1.71)
    assert 1 / (fit.step_at(3, 6, 0.0, 2048) + network_s) == pytest.approx(1.54)


def test_solving_for_forwards_moves_the_critical_path():
    fit = BLOOM.solved_forwards(250.0, 253.6, 8192, 3413.0)
    assert (BLOOM.token_s - fit.token_s) * 3413 == pytest.approx(8192 / 250.0 - 8192 / 253.6)


@pytest.mark.parametrize("setup", SETUPS.values(), ids=lambda setup: setup.name)
def test_every_block_is_served_once(setup):
    blocks = SHAPES[setup.shape].config.num_blocks
    assert [block for start, end in setup.spans for block in range(start, end)] == list(range(blocks))
    assert len(setup.gpus) == setup.servers == len(setup.spans)


def test_virtual_servers_share_three_devices_and_cards_hold_their_blocks():
    assert sorted(set(SETUPS["bloom-12"].gpus)) == [0, 1, 2]
    assert [SETUPS["bloom-12"].gpus.count(gpu) for gpu in range(3)] == [4, 4, 4]
    real = SETUPS["bloom-14"]
    block_bytes = SHAPES[real.shape].block_bytes("int8")
    assert all(
        blocks * block_bytes < DEVICES[name].memory_bytes
        for blocks, name in zip(real.blocks, real.devices, strict=True)
    )
    assert sorted(real.devices) == sorted(
        ["rtx-3060"] * 2 + ["rtx-2080ti"] * 4 + ["rtx-3090"] * 2 + ["rtx-a4000"] * 2 + ["rtx-a5000"] * 4
    )
