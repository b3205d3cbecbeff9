"""Shapes have the published sizes, and hidden states of the real width pass through them unchanged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from p2pllm.config import Config
from p2pllm.model.attention import Segment
from p2pllm.types import Span
from p2pllm.wire.tensor import payload_size
from sim.run import run
from sim.shapes import BLOOM_7B, BLOOM_176B, LLAMA_2_70B, LLAMA_31_405B, SHAPES, ShapeModel
from sim.swarm import open_swarm

BASE = Config()
CONFIG = replace(BASE, server=replace(BASE.server, cache_tokens=256))


@pytest.mark.parametrize(
    ("shape", "billions"), [(BLOOM_176B, 176.2), (BLOOM_7B, 7.07), (LLAMA_2_70B, 68.98), (LLAMA_31_405B, 405.85)]
)
def test_sizes_are_the_published_ones(shape, billions):
    """Parameters as the model cards count them."""
    assert shape.params / 1e9 == pytest.approx(billions, rel=1e-3)


def test_llama_shapes_count_as_checkpoints_of_the_family_do():
    for shape in (LLAMA_2_70B, LLAMA_31_405B):
        assert shape.block_params == shape.config.block_params


def test_bytes_follow_the_quantization():
    assert BLOOM_176B.block_bytes("int8") == pytest.approx(2.47e9, rel=1e-2)
    assert LLAMA_2_70B.block_bytes("nf4") / LLAMA_2_70B.block_bytes("float16") == pytest.approx(4.127 / 16, rel=1e-6)
    assert LLAMA_2_70B.cache_bytes == 2 * 2 * 8 * 128
    assert BLOOM_176B.hidden_bytes() == 28672


def test_blocks_hand_on_what_they_get_and_round_where_a_border_says():
    span = ShapeModel(BLOOM_7B).span(Span(2, 5))
    hidden = torch.randn(3, 4096).half()
    assert span.run(hidden, [Segment(3)]) is hidden
    seen = []

    def border(block, x):
        seen.append(block)
        return x.add_(1)

    assert torch.equal(span.run(hidden, [Segment(3)], border=border), hidden + 1 + 1)
    assert seen == [3, 4]
    with pytest.raises(ValueError, match="4 tokens"):
        span.run(hidden, [Segment(4)])


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_steps_of_the_real_width_travel_through_the_production_swarm(name):
    """Two servers and the client exchange exactly the model's bytes, and the tokens are those of the passed states."""
    shape, wanted = ShapeModel(SHAPES[name]), [5]
    table = shape.ends().embed(range(64)).float()[:, :64]
    for _ in range(3):
        wanted.append(int(table[wanted[-1]].argmax()))

    async def generate():
        blocks = shape.config.num_blocks
        async with open_swarm(shape, [(0, 3), (3, blocks)], CONFIG) as swarm, swarm.client() as client:
            sizes = []
            swarm.world.tap = lambda stream, data: sizes.append(len(data)) or data
            result = await client.model.generate([[5]], max_new_tokens=3, activations="fp16")
            return list(result.new_ids[0]), sizes

    tokens, sizes = run(generate)
    assert tokens == wanted[1:]
    payload = payload_size("fp16", 1, shape.config.hidden_size)
    assert sum(payload <= size < payload + 512 for size in sizes) == 3 * 4  # to each server and back
