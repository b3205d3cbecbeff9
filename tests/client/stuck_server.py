"""A process that serves one session over real libp2p, and falls silent at a given step."""

from __future__ import annotations

import json
import sys
import time

import trio

from p2pllm.config import NetConfig
from p2pllm.net import Identity, open_network
from p2pllm.wire import SESSION
from p2pllm.wire.messages import Step
from tests.client.test_hop import Scripted


async def main(stuck_at: int) -> None:
    script = Scripted()

    def on_step(step: Step) -> None:
        if step.step >= stuck_at:
            script.delay_s = 3600.0

    script.on_step = on_step
    async with open_network(
        NetConfig(), identity=Identity.ephemeral(), wall_time=time.time, listen=["/ip4/127.0.0.1/tcp/0"]
    ) as network:
        network.serve(SESSION, script.handle)
        print(json.dumps([network.me, network.addrs]), flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
