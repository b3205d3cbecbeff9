from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from p2pllm.client.context import HopLost
from p2pllm.client.session import Session
from p2pllm.dht.record import Throughput
from p2pllm.errors import CoverageError, UserError
from p2pllm.model.span import Segment
from p2pllm.types import ServerState, Span
from p2pllm.wire.tensor import round_trip
from tests.client.harness import CONFIG, open_swarm

IDS = [5, 9, 33, 2, 60, 17, 8, 41, 3, 22, 12, 50, 6, 7, 19, 44, 31]


def ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def client(**changes):
    return replace(CONFIG, client=replace(CONFIG.client, **changes))


async def test_logits_equal_those_of_the_model_in_one_piece():
    async with open_swarm((0, 3), (3, 6)) as swarm:
        async with Session(swarm.context(), max_length=64) as session:
            assert session.route == ()
            logits = await session.step(ids(IDS))
            assert torch.equal(logits[0], swarm.reference.logits(IDS))
            more = await session.step(ids([1, 2]))
            assert torch.equal(more[0], swarm.reference.logits([*IDS, 1, 2])[-2:])
            assert session.position == len(IDS) + 2
            assert [(hop.span.start, hop.span.end) for hop in session.route] == [(0, 3), (3, 6)]
            assert session.exact
            assert session.recoveries == 0
        assert all(len(server.sessions) == 0 for server in swarm.members)


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
@pytest.mark.parametrize("tail", [-1, 0, 1, 5])
async def test_cuts_and_tails_change_nothing(chunk, tail):
    rows = [IDS, IDS[::-1]]
    async with open_swarm((0, 2), (2, 5), (5, 6)) as swarm:
        context = swarm.context(client(prefill_chunk_tokens=chunk))
        async with Session(context, max_length=64, rows=2) as session:
            logits = await session.step(ids(*rows), tail=tail)
            kept = len(IDS) if tail < 0 else tail
            assert logits.shape == (2, kept, 64)
            for row, got in zip(rows, logits, strict=True):
                assert torch.equal(got, swarm.reference.logits(row)[len(IDS) - kept :])


async def test_chunks_overlap_across_the_hops():
    async def duration(steps_in_flight: int) -> float:
        async with open_swarm((0, 2), (2, 4), (4, 6)) as swarm:
            context = swarm.context(client(prefill_chunk_tokens=4, steps_in_flight=steps_in_flight))
            async with Session(context, max_length=128, rows=1) as session:
                began = trio.current_time()
                await session.step(ids(IDS * 4), tail=1)
                return trio.current_time() - began

    # 17 chunks: one after the other through 3 hops of 40 ms there and back, 10 ms compute each, would take 2.5 s.
    assert await duration(1) < 1.2
    assert await duration(4) < 0.55


async def test_rolling_back_forgets_what_came_after():
    async with open_swarm((0, 6)) as swarm, Session(swarm.context(), max_length=64) as session:
        await session.step(ids(IDS))
        session.position = 4
        again = await session.step(ids([40, 41]))
        assert torch.equal(again[0], swarm.reference.logits([*IDS[:4], 40, 41])[-2:])
        assert session.position == 6
        for wrong in (7, -1):
            with pytest.raises(UserError, match="can only go back"):
                session.position = wrong


async def test_hidden_states_may_be_fed_instead_of_ids():
    async with open_swarm((0, 6)) as swarm, Session(swarm.context(), max_length=64) as session:
        hidden = swarm.reference.ends.embed(torch.tensor(IDS))
        logits = await session.step(hidden[None])
        assert torch.equal(logits[0], swarm.reference.logits(IDS))


async def test_ragged_rows_and_rows_that_sit_out():
    async with open_swarm((0, 3), (3, 6)) as swarm:
        context = swarm.context()
        async with Session(context, max_length=64, rows=3) as session:
            texts = [IDS[:13], IDS[:2], IDS[5:12]]
            outputs = await run_ids(context, session, texts, tail=1)
            for text, logits in zip(texts, outputs, strict=True):
                assert torch.equal(logits, swarm.reference.logits(text)[-1:])
            assert session.positions == (13, 2, 7)
            assert session.position == 2
            outputs = await run_ids(context, session, [[1], [], [2]], tail=1)
            assert torch.equal(outputs[0], swarm.reference.logits([*texts[0], 1])[-1:])
            assert torch.equal(outputs[2], swarm.reference.logits([*texts[2], 2])[-1:])
            assert session.positions == (14, 2, 8)


