"""Serve blocks from your own program: joins a swarm, or starts one of its own.

python examples/serve.py [ADDR]        Ctrl-C leaves the swarm politely
"""

from __future__ import annotations

import sys

import trio

import p2pllm


async def main(bootstrap: list[str]) -> None:
    """Serve the second half of the demo model until interrupted."""
    async with p2pllm.Node("demo", bootstrap=bootstrap, blocks=(4, 8)) as node:
        print("blocks", node.span, "as", node.peer_id)
        for addr in node.addrs:
            print("others join with", addr, flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    try:
        trio.run(main, sys.argv[1:])
    except* KeyboardInterrupt:
        print("left the swarm")
