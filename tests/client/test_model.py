from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import torch
import trio

from p2pllm.client.model import RemoteModel
from p2pllm.config import local
from p2pllm.dht.service import Directory
from p2pllm.errors import CoverageError, UserError
from sim.compute import SimCompute, flat_cost
from sim.ports import sim_ports
from tests.client.harness import CONFIG, MODEL, open_swarm

IDS = torch.tensor([[5, 9, 33, 2, 60], [17, 8, 41, 3, 22]])
SETTINGS = replace(CONFIG, records=local().records, client=replace(CONFIG.client, patience_s=20.0))


@asynccontextmanager
async def connected(*spans, settings=SETTINGS):
    """A model over servers that announce themselves, found through the directory."""
    async with open_swarm(*spans, config=settings) as swarm, trio.open_nursery() as nursery:
        swarm.world.host("bootstrap")
        for member in swarm.members:
            ports = sim_ports(swarm.world, member.name, network=swarm.world.hosts[member.name])
            directory = Directory(ports, settings, [MODEL])
            await nursery.start(directory.run)
            directory.announce(member.announcement)
        ports = sim_ports(swarm.world, "client", compute=SimCompute(flat_cost(0.001)))
        directory = Directory(ports, settings, [MODEL])
        await nursery.start(directory.run)
        model = RemoteModel(ports, settings, directory, MODEL, swarm.reference.ends)
        yield swarm, model
        await model.aclose()
        nursery.cancel_scope.cancel()


async def test_generate_forward_session_and_the_ends():
    async with connected((0, 3), (3, 6)) as (swarm, model):
        assert model.id == MODEL
        assert model.num_blocks == 6
        result = await model.generate(IDS, max_new_tokens=5)
        assert result.ids.shape == (2, 10)
        assert result.ids[1, 5:].tolist() == swarm.reference.greedy(IDS[1].tolist(), 5)
        logits = await model.forward(IDS)
        assert logits.dtype is torch.float32
        for row, got in zip(IDS.tolist(), logits, strict=True):
            assert torch.equal(got, swarm.reference.logits(row))
        async with model.session(max_length=32) as session:
            assert torch.equal(await session.step(IDS), logits)
        hidden = model.embed(IDS)
        assert hidden.shape == (2, 5, 32)
        assert model.head(hidden).shape == (2, 5, 64)
        assert not hidden.is_inference()


async def test_many_at_once_get_what_each_gets_alone():
    async with connected((0, 3), (3, 6)) as (swarm, model):
        texts = [[*[5, 9, 33, 2, 60][: 1 + i % 5], i] for i in range(8)]
        results = {}

        async def one(number):
            results[number] = await model.generate(texts[number], max_new_tokens=6)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(one, number)
        for number, text in enumerate(texts):
            assert list(results[number].new_ids[0]) == swarm.reference.greedy(text, 6)
        assert swarm.members[0].engine.passes < 8 * 7  # steps of several sessions went through in one pass


async def test_activations_may_be_chosen_per_call():
    async with connected((0, 3), (3, 6)) as (_, model):
        exact = await model.forward(IDS)
        rounded = await model.forward(IDS, activations="int8")
        assert not torch.equal(exact, rounded)
        assert (exact - rounded).norm() < 0.05 * exact.norm()
        with pytest.raises(UserError, match="choose one of"):
            await model.generate(IDS, activations="int3")


async def test_sequences_too_long_for_a_forward_go_through_a_session():
    short = replace(SETTINGS, client=replace(SETTINGS.client, forward_row_tokens_max=4))
    async with connected((0, 3), (3, 6), settings=short) as (swarm, model):
        logits = await model.forward(IDS)
        for row, got in zip(IDS.tolist(), logits, strict=True):
            assert torch.equal(got, swarm.reference.logits(row))
        with pytest.raises(UserError, match="context holds 256"):
            await model.forward(torch.ones(1, 257, dtype=torch.long))


async def test_streams_that_nobody_finished_are_closed_with_the_model():
    async with connected((0, 6)) as (swarm, model):
        pieces = model.stream(IDS, max_new_tokens=20)
        await anext(pieces)
        assert len(swarm.members[0].sessions) == 1
        await model.aclose()
        assert len(swarm.members[0].sessions) == 0


async def test_mistakes_are_told_at_once():
    async with connected() as (_, model):
        for call, match in [
            (lambda: model.stream("text"), "no tokenizer"),
            (lambda: model.stream(IDS, top_q=1), "no option 'top_q'"),
            (lambda: model.stream([[1]] * 300), "300 prompts at once"),
            (lambda: model.session(max_length=9999), "context holds"),
            (lambda: model.head(torch.zeros(2, 32)), "hidden states must be"),
            (lambda: model.embed(torch.tensor([[99]])), "found 99"),
        ]:
            with pytest.raises(UserError, match=match):
                call()


async def test_a_gap_is_named():
    async with connected((0, 2), (3, 6)) as (_, model):
        with pytest.raises(CoverageError, match="nobody serves block 2 of 6"):
            await model.generate(IDS, max_new_tokens=2)