async def run_ids(context, session, texts, tail):
    from p2pllm.client.chunks import packed_slices, wanted_slices
    from p2pllm.client.edge import pack, unpack

    flat = torch.tensor([token for text in texts for token in text])
    counts = tuple(map(len, texts))
    outputs = [[] for _ in texts]

    async def source(chunk):
        part = torch.cat([flat[piece] for piece in packed_slices(counts, chunk)])
        return pack(context.ends.embed(part), "fp32")

    async def sink(chunk, packed):
        hidden = unpack(packed, torch.float32)
        for row, piece in enumerate(wanted_slices(chunk)):
            if piece.start < piece.stop:
                outputs[row].append(context.ends.head(hidden[piece]))

    await session.run(counts, source, sink, tail=tail)
    return [torch.cat(row) if row else None for row in outputs]


@pytest.mark.parametrize("activations", ["int8", "bf16", "fp16"])
async def test_rounding_happens_at_the_borders_of_the_chain_and_nowhere_else(activations):
    async with open_swarm((0, 3), (3, 6)) as swarm:
        async with Session(swarm.context(), max_length=64, activations=activations) as session:
            logits = await session.step(ids(IDS))
        hidden = swarm.reference.ends.embed(IDS)
        for span in (Span(0, 3), Span(3, 6)):
            hidden = swarm.reference.blocks.run(rounded(hidden, activations), [Segment(len(IDS))], span=span)
        assert torch.equal(logits[0], swarm.reference.ends.head(rounded(hidden, activations)))
        exact = swarm.reference.logits(IDS)
        assert 0 < (logits[0] - exact).norm() < 0.05 * exact.norm()


def rounded(hidden, codec):
    return torch.from_numpy(round_trip(hidden.numpy(), "fp32", codec))


steps = st.lists(
    st.tuples(
        st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any),  # new tokens per row
        st.integers(-1, 4),  # tail
        st.none() | st.integers(0, 6),  # roll back to
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=25)
@given(steps, st.sampled_from([((0, 6),), ((0, 1), (1, 6)), ((0, 4), (2, 6)), ((0, 2), (2, 3), (3, 6))]), st.randoms())
def test_any_steps_on_any_chain_give_the_logits_of_the_model_in_one_piece(plan, spans, rng):
    async def body() -> None:
        async with open_swarm(*spans, seed=rng.randrange(99)) as swarm:
            chunks = rng.randint(1, 12)
            context = swarm.context(client(prefill_chunk_tokens=chunks, steps_in_flight=rng.randint(1, 4)))
            texts: list[list[int]] = [[], [], []]
            async with Session(context, max_length=64, rows=3) as session:
                for counts, tail, back in plan:
                    if back is not None and back <= session.position:
                        session.position = back
                        texts = [text[:back] for text in texts]
                    new = [[rng.randrange(64) for _ in range(count)] for count in counts]
                    outputs = await run_ids(context, session, new, tail)
                    texts = [text + more for text, more in zip(texts, new, strict=True)]
                    for text, count, got in zip(texts, counts, outputs, strict=True):
                        wanted = count if tail < 0 else min(tail, count)
                        expected = swarm.reference.logits(text)[len(text) - wanted :] if wanted else None
                        assert (got is None) == (expected is None)
                        assert got is None or torch.equal(got, expected)
                    assert session.positions == tuple(map(len, texts))

    trio.run(body, clock=MockClock(autojump_threshold=0))


# -- failures ---------------------------------------------------------------------------------------------------------


async def test_lost_blocks_that_nobody_else_serves_are_named_and_the_session_goes_on_once_somebody_does():
    async with open_swarm((0, 3), (3, 6)) as swarm:
        context = swarm.context(client(patience_s=6.0))
        async with Session(context, max_length=64) as session:
            await session.step(ids(IDS))
            passes = swarm.members[0].engine.passes
            swarm.world.kill("s1")
            swarm.members.pop()
            began = trio.current_time()
            with pytest.raises(CoverageError, match="nobody serves blocks 3-5 of 6") as caught:
                await session.step(ids([1]))
            assert caught.value.missing == (3, 4, 5)
            assert trio.current_time() - began == pytest.approx(6.0, abs=0.5)
            assert session.position == len(IDS)
            swarm.add_server("late", Span(3, 6))
            logits = await session.step(ids([1]))
            assert torch.equal(logits[0], swarm.reference.logits([*IDS, 1])[-1:])
            assert swarm.members[0].engine.passes == passes + 2  # one per try of the step, none for a replay
            assert session.route[1].peer_id == swarm.members[1].peer
        assert [len(server.sessions) for server in swarm.members] == [0, 0]


