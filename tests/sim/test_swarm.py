"""The swarm in virtual time computes what the whole model computes, and faults happen when and to whom they should."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pllm.config import Config
from p2pllm.types import Span
from p2pllm.wire import INFO
from p2pllm.wire.frame import MessageReader, encode_message
from p2pllm.wire.messages import Info, InfoRequest
from sim.compute import SimCompute, flat_cost
from sim.faults import FaultAt, Injector, Mishap, flipped, lie
from sim.run import run
from sim.stacks import open_world
from sim.swarm import MODEL, open_swarm
from sim.toy import ToyModel

TOY = ToyModel(4)
BASE = Config()
CONFIG = replace(
    BASE,
    server=replace(BASE.server, cache_tokens=256),
    client=replace(BASE.client, activations="fp32", exact=True),
)
PROMPT = [3, 1, 4, 1, 5]


async def generate(spans, *faults, new_tokens=4):
    async with open_swarm(TOY, spans, CONFIG) as swarm, swarm.client() as client:
        injector = Injector(swarm, faults)
        result = await client.model.generate([PROMPT], max_new_tokens=new_tokens)
        return list(result.new_ids[0]), injector, swarm.world.trace_hash()


def test_a_chain_computes_what_the_whole_model_computes():
    tokens, injector, trace = run(lambda: generate([(0, 1), (1, 3), (3, 4)]))
    assert tokens == TOY.greedy(PROMPT, 4)
    assert {m.source for m in injector.seen} == {"client", "s0", "s1", "s2"}
    assert run(lambda: generate([(0, 1), (1, 3), (3, 4)]))[2] == trace


async def test_clients_hear_of_new_servers_and_pings_are_answered():
    async with open_swarm(TOY, [(0, 2)], CONFIG) as swarm, swarm.client() as client:
        late = await swarm.add("late", Span(2, 4))
        result = await client.model.generate([PROMPT], max_new_tokens=2)
        assert [hop.peer_id for hop in result.route] == [swarm.servers["s0"].peer, late.peer]
        assert swarm.by_peer(late.peer) is late
        client.network.learn(late.peer, late.network.addrs)
        stream = await client.network.open_stream(late.peer, INFO)
        await stream.send_all(encode_message(InfoRequest(7, MODEL)))
        ((answer, _),) = MessageReader().feed(await stream.receive_some())
        assert answer == Info(7, late.record)


@pytest.mark.parametrize("mishap", Mishap)
def test_a_fault_strikes_the_server_of_its_message(mishap):
    """The first message asks to open a session; whatever happens to it, the spare serves."""
    tokens, injector, _ = run(lambda: generate([(0, 4), (0, 4)], FaultAt(mishap, 0)))
    first = injector.seen[0]
    ((fault, victim),) = injector.struck
    assert fault == FaultAt(mishap, 0)
    assert first.kind == "Open"
    assert victim == first.target
    assert tokens == TOY.greedy(PROMPT, 4)


def test_one_bit_flips_and_all_parts_are_hit():
    data = bytes(40)
    hit = {next(i for i, byte in enumerate(flipped(data, seed)) if byte) for seed in range(200)}
    assert len(hit) > 35
    assert all(sum(byte.bit_count() for byte in flipped(data, seed)) == 1 for seed in range(200))


def test_a_lie_is_a_whole_answer_of_another_shape():
    seen = run(lambda: generate([(0, 4)]))[1].seen
    truth = next(m.data for m in seen if m.kind == "Answer")
    told = lie(truth)
    ((message, payload),) = MessageReader().feed(told)
    ((before, _),) = MessageReader().feed(truth)
    assert message.tensor.shape[0] == before.tensor.shape[0] + 1
    assert len(payload) == message.tensor.size
    assert lie(b"no message") == b"no message"
    assert lie(seen[0].data) == seen[0].data


@pytest.mark.parametrize("text", ["kill@37", "hang@40s"])
def test_a_fault_is_its_text(text):
    assert str(FaultAt.parse(text)) == text


@pytest.mark.parametrize("stack", ["ports", "libp2p"])
def test_a_swarm_in_a_world_of_either_stack_with_devices_of_its_own(stack):
    made = []

    def compute(name):
        made.append(name)
        return SimCompute(flat_cost(0.1 if name == "s1" else 0.01))

    async def play():
        async with open_world(stack, 3, CONFIG.net) as world:
            opened = open_swarm(TOY, [(0, 2), (2, 4)], CONFIG, world=world, compute=compute)
            async with opened as swarm, swarm.client() as client:
                return await client.model.generate([PROMPT], max_new_tokens=6)

    result = run(play, 3)
    assert list(result.new_ids[0]) == TOY.greedy(PROMPT, 6)
    assert made == ["s0", "s1", "client"]
    assert 1 / result.steps_per_s > 0.11
