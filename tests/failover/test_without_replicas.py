"""No spare left: wait for one to appear, say so, then name the blocks; and go on later without starting over."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import trio

from p2pllm.errors import SwarmError
from p2pllm.types import Span
from sim.failover import PROMPT, Case, config_of, toy
from sim.swarm import SimSwarm, open_swarm
from tests.failover.verdicts import MODE_NAMES, MODES, named

SPANS = ((0, 1), (1, 2), (2, 3))
TOKENS = 8


def patient(push: bool, patience_s: float):
    config = config_of(Case(push=push))
    return replace(config, client=replace(config.client, patience_s=patience_s))


async def ask(session, fed: list[int]) -> int:
    return int((await session.step(torch.tensor([fed]), tail=1))[0, -1].argmax())


async def add_later(swarm: SimSwarm, seconds: float) -> None:
    await trio.sleep(seconds)
    await swarm.add("late", Span(1, 2))


@pytest.mark.parametrize("push", MODES, ids=MODE_NAMES.get)
async def test_a_server_that_appears_in_time_is_waited_for(push: bool) -> None:
    expected = toy(3).greedy(PROMPT, TOKENS)
    async with open_swarm(toy(3), SPANS, patient(push, 60)) as swarm, swarm.client() as client:
        new: list[int] = []
        async for piece in client.model.stream([list(PROMPT)], max_new_tokens=TOKENS):
            new += piece.ids
            if len(new) == 3:
                swarm.world.kill("s1")
                swarm.world.nursery.start_soon(add_later, swarm, 30)
                began = trio.current_time()
        assert new == expected
        assert 30 < trio.current_time() - began < 35


@pytest.mark.parametrize("push", MODES, ids=MODE_NAMES.get)
async def test_a_session_goes_on_later_and_the_others_compute_nothing_again(push: bool) -> None:
    expected = toy(3).greedy(PROMPT, TOKENS)
    opened = open_swarm(toy(3), SPANS, patient(push, 10))
    async with opened as swarm, swarm.client() as client, client.model.session(max_length=64) as session:
        new = [await ask(session, list(PROMPT))]
        new.append(await ask(session, new[-1:]))
        swarm.world.kill("s1")
        began = trio.current_time()
        with pytest.raises(SwarmError) as caught:
            await ask(session, new[-1:])
        assert named(caught.value) == (1,)
        assert 9 < trio.current_time() - began < 25
        passes = swarm.servers["s2"].serving.engine.passes
        await swarm.add("late", Span(1, 2))
        while len(new) < TOKENS:
            new.append(await ask(session, new[-1:]))
        assert new == expected
        # The step that failed may be computed once more, for nobody.
        assert swarm.servers["s2"].serving.engine.passes <= passes + TOKENS - 2 + 1
        assert session.recoveries >= 1
