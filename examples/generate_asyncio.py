"""The same from asyncio: two generations side by side.

python examples/generate_asyncio.py /ip4/127.0.0.1/tcp/4001/p2p/12D3KooW...
"""

from __future__ import annotations

import asyncio
import sys

import p2pllm.aio


async def main(addr: str) -> None:
    """Stream one story while another one is made in the background."""
    async with p2pllm.aio.connect("demo", bootstrap=[addr]) as model:
        other = asyncio.create_task(model.generate("The old owl", max_new_tokens=16))
        async for piece in model.stream("Once upon a time", max_new_tokens=24):
            print(piece.text, end="", flush=True)
        print()
        print((await other).text)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
