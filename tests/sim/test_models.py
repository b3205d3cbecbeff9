"""Models and devices go by names, and a wrong name is told together with the right ones."""

from __future__ import annotations

import pytest

from p2pllm.errors import UserError
from p2pllm.types import Cost, WorkKind
from sim.checkpoints import CheckpointModel
from sim.models import Passes, blocks_of
from sim.shapes import ShapeModel
from sim.toy import ToyModel


def test_models_by_name():
    toy = blocks_of("toy:3", 1000)
    assert isinstance(toy, ToyModel)
    assert (toy.config.num_blocks, toy.config.max_positions) == (3, 1000)
    assert blocks_of("toy").config.num_blocks == 8
    assert isinstance(blocks_of("demo"), CheckpointModel)
    shape = blocks_of("llama-2-70b")
    assert isinstance(shape, ShapeModel)
    assert shape.config.num_blocks == 80


@pytest.mark.parametrize("name", ["tyo", "toy:", "toy:0", "toy:x", "llama-2-7b", ""])
def test_names_of_nothing(name):
    with pytest.raises(UserError, match="there are: toy") as error:
        blocks_of(name)
    assert "bloom-176b" in str(error.value)


def test_passes_by_figures():
    model = Passes(pass_ms=5, block_ms=2, token_ms=0.5).costs("toy", client=False)
    assert model(Cost(WorkKind.STEP, 3, 100, 4), "cpu") == pytest.approx(0.005 + 4 * (0.002 + 3 * 0.0005))
    assert model(Cost(WorkKind.CLIENT, 3), "cpu") == pytest.approx(0.005)


def test_passes_by_data_sheet():
    step = Cost(WorkKind.STEP, 1, 0, 40)
    server = Passes("a100-80gb").costs("llama-2-70b", client=False)
    assert 0.01 < server(step, "cpu") < 0.1
    client = Passes("a100-80gb").costs("llama-2-70b", client=True)
    assert client(step, "cpu") == 0.0
    with pytest.raises(UserError, match="a100"):
        Passes("a100").costs("llama-2-70b", client=False)
    with pytest.raises(UserError, match="pass_ms instead"):
        Passes("t4").costs("toy", client=False)
