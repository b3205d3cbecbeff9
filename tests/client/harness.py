"""A small swarm on simulated ports: real servers' sessions over random blocks, one client host, one reference model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import torch
import trio

from p2pllm.client.context import Context
from p2pllm.client.link import Links
from p2pllm.client.peers import Peers
from p2pllm.client.planner import Planner
from p2pllm.config import Config
from p2pllm.dht.record import Announcement, Throughput
from p2pllm.model.config import ModelConfig, block_tensors, ends_tensors, parse_config
from p2pllm.model.ends import Ends
from p2pllm.model.span import Segment, SpanModel
from p2pllm.ports import Ports
from p2pllm.server.backend import SpanBackend
from p2pllm.server.engine import Engine
from p2pllm.server.forwards import Forwards
from p2pllm.server.infos import Infos
from p2pllm.server.kvcache import KVCache
from p2pllm.server.offer import Offer
from p2pllm.server.pushes import Pushes
from p2pllm.server.room import CacheRoom
from p2pllm.server.sessions import Sessions
from p2pllm.types import ModelId, Numerics, PeerId, ServerState, Span
from p2pllm.wire import BACKWARD, FORWARD, INFO, PUSH, SESSION
from sim.compute import SimCompute, flat_cost
from sim.network import SimWorld
from sim.ports import sim_ports

MODEL = ModelId("ab" * 32)
EXACT = Numerics("float32", "none", "torch", "any", exact=True)
BLOCKS = 6
CONFIG = replace(
    Config(),
    server=replace(Config().server, cache_tokens=4096),
    client=replace(Config().client, activations="fp32", prefill_chunk_tokens=8, exact=True, push="off"),
)


def shape(blocks: int = BLOCKS) -> ModelConfig:
    return parse_config(
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": blocks,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 64,
            "max_position_embeddings": 256,
            "eos_token_id": 1,
        }
    )


def weights(config: ModelConfig) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(11)
    specs = list(ends_tensors(config).values())
    for block in range(config.num_blocks):
        specs += block_tensors(config, block).values()
    return {
        s.name: torch.randn(s.shape, generator=rng) * 0.25 if len(s.shape) > 1 else torch.ones(s.shape) for s in specs
    }


class Reference:
    """The same model in one piece, without any network."""

    def __init__(self) -> None:
        self.config = shape()
        self.tensors = weights(self.config)
        self.ends = Ends.load(self.config, self.tensors, exact=True)
        self.blocks = SpanModel.load(self.config, Span(0, BLOCKS), self.tensors, exact=True)

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """[tokens, vocab]."""
        hidden = self.blocks.run(self.ends.embed(torch.tensor(ids)), [Segment(len(ids))])
        return self.ends.head(hidden)

    def greedy(self, ids: Sequence[int], count: int, eos: Sequence[int] = ()) -> list[int]:
        out: list[int] = []
        while len(out) < count:
            out.append(int(self.logits([*ids, *out])[-1].argmax()))
            if out[-1] in eos:
                break
        return out


@dataclass
class Server:
    name: str
    peer: PeerId
    announcement: Announcement
    sessions: Sessions
    engine: Engine
    room: CacheRoom


@dataclass
class Swarm:
    world: SimWorld
    reference: Reference
    config: Config
    members: list[Server] = field(default_factory=list)
    reached: set[PeerId] = field(default_factory=set)

    def servers(self) -> list[Announcement]:
        return [server.announcement for server in self.members]

    def mark_reached(self, peer: PeerId) -> None:
        self.reached.add(peer)

    async def refresh(self) -> None:
        await trio.sleep(0.1)

    def add_server(self, name: str, span: Span, config: Config | None = None, **announced: object) -> Server:
        config = config or self.config
        network = self.world.host(name)
        for other in [*self.world.hosts.values()]:
            network.learn(other.me, other.addrs)
            other.learn(network.me, network.addrs)
        model = SpanModel.load(self.reference.config, span, self.reference.tensors, exact=True)
        arena = model.arena(config.server.cache_tokens or 4096, config.server.page_tokens)
        room = CacheRoom(KVCache(arena.pages, arena.page_tokens))
        engine = Engine(SpanBackend(model, arena), SimCompute(flat_cost(0.01)), room, config.server)
        offer = Offer(MODEL, span, 32, 256, EXACT, config.server.forward_tokens_max)
        pushes = Pushes(network, config, self.world.nursery)
        sessions = Sessions(offer, engine, room, config, self.world.nursery, pushes.post)
        network.serve(SESSION, sessions.handle)
        network.serve(PUSH, lambda stream: pushes.handle(stream, sessions))
        forwards = Forwards(offer, engine, config)
        network.serve(INFO, Infos(lambda model: b"record", config).handle)
        network.serve(FORWARD, forwards.handle)
        network.serve(BACKWARD, forwards.handle)
        network.spawn(engine.serve)
        network.spawn(sessions.care)
        announcement = Announcement(
            MODEL, span, BLOCKS, ServerState.ONLINE, EXACT, Throughput(50.0, 5000.0, 1000.0),
            cache_tokens_free=arena.tokens, peer=network.me, addrs=network.addrs,
        )  # fmt: skip
        server = Server(name, network.me, replace(announcement, **announced), sessions, engine, room)
        self.members.append(server)
        return server

    def context(self, config: Config | None = None, name: str = "client", ports: Ports | None = None) -> Context:
        config = config or self.config
        if ports is None:
            ports = sim_ports(
                self.world, name, network=self.world.hosts.get(name), compute=SimCompute(flat_cost(0.001))
            )
        peers = Peers(config.client)
        return Context(
            ports, config, MODEL, self.reference.config, self.reference.ends, torch.float32, self,
            Planner(config.client, ports, peers, self), peers, Links(ports.network, config),
        )  # fmt: skip


_reference: list[Reference] = []


def reference() -> Reference:
    if not _reference:
        _reference.append(Reference())
    return _reference[0]


@asynccontextmanager
async def open_swarm(
    *spans: tuple[int, int], config: Config = CONFIG, latency_s: float = 0.02, seed: int = 1
) -> AsyncGenerator[Swarm]:
    async with SimWorld(seed=seed, latency_s=latency_s) as world:
        swarm = Swarm(world, reference(), config)
        for number, (start, end) in enumerate(spans):
            swarm.add_server(f"s{number}", Span(start, end))
        with trio.fail_after(600):
            yield swarm
