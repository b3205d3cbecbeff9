"""The documented examples, as a type test: `make check` holds that they type-check; nothing here runs."""

from __future__ import annotations

import torch
import trio

import p2pllm
import p2pllm.aio
import p2pllm.sync


async def generate(addr: str, input_ids: torch.Tensor) -> None:
    async with p2pllm.connect("demo", bootstrap=[addr], activations="int8", exact=False, patience=60.0) as model:
        async for piece in model.stream("Once upon a time", max_new_tokens=32):
            text: str = piece.text
            print(text, end="", flush=True)
        result = await model.generate(input_ids, max_new_tokens=32, temperature=0.7, top_k=5, seed=1)
        print(result.ids, result.text, result.steps_per_s, result.exact)
        logits: torch.Tensor = await model.forward(input_ids)
        async with model.session(max_length=256) as s:
            logits = await s.step(input_ids)
            position: int = s.position
            print(position, s.recoveries, logits.shape)
            for hop in s.route:
                print(hop.peer_id, hop.span.start, hop.span.end)
        hidden: torch.Tensor = model.embed(input_ids)
        logits = model.head(hidden)


async def serve(addr: str) -> None:
    async with p2pllm.Node("demo", bootstrap=[addr], blocks=(0, 4)) as node:
        print(node.peer_id, node.addrs, node.span)
        await trio.sleep_forever()


def plain(addr: str) -> None:
    with p2pllm.sync.connect("demo", bootstrap=[addr]) as model:
        print(model.generate("hello", max_new_tokens=3).text)
        for piece in model.stream("hello"):
            print(piece.text)
        with model.session(max_length=8) as session:
            print(session.step(torch.tensor([[1]])), session.position)


async def under_asyncio(addr: str) -> None:
    async with p2pllm.aio.connect("demo", bootstrap=[addr]) as model:
        print((await model.generate("hello", max_new_tokens=3)).text)
        async for piece in model.stream("hello"):
            print(piece.text)
