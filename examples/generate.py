"""Stream text from a swarm, then look at a session from the inside: trio.

python examples/generate.py /ip4/127.0.0.1/tcp/4001/p2p/12D3KooW...
"""

from __future__ import annotations

import sys

import torch
import trio

import p2pllm


async def main(addr: str) -> None:
    """Generate in three ways: streamed, at once, and step by step."""
    async with p2pllm.connect("demo", bootstrap=[addr]) as model:
        async for piece in model.stream("Once upon a time", max_new_tokens=24):
            print(piece.text, end="", flush=True)
        print()

        result = await model.generate(["The old owl", "Once upon a time, in a castle"], max_new_tokens=16)
        for ids in result.ids:
            print(len(ids), "tokens")

        async with model.session(max_length=64) as session:
            logits = await session.step(torch.tensor([[0, 5, 6, 7]]))  # [1, 4] -> [1, 4, vocab]
            for _ in range(4):
                logits = await session.step(logits[:, -1:].argmax(-1))  # the likeliest next token
            print("position", session.position)
            for hop in session.route:
                print("blocks", hop.span, "at", hop.peer_id)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