async def test_a_broken_stream_is_replaced_and_the_session_goes_on():
    async with open_swarm((0, 3), (3, 6)) as swarm:
        context = swarm.context()
        async with Session(context, max_length=64) as session:
            await session.step(ids(IDS))
            await context.ports.network.close_peer(swarm.members[1].peer)
            logits = await session.step(ids([1]))
            assert torch.equal(logits[0], swarm.reference.logits([*IDS, 1])[-1:])
            swarm.world.nursery.start_soon(cut_later, context, swarm.members[0].peer, 0.03)
            logits = await session.step(ids([2]))
            assert torch.equal(logits[0], swarm.reference.logits([*IDS, 1, 2])[-1:])
            swarm.world.nursery.start_soon(cut_later, context, swarm.members[0].peer, 0.06)
            logits = await session.step(ids(IDS * 2))  # many steps are under way
            assert torch.equal(logits[0], swarm.reference.logits([*IDS, 1, 2, *IDS, *IDS])[-2 * len(IDS) :])
            assert session.recoveries == 3
            assert not any(context.peers.banned(server.peer, trio.current_time()) for server in swarm.members)


async def cut_later(context, peer, seconds):
    await trio.sleep(seconds)
    await context.ports.network.close_peer(peer)


@pytest.mark.parametrize("moment", range(13))
async def test_a_cancelled_step_leaves_the_session_where_it_was(moment):
    async with open_swarm((0, 3), (3, 6)) as swarm:
        async with Session(swarm.context(client(prefill_chunk_tokens=2)), max_length=64) as session:
            await session.step(ids(IDS))
            with trio.move_on_after(0.01 * moment) as patience:
                await session.step(ids([4, 5, 6, 7, 8]))
            assert patience.cancelled_caught
            assert session.position == len(IDS)
            logits = await session.step(ids([1]))
            assert torch.equal(logits[0], swarm.reference.logits([*IDS, 1])[-1:])
        assert [len(server.sessions) for server in swarm.members] == [0, 0]


@pytest.mark.parametrize("moment", range(1, 30, 3))
async def test_a_cancelled_opening_leaves_no_cache_behind(moment):
    async with open_swarm((0, 3), (3, 6)) as swarm:
        swarm.world.set_latency("client", "s1", 0.1)
        with trio.move_on_after(moment * 0.03):
            async with Session(swarm.context(), max_length=64, rows=1):
                pass
        await trio.sleep(1.0)
        assert [len(member.sessions) for member in swarm.members] == [0, 0]


async def test_a_closed_session_stays_closed():
    async with open_swarm((0, 6)) as swarm:
        async with Session(swarm.context(), max_length=64) as session:
            pass
        with pytest.raises(UserError, match="closed"):
            await session.step(ids(IDS))


# -- opening ----------------------------------------------------------------------------------------------------------


async def test_a_dead_server_is_replaced_before_anything_is_lost():
    async with open_swarm((0, 6), (0, 6)) as swarm:
        swarm.world.kill("s0")
        context = swarm.context()
        swarm.members[0].announcement = replace(swarm.members[0].announcement, throughput=Throughput(inference=900.0))
        async with Session(context, max_length=64, rows=1) as session:
            assert session.route[0].peer_id == swarm.members[1].peer
            assert session.recoveries == 1
        assert context.peers.banned(swarm.members[0].peer, trio.current_time())


async def test_a_full_server_is_left_for_another_one():
    small = replace(CONFIG, server=replace(CONFIG.server, cache_tokens=64))
    async with open_swarm() as swarm:
        full = swarm.add_server("full", Span(0, 6), small, cache_tokens_free=10_000)
        roomy = swarm.add_server("roomy", Span(0, 6), cache_tokens_free=10_000)
        context = swarm.context()
        for _ in range(4):
            async with Session(context, max_length=128, rows=1) as session:
                assert session.route[0].peer_id == roomy.peer
        assert [s.failures for s in context.peers.statistics(trio.current_time()) if s.peer == full.peer] in ([0], [])


