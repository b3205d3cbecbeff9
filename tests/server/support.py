"""A small random model, and the pieces of a server around it, for the tests of this folder."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import torch
import trio

from p2pllm.config import Config, ServerConfig, WireLimits
from p2pllm.model.config import ModelConfig, block_tensors, parse_config
from p2pllm.model.exact import check_exact
from p2pllm.model.span import Segment, SpanModel
from p2pllm.ports import Compute
from p2pllm.server.backend import SpanBackend
from p2pllm.server.channel import Channel
from p2pllm.server.offer import Offer
from p2pllm.server.serving import Serving
from p2pllm.types import ModelId, Numerics, SessionId, Span
from p2pllm.wire import BACKWARD, FORWARD, PUSH, SESSION
from p2pllm.wire import tensor as codec_of
from p2pllm.wire.messages import Answer, Message, Open, Step, TensorHeader
from sim.compute import SimCompute, flat_cost
from sim.host import SimNetwork
from sim.network import SimWorld

BLOCKS = 4
HIDDEN = 32
WHOLE = Span(0, BLOCKS)


@functools.cache
def config() -> ModelConfig:
    raw: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 50,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
    }
    return parse_config(raw)


def weights(name: str) -> torch.Tensor:
    """The tensor of that name: always the same numbers."""
    specs = {s.name: s for block in range(BLOCKS) for s in block_tensors(config(), block).values()}
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    tensor = torch.randn(specs[name].shape, generator=generator)
    return 1 + 0.1 * tensor if tensor.ndim == 1 else tensor / tensor.shape[1] ** 0.5


@functools.cache
def model(span: Span = WHOLE, exact: bool = True) -> SpanModel:
    torch.set_num_threads(1)
    made = SpanModel.load(config(), span, weights, exact=exact)
    if exact:
        assert check_exact(made)
    return made


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    """Hidden states [count, HIDDEN]."""
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


def packed(hidden: torch.Tensor, codec: str = "fp32") -> tuple[TensorHeader, bytes]:
    header, payload = codec_of.encode(hidden.numpy(), "fp32", codec)
    return header, bytes(payload)


def unpacked(header: TensorHeader, payload: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(codec_of.decode(header, payload, "fp32")))


def alone(hidden: torch.Tensor, span: Span = WHOLE) -> torch.Tensor:
    """What the span gives for one whole sequence, by itself."""
    return model(span).run(hidden, [Segment(len(hidden))]).clone() if len(hidden) else hidden


# -- a server over the simulated network, and clients that speak the wire by hand


MODEL = ModelId("m")
NUMERICS = Numerics("float32", "none", "test", "test", exact=True)


def offer(span: Span = WHOLE) -> Offer:
    return Offer(MODEL, span, HIDDEN, config().max_positions, NUMERICS, 1024)


@asynccontextmanager
async def serving(
    world: SimWorld,
    name: str = "server",
    span: Span = WHOLE,
    cache_tokens: int = 1024,
    pass_s: float = 0.001,
    compute: Compute | None = None,
    **settings: Any,
) -> AsyncIterator[Serving]:
    """A server of ``span`` on the host ``name``."""
    host = world.host(name)
    server = ServerConfig(**settings)
    backend = SpanBackend(model(span), model(span).arena(cache_tokens, server.page_tokens))
    made = Serving(offer(span), backend, host, compute or SimCompute(flat_cost(pass_s)), Config(server=server), "cpu")
    host.serve(SESSION, made.handle_session)
    host.serve(PUSH, made.handle_push)
    host.serve(FORWARD, made.forwards.handle)
    host.serve(BACKWARD, made.forwards.handle)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.run)
        yield made
        nursery.cancel_scope.cancel()
    made.room.cache.check_integrity()


class Caller:
    """A client's stream, one message at a time."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    @classmethod
    async def dial(cls, host: SimNetwork, server: SimNetwork, protocol: str = SESSION) -> Caller:
        host.learn(server.me, server.addrs)
        return cls(Channel(await host.open_stream(server.me, protocol), WireLimits()))

    async def ask(self, message: Message, payload: Any = b"") -> Message:
        await self.channel.send(message, payload)
        return (await self.next())[0]

    async def next(self) -> tuple[Message, Any]:
        with trio.fail_after(60):
            got = await self.channel.receive()
        assert got is not None, "the stream ended"
        return got

    async def open(self, number: int = 1, rows: int = 1, length: int = 64, **more: Any) -> Message:
        fields: dict[str, Any] = {"span": WHOLE, "activations": "fp32", "epoch": 0, "model": MODEL}
        return await self.ask(Open(sid(number), rows=rows, max_length=length, **(fields | more)))

    async def step(self, number: int, step: int, at: tuple[int, ...], *hidden: torch.Tensor, **more: Any) -> Message:
        """One step of a session; returns what came back."""
        message, payload = a_step(number, step, at, *hidden, **more)
        return await self.ask(message, payload)

    async def output(self, number: int, step: int, at: tuple[int, ...], *hidden: torch.Tensor, **more: Any) -> Any:
        """The step's output, which must be an answer."""
        message, payload = a_step(number, step, at, *hidden, **more)
        await self.channel.send(message, payload)
        return await self.answer(step)

    async def answer(self, step: int) -> torch.Tensor:
        answer, out = await self.next()
        assert isinstance(answer, Answer), answer
        assert answer.step == step
        return unpacked(answer.tensor, out)


def sid(number: int) -> SessionId:
    return SessionId(number.to_bytes(16, "big"))


def a_step(
    number: int, step: int, at: tuple[int, ...], *hidden: torch.Tensor, codec: str = "fp32", **more: Any
) -> tuple[Step, bytes]:
    header, payload = packed(torch.cat(hidden), codec)
    fields: dict[str, Any] = {"epoch": 0, "positions": at, "counts": tuple(len(h) for h in hidden)}
    return Step(sid(number), step=step, tensor=header, **(fields | more)), payload
