from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pllm.client.chain import ForwardPass, Part, parts_of
from p2pllm.client.context import HopLost
from p2pllm.client.edge import pack, unpack
from p2pllm.dht.record import Throughput
from p2pllm.errors import CoverageError
from p2pllm.types import Span
from tests.client.harness import CONFIG, open_swarm

CUTS = replace(CONFIG, client=replace(CONFIG.client, forward_chunk_tokens=12))
TEXTS = [[(7 * row + 3 * i) % 64 for i in range(4 + row % 3)] for row in range(14)]


def client(**changes):
    return replace(CUTS, client=replace(CUTS.client, **changes))


@given(st.lists(st.integers(1, 9), max_size=20), st.integers(1, 20), st.integers(1, 6))
def test_parts_hold_every_sequence_once_and_keep_the_bounds(counts, tokens_max, rows_max):
    parts = parts_of(counts, tokens_max, rows_max)
    assert [count for part in parts for count in part.counts] == counts
    assert [part.first for part in parts] == [sum(len(p.counts) for p in parts[:i]) for i in range(len(parts))]
    for part in parts:
        assert 1 <= len(part.counts) <= rows_max
        assert part.tokens <= tokens_max or len(part.counts) == 1


async def forward(context, texts=TEXTS, codec="fp32", span=None):
    """Logits (or, for part of the blocks, hidden states) per text, and how many parts it took."""
    outputs: dict[int, torch.Tensor] = {}
    parts = 0

    async def source(part: Part):
        nonlocal parts
        parts += 1
        rows = texts[part.first : part.first + len(part.counts)]
        return pack(context.ends.embed([token for row in rows for token in row]), codec)

    async def sink(part: Part, packed):
        hidden = unpack(packed, torch.float32)
        out = hidden if span else context.ends.head(hidden)
        for row, piece in enumerate(out.split(list(part.counts))):
            outputs[part.first + row] = piece

    await ForwardPass(context, codec, span).run([len(text) for text in texts], source, sink)
    return [outputs[row] for row in range(len(texts))], parts


def check(swarm, logits):
    for text, got in zip(TEXTS, logits, strict=True):
        assert torch.equal(got, swarm.reference.logits(text))


async def test_logits_equal_those_of_the_model_in_one_piece():
    async with open_swarm((0, 2), (2, 5), (5, 6), config=CUTS) as swarm:
        context = swarm.context()
        logits, parts = await forward(context)
        assert parts == 7
        check(swarm, logits)
        assert swarm.reached == {member.peer for member in swarm.members}
        began = trio.current_time()
        await forward(context, TEXTS[:1])
        assert trio.current_time() - began < 0.2  # the streams were kept


async def test_parts_overlap_across_the_hops():
    async with open_swarm((0, 2), (2, 4), (4, 6), config=CUTS) as swarm:
        context = swarm.context()
        await forward(context, TEXTS[:1])
        began = trio.current_time()
        await forward(context)
        # 7 parts, one after the other through 3 hops of 40 ms there and back and 10 ms compute: 1.05 s.
        assert trio.current_time() - began < 0.4


async def test_some_blocks_alone():
    async with open_swarm((0, 3), (3, 6), config=CUTS) as swarm:
        hidden, _ = await forward(swarm.context(), TEXTS[:1], span=Span(0, 3))
        rest = swarm.reference.blocks
        from p2pllm.model.span import Segment

        start = swarm.reference.ends.embed(TEXTS[0])
        assert torch.equal(hidden[0], rest.run(start, [Segment(len(TEXTS[0]))], span=Span(0, 3)))


async def test_a_killed_server_costs_nothing_that_was_computed():
    async with open_swarm((0, 3), (3, 6), (3, 6), config=CUTS) as swarm:
        fast = Throughput(inference=900.0, forward=90_000.0)
        swarm.members[1].announcement = replace(swarm.members[1].announcement, throughput=fast)
        context = swarm.context()

        async def kill():
            await trio.sleep(0.33)
            swarm.world.kill("s1")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            logits, parts = await forward(context)
        check(swarm, logits)
        assert parts == 7
        assert context.peers.banned(swarm.members[1].peer, trio.current_time())
        assert not context.peers.banned(swarm.members[0].peer, trio.current_time())


async def test_a_server_that_dies_alone_is_named():
    async with open_swarm((0, 3), (3, 6), config=client(patience_s=4.0)) as swarm:
        context = swarm.context()
        await forward(context, TEXTS[:1])
        swarm.world.kill("s1")
        with pytest.raises(HopLost, match=r"blocks 3-5\) was lost"):
            await forward(context)


async def test_a_hung_server_is_noticed_at_the_deadline():
    async with open_swarm((0, 6), (0, 6), config=client(step_timeout_s=3.0)) as swarm:
        fast = Throughput(inference=900.0, forward=90_000.0)
        swarm.members[0].announcement = replace(swarm.members[0].announcement, throughput=fast)
        context = swarm.context()
        await forward(context, TEXTS[:1])
        swarm.world.hang("s0")
        began = trio.current_time()
        logits, _ = await forward(context)
        check(swarm, logits)
        assert 3.0 < trio.current_time() - began < 5.0


async def test_a_kept_stream_that_died_is_replaced_without_blame():
    async with open_swarm((0, 6), config=CUTS) as swarm:
        context = swarm.context()
        await forward(context, TEXTS[:1])
        await context.ports.network.close_peer(swarm.members[0].peer)
        await trio.sleep(1.0)
        logits, _ = await forward(context)
        check(swarm, logits)
        assert not context.peers.banned(swarm.members[0].peer, trio.current_time())


async def test_a_busy_server_is_asked_again_later():
    tight = replace(CUTS, server=replace(CUTS.server, queue_max=1, batch_tokens_max=8, busy_retry_s=0.3))
    async with open_swarm((0, 6), config=tight) as swarm:
        context = swarm.context()
        logits, _ = await forward(context)
        check(swarm, logits)


async def test_a_sequence_that_is_too_long_for_the_server_is_its_word():
    small = replace(CUTS, server=replace(CUTS.server, forward_tokens_max=4))
    async with open_swarm((0, 6), config=small) as swarm:
        context = swarm.context(client(patience_s=1.0, gap_grace_s=1.0))
        with pytest.raises(HopLost, match="refused the request: a sequence of 5 tokens; a forward here takes 4"):
            await forward(context, TEXTS[1:2])


async def test_gaps_are_named():
    async with open_swarm((0, 3), config=client(patience_s=2.0, gap_grace_s=1.0)) as swarm:
        with pytest.raises(CoverageError, match="blocks 3-5 of 6"):
            await forward(swarm.context())


async def test_int8_stays_close():
    async with open_swarm((0, 3), (3, 6), config=CUTS) as swarm:
        logits, _ = await forward(swarm.context(), codec="int8")
        for text, got in zip(TEXTS, logits, strict=True):
            expected = swarm.reference.logits(text)
            assert (got - expected).norm() < 0.05 * expected.norm()


async def test_mistakes_of_the_caller_pass_through_as_they_are():
    async with open_swarm((0, 6), config=CUTS) as swarm:
        context = swarm.context()

        async def source(part):
            raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            await ForwardPass(context, "fp32").run([3, 3], source, source)
