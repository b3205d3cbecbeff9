"""Sessions that are kept across generations: only what is new goes through the chain."""

from __future__ import annotations

import pytest
import torch

from p2pllm.client.session import Session
from p2pllm.errors import UserError
from tests.client.harness import open_swarm
from tests.client.test_beams import generation

FIRST = [5, 9, 33, 2, 60, 17, 8]


def fed(session):
    """Counts the tokens that steps of ``session`` bring."""
    counted = []
    run = session.run

    async def counting(counts, *args, **kwargs):
        counted.append(counts)
        await run(counts, *args, **kwargs)

    session.run = counting
    return counted


async def test_a_turn_that_continues_feeds_only_what_is_new():
    async with open_swarm((0, 3), (3, 6)) as swarm:
        context = swarm.context()
        async with Session(context, max_length=64) as session:
            counted = fed(session)
            first = await generation(swarm, FIRST, context=context, session=session, max_new_tokens=5).run()
            assert list(first.new_ids[0]) == swarm.reference.greedy(FIRST, 5)
            assert session.position == len(FIRST) + 4
            second = [*first.ids, 44, 31]
            result = await generation(swarm, second, context=context, session=session, max_new_tokens=4).run()
            assert list(result.new_ids[0]) == swarm.reference.greedy(second, 4)
            assert counted == [(7,), *[(1,)] * 4, (3,), *[(1,)] * 3]
            assert [len(member.sessions) for member in swarm.members] == [1, 1]
        assert [len(member.sessions) for member in swarm.members] == [0, 0]


async def test_a_turn_that_differs_goes_back_to_where_it_does():
    async with open_swarm((0, 6)) as swarm:
        context = swarm.context()
        async with Session(context, max_length=64) as session:
            counted = fed(session)
            await generation(swarm, FIRST, context=context, session=session, max_new_tokens=6).run()
            for prompt, new in [([*FIRST[:4], 1, 2], 2), (FIRST[:4], 1), (FIRST[:4], 1), ([50], 1)]:
                del counted[:]
                result = await generation(swarm, prompt, context=context, session=session, max_new_tokens=3).run()
                assert list(result.new_ids[0]) == swarm.reference.greedy(prompt, 3)
                assert counted[0] == (new,)


async def test_rows_go_back_each_for_itself():
    rows = [FIRST, [60], FIRST[::-1]]
    async with open_swarm((0, 3), (3, 6)) as swarm:
        context = swarm.context()
        async with Session(context, max_length=64) as session:
            counted = fed(session)
            first = await generation(swarm, rows, context=context, session=session, max_new_tokens=4).run()
            second = [[*first.ids[0], 3], [60, 1], first.ids[2][:9]]
            del counted[:]
            result = await generation(swarm, second, context=context, session=session, max_new_tokens=3).run()
            assert counted[0] == (2, 1, 1)
            assert [list(ids) for ids in result.new_ids] == [swarm.reference.greedy(prompt, 3) for prompt in second]


async def test_steps_and_generations_share_a_session():
    async with open_swarm((0, 6)) as swarm:
        context = swarm.context()
        async with Session(context, max_length=64) as session:
            counted = fed(session)
            await session.step(torch.tensor([FIRST]))
            result = await generation(swarm, [*FIRST, 3], context=context, session=session, max_new_tokens=3).run()
            assert list(result.new_ids[0]) == swarm.reference.greedy([*FIRST, 3], 3)
            assert counted[:2] == [(7,), (1,)]
            session.position = 3
            hidden = swarm.reference.ends.embed(torch.tensor(FIRST[3:]))
            await session.step(hidden[None])
            del counted[:]
            result = await generation(swarm, [*FIRST, 3], context=context, session=session, max_new_tokens=3).run()
            assert list(result.new_ids[0]) == swarm.reference.greedy([*FIRST, 3], 3)
            assert counted[0] == (5,)  # nobody can know which tokens hidden states stand for


async def test_leaving_early_leaves_the_session_fit_for_the_next_turn():
    async with open_swarm((0, 3), (3, 6)) as swarm:
        context = swarm.context()
        async with Session(context, max_length=64) as session:
            async with generation(swarm, FIRST, context=context, session=session, max_new_tokens=9) as pieces:
                said = [piece.ids[0] async for piece, _ in zip_async(pieces, range(3))]
            assert session.position == len(FIRST) + 2
            prompt = [*FIRST, *said, 12]
            result = await generation(swarm, prompt, context=context, session=session, max_new_tokens=4).run()
            assert list(result.new_ids[0]) == swarm.reference.greedy(prompt, 4)


async def zip_async(pieces, numbers):
    for number in numbers:
        yield await anext(pieces), number


async def test_two_generations_at_once_are_refused():
    async with open_swarm((0, 6)) as swarm:
        context = swarm.context()
        async with Session(context, max_length=64) as session:
            one = generation(swarm, FIRST, context=context, session=session)
            await anext(one)
            two = generation(swarm, FIRST, context=context, session=session)
            with pytest.raises(UserError, match="one at a time"):
                await anext(two)
            await anext(one)
            await one.aclose()
            assert (await generation(swarm, [1], context=context, session=session, max_new_tokens=1).run()).new_ids


async def test_what_does_not_fit_a_session_is_refused():
    async with open_swarm((0, 6)) as swarm:
        context = swarm.context()
        async with Session(context, max_length=12) as session:
            for prompt, options, match in [
                ([1] * 13, {}, "a prompt of 13 tokens; the session holds 12"),
                ([1] * 8, {"max_new_tokens": 6}, "at most 5 new tokens fit"),
                ([1], {"activations": "int8"}, "the session's activations are fp32"),
                ([1], {"num_beams": 2}, "session of its own"),
            ]:
                with pytest.raises(UserError, match=match):
                    generation(swarm, prompt, context=context, session=session, **options)
            with pytest.raises(UserError, match="another model"):
                generation(swarm, [1], session=session)
            with pytest.raises(UserError, match="session takes a session"):
                generation(swarm, [1], session="s")
            await generation(swarm, FIRST, context=context, session=session, max_new_tokens=2).run()
            with pytest.raises(UserError, match="2 prompts in a session of 1 rows"):
                await generation(swarm, [[1], [2]], context=context, session=session).run()