async def test_a_server_that_no_longer_has_the_span_is_not_banned_for_long():
    async with open_swarm((0, 3), (3, 6)) as swarm:
        swarm.members[1].announcement = replace(swarm.members[1].announcement, span=Span(2, 6))
        swarm.members[0].announcement = replace(swarm.members[0].announcement, span=Span(0, 2))
        with pytest.raises(HopLost, match=r"blocks 2-5\) does not have .* holds blocks 3:6"):
            async with Session(swarm.context(client(patience_s=3.0)), max_length=64, rows=1):
                pass
        assert swarm.members[0].room.cache.tokens_free == 4096


async def test_a_server_that_moved_is_used_as_soon_as_its_new_record_is_known():
    async with open_swarm((0, 3), (3, 6)) as swarm:
        right = swarm.members[0].announcement
        swarm.members[0].announcement = replace(right, span=Span(0, 6))

        async def refresh():
            swarm.members[0].announcement = right

        swarm.refresh = refresh
        async with Session(swarm.context(), max_length=64, rows=1) as session:
            assert [(hop.span.start, hop.span.end) for hop in session.route] == [(0, 3), (3, 6)]
        assert trio.current_time() < 3.0


async def test_gaps_are_waited_for_and_then_named():
    async with open_swarm((0, 3)) as swarm:
        began = trio.current_time()
        with pytest.raises(CoverageError, match="nobody serves blocks 3-5 of 6"):
            async with Session(swarm.context(client(patience_s=7.0)), max_length=64, rows=1):
                pass
        assert trio.current_time() - began == pytest.approx(7.0)
        swarm.world.nursery.start_soon(join_later, swarm, 2.0)
        async with Session(swarm.context(name="other"), max_length=64, rows=1) as session:
            assert len(session.route) == 2


async def join_later(swarm, seconds):
    await trio.sleep(seconds)
    swarm.add_server("late", Span(3, 6))


async def test_draining_servers_take_no_new_session():
    async with open_swarm((0, 6), (0, 6)) as swarm:
        swarm.members[0].announcement = replace(swarm.members[0].announcement, state=ServerState.DRAINING)
        async with Session(swarm.context(), max_length=64, rows=1) as session:
            assert session.route[0].peer_id == swarm.members[1].peer


async def test_the_next_session_needs_no_new_stream():
    async with open_swarm((0, 6)) as swarm:
        context = swarm.context()
        took = []
        for _ in range(2):
            began = trio.current_time()
            async with Session(context, max_length=64, rows=1):
                took.append(trio.current_time() - began)
        assert took[1] == pytest.approx(0.04)
        assert took[0] > 0.15


async def test_a_kept_stream_that_died_is_replaced_by_a_fresh_one():
    async with open_swarm((0, 6)) as swarm:
        context = swarm.context()
        async with Session(context, max_length=64, rows=1):
            pass
        await context.ports.network.close_peer(swarm.members[0].peer)
        await trio.sleep(1.0)
        async with Session(context, max_length=64, rows=1) as session:
            await session.step(ids(IDS))
            assert session.recoveries == 0


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda c: Session(c, max_length=0), "max_length 0"),
        (lambda c: Session(c, max_length=257), "context holds 1 to 256"),
        (lambda c: Session(c, max_length=9, rows=0), "rows 0"),
        (lambda c: Session(c, max_length=9, activations="int4"), "choose one of int8"),
    ],
)
async def test_wrong_arguments(make, match):
    async with open_swarm() as swarm:
        with pytest.raises(UserError, match=match):
            make(swarm.context())


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        (torch.tensor([[64]]), "0..63"),
        (torch.tensor([[-1]]), "0..63"),
        (torch.tensor([1, 2]), r"\[rows, tokens\]"),
        (torch.tensor([[True]]), "integer tensor"),
        (torch.zeros(1, 0, dtype=torch.long), "no token ids"),
        (torch.zeros(2, 2, dtype=torch.long), "2 rows in a step of a session of 1"),
        (torch.zeros(1, 2, 31), "finite and"),
        (torch.full((1, 2, 32), torch.nan), "finite and"),
        (torch.zeros(1, 11, dtype=torch.long), "max_length of 10"),
    ],
)
async def test_wrong_inputs_are_refused_here_and_spoil_nothing(inputs, match):
    async with open_swarm((0, 6)) as swarm, Session(swarm.context(), max_length=10, rows=1) as session:
        with pytest.raises(UserError, match=match):
            await session.step(inputs)
        await session.step(ids(IDS[:10]))
        with pytest.raises(UserError, match="max_length"):
            await session.step(ids([1]))
