"""Real processes on loopback: one is killed, one is frozen, and the text goes on within the promised time."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import trio

import p2pllm
from p2pllm.local.models import resolve_model
from p2pllm.local.storage import DiskStorage
from p2pllm.model.checkpoint import Checkpoint
from p2pllm.node.local_swarm import LocalSwarm, Member, open_local_swarm
from p2pllm.node.reference import Reference

SPANS = [(0, 4), (4, 8), (0, 4), (2, 8)]
PROMPT = "Once upon a time there was a brave knight"
BEFORE = 8
"""Tokens before the fault: so many that the client knows what a step takes."""
TOKENS = 24
KILLED_S = 1.0
"""A process that ended is noticed so soon."""
FROZEN_S = 15.0
"""A silent one, on a machine that may be busy: its steps took milliseconds, nobody waits for the cap of 30 s."""


class Noticed(logging.Handler):
    """When the client first said that a server was lost."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.at: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith("server ") and "was lost" in text:
            self.at.setdefault(text.split()[1], time.monotonic())


@pytest.fixture
def noticed():
    handler, logger = Noticed(), logging.getLogger("p2pllm.client")
    logger.addHandler(handler)
    yield handler.at
    logger.removeHandler(handler)


def serving(swarm: LocalSwarm, model: p2pllm.RemoteModel, session: p2pllm.Session, hop: int) -> Member:
    return next(member for member in swarm.servers if member.peer_id == session.route[hop].peer_id)


async def step_through(model: p2pllm.RemoteModel, swarm: LocalSwarm, how: signal.Signals, hop: int):
    """A greedy generation in whose middle the server of one hop gets a signal; its tokens, victim and the moment."""
    ids = model.tokenizer.encode(PROMPT)
    new: list[int] = []
    async with model.session(max_length=128) as session:
        fed = ids
        victim, at = None, 0.0
        while len(new) < TOKENS:
            if len(new) == BEFORE:
                victim, at = serving(swarm, model, session, hop), time.monotonic()
                os.kill(victim.process.pid, how)
            logits = await session.step(torch.tensor([fed]), tail=1)
            fed = [int(logits[0, -1].argmax())]
            new += fed
        assert victim is not None
        assert session.recoveries == 1
        assert session.exact
        return new, victim, at


@pytest.mark.real_clock
async def test_a_killed_and_a_frozen_process(tmp_path: Path, noticed: dict[str, float]) -> None:
    torch.set_num_threads(1)
    reference = Reference(Checkpoint(resolve_model("demo", "", DiskStorage())))
    async with open_local_swarm("demo", SPANS, flags=["--exact", "--threads", "1"]) as swarm:
        connected = p2pllm.connect(
            "demo",
            bootstrap=swarm.bootstrap,
            activations="fp32",
            exact=True,
            cache_dir=str(tmp_path),
            threads=1,
            config="local",
        )
        async with connected as model:
            expected = reference.greedy(model.tokenizer.encode(PROMPT), TOKENS)
            tokens, victim, at = await step_through(model, swarm, signal.SIGKILL, 1)
            assert tokens == expected
            assert noticed[victim.peer_id] - at < KILLED_S
            tokens, victim, at = await step_through(model, swarm, signal.SIGSTOP, 0)
            assert tokens == expected
            assert noticed[victim.peer_id] - at < FROZEN_S
            os.kill(victim.process.pid, signal.SIGCONT)
            with trio.fail_after(60):
                result = await model.generate(PROMPT, max_new_tokens=TOKENS)
            assert list(result.new_ids[0]) == expected
