"""Servers that cannot reach each other: the client relays between them, blames nobody, and loses hardly any time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
import trio

from sim.failover import NEW_TOKENS, PROMPT, Case, config_of, toy
from sim.faults import Injector
from sim.swarm import SimSwarm, open_swarm

SPANS = ((0, 1), (1, 2), (2, 3))


def estrange(swarm: SimSwarm, pairs: Iterable[tuple[str, str]]) -> None:
    """Take away what the first of each pair knows of where the second is."""
    for one, two in pairs:
        swarm.servers[one].network.learn(swarm.servers[two].peer, ())


@pytest.mark.parametrize(
    "pairs", [[("s0", "s1")], [("s1", "s2")], list(itertools.permutations(("s0", "s1", "s2"), 2))], ids=str
)
async def test_a_link_that_is_missing_is_relayed(pairs: list[tuple[str, str]]) -> None:
    async with open_swarm(toy(3), SPANS, config_of(Case(push=True))) as swarm, swarm.client() as client:
        estrange(swarm, pairs)
        injector = Injector(swarm)
        began = trio.current_time()
        result = await client.model.generate([list(PROMPT)], max_new_tokens=NEW_TOKENS)
        assert list(result.new_ids[0]) == toy(3).greedy(PROMPT, NEW_TOKENS)
        assert not any(known.failures for known in client.peers.statistics(trio.current_time()))
        assert trio.current_time() - began < 5
        pushed = {(m.source, m.target) for m in injector.seen if "client" not in (m.source, m.target)}
        assert pushed == {("s0", "s1"), ("s1", "s2")} - set(pairs)
