"""How soon a failed server is noticed while a step waits for it, over real libp2p, another process at the other end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from p2pllm.client.hop import HopSession
from p2pllm.client.link import Links, PeerSilent
from p2pllm.client.peers import Peers
from p2pllm.client.route import Hop
from p2pllm.config import Config
from p2pllm.errors import PeerLost
from p2pllm.net import Identity, open_network
from p2pllm.types import ModelId, PeerId, Span
from p2pllm.wire.messages import Open
from tests.client.test_hop import HIDDEN, ID, packed, step

pytestmark = pytest.mark.real_clock

ROOT = Path(__file__).parent.parent.parent
STEPS = 5
SILENT_S = 1.5
CONFIG = replace(Config(), client=replace(Config().client, step_timeout_min_s=SILENT_S))


@asynccontextmanager
async def waiting_for_a_process():
    """A hop whose server has answered some steps and holds the next one; and the server's process."""
    command = [sys.executable, "-m", "tests.client.stuck_server", str(STEPS)]
    process = await trio.lowlevel.open_process(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = b""
        with trio.fail_after(60):
            while not line.endswith(b"\n"):
                line += await process.stdout.receive_some()
        peer, addrs = json.loads(line)
        place = Hop(PeerId(peer), Span(2, 4))
        open_ = Open(ID, 0, ModelId("ab" * 32), place.span, 1, 100, "fp32")
        async with open_network(CONFIG.net, identity=Identity.ephemeral(), wall_time=time.time) as network:
            network.learn(place.peer_id, addrs)
            hop = HopSession(Links(network, CONFIG), Peers(CONFIG.client), CONFIG, place, open_, HIDDEN)
            with trio.fail_after(60):
                await hop.open()
                for i in range(STEPS):
                    await step(hop, i)
                await hop.send((STEPS,), (1,), packed())
                yield hop, process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()


async def noticed_after(hop: HopSession, process: trio.Process, how: signal.Signals) -> tuple[float, str]:
    """Seconds from the signal to the error of the step that waits, and the error."""
    at = 0.0
    caught: list[PeerLost] = []

    async def wait() -> None:
        with pytest.raises(PeerLost) as error:
            await hop.receive()
        caught.append(error.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(0.2)  # the server is idle, our step is on its way to nowhere
        at = time.monotonic()
        os.kill(process.pid, how)
    return time.monotonic() - at, type(caught[0]).__name__


async def test_a_killed_process_is_noticed_within_a_second():
    async with waiting_for_a_process() as (hop, process):
        took_s, _ = await noticed_after(hop, process, signal.SIGKILL)
        print(f"killed: noticed after {took_s * 1000:.0f} ms")
        assert took_s < 1.0


async def test_a_frozen_process_is_noticed_as_soon_as_its_steps_allow():
    async with waiting_for_a_process() as (hop, process):
        took_s, error = await noticed_after(hop, process, signal.SIGSTOP)
        print(f"frozen: noticed after {took_s:.2f} s")
        assert error == PeerSilent.__name__
        assert took_s < SILENT_S + 1.0
