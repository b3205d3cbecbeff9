"""A real model on whole nodes in virtual time gives the tokens that one process gives."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from p2pllm.config import local
from p2pllm.errors import CheckpointError, UserError
from p2pllm.model.tokenizer import load_tokenizer
from p2pllm.node.reference import Reference
from p2pllm.types import Span
from sim.checkpoints import CheckpointModel
from sim.compute import SimCompute, flat_cost
from sim.expected import Expected
from sim.network import SimWorld
from sim.nodes import Nodes, NodeSpec
from sim.run import run

SPANS = (Span(0, 3), Span(3, 8), Span(0, 5), Span(5, 8))
TEXT = "Once upon a time there was a brave knight"
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def demo() -> CheckpointModel:
    return CheckpointModel()


async def story(demo: CheckpointModel, codec: str, kill: str = "") -> tuple[list[int], int, tuple[int, ...]]:
    """The demo model tells a story; meanwhile a server dies. Tokens, recoveries, and where the session rounded."""
    base = local()
    config = replace(
        base,
        server=replace(base.server, cache_tokens=256, exact=True),
        client=replace(base.client, activations=codec, exact=True, push="on"),
    )
    tokenizer = load_tokenizer(demo.checkpoint.source)
    assert tokenizer is not None
    async with SimWorld(1, 0.02, config.net) as world:
        nodes = Nodes(world, demo, config, lambda name: SimCompute(flat_cost(0.01)))
        await nodes.start("boot", NodeSpec("bootstrap"))
        for number, span in enumerate(SPANS):
            await (await nodes.start(f"s{number}", NodeSpec("server", span))).wait_up()
        client = await nodes.start("client", NodeSpec("client"))
        await client.wait_up()
        assert client.model is not None
        async with client.model.session(max_length=128) as session:
            generation = client.model.stream([tokenizer.encode(TEXT)], max_new_tokens=NEW_TOKENS, session=session)
            tokens = list((await anext(generation)).ids)
            points = (0, *(hop.span.end for hop in session.route))
            if kill:
                used = next(node for node in nodes.of("server") if node.peer == session.route[-1].peer_id)
                nodes.kill(used.name)
            async for piece in generation:
                tokens += piece.ids
            return tokens, session.recoveries, points


@pytest.mark.parametrize(("codec", "kill"), [("fp32", ""), ("int8", "last")])
def test_tokens_are_those_of_one_process(demo: CheckpointModel, codec: str, kill: str) -> None:
    tokens, recoveries, points = run(partial(story, demo, codec, kill), 1)
    tokenizer = load_tokenizer(demo.checkpoint.source)
    assert tokenizer is not None
    prompt = tokenizer.encode(TEXT)
    assert tokens == Reference(demo.checkpoint).greedy(prompt, NEW_TOKENS, points, codec)
    assert tokens == Expected(demo).greedy(prompt, NEW_TOKENS, codec, points)
    assert bool(recoveries) == bool(kill)


def test_a_folder_is_a_model_and_nothing_is_downloaded(demo: CheckpointModel, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(demo.checkpoint.source.title, copy)
    assert CheckpointModel(str(copy)).config == demo.config
    with pytest.raises(UserError, match="downloads nothing"):
        CheckpointModel("some/model")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match="empty folder"):
        CheckpointModel(str(empty))
