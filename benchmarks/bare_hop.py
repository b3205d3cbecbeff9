"""The baseline of a hop: the same messages around the same blocks over bare trio TCP, without libp2p or sessions.

Run as a process: ``python -m benchmarks.bare_hop FOLDER A B PORTFILE`` serves blocks [A, B) of a checkpoint to one
connection at a time. It decodes, computes and encodes in one pass on the compute thread, as a server does.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import trio

from p2pllm.local.compute import open_compute
from p2pllm.local.storage import DiskStorage
from p2pllm.model.checkpoint import Checkpoint
from p2pllm.model.kv import KVArena
from p2pllm.model.source import FolderSource
from p2pllm.model.span import Segment, SpanModel
from p2pllm.types import Cost, Span, WorkKind
from p2pllm.wire import tensor
from p2pllm.wire.frame import MessageReader, encode_message
from p2pllm.wire.messages import Answer, Step

CACHE_TOKENS = 4096


def load_span(folder: str, span: Span) -> SpanModel:
    """Blocks of a local checkpoint, fp32, on this thread."""
    checkpoint = Checkpoint(FolderSource(folder, DiskStorage()))
    return SpanModel.load(checkpoint.config, span, checkpoint.span_tensors(span, torch.float32))


def compute_step(model: SpanModel, arena: KVArena, step: Step, payload: bytes) -> tuple[Answer, bytes | memoryview]:
    """Decode, run, encode: one row from page 0 on."""
    hidden = torch.from_numpy(np.array(tensor.decode(step.tensor, payload, "fp32")))
    pages = tuple(range(arena.pages))
    out = model.run(hidden, [Segment(step.counts[0], step.positions[0], pages)], arena)
    header, body = tensor.encode(out.numpy(), "fp32", step.tensor.codec)
    return Answer(step.session, step.epoch, step.step, (step.positions[0] + step.counts[0],), header), body


async def serve(model: SpanModel, port_file: Path) -> None:
    """Answer the steps of each connection, one after the other."""
    arena = model.arena(CACHE_TOKENS)
    cost = Cost(WorkKind.STEP)
    async with open_compute(setup=lambda _: torch.set_num_threads(1)) as compute:

        async def handle(stream: trio.SocketStream) -> None:
            stream.setsockopt(6, 1, 1)  # TCP_NODELAY
            reader = MessageReader()
            async for data in stream:
                for step, payload in reader.feed(data):
                    assert isinstance(step, Step)
                    work = partial(compute_step, model, arena, step, bytes(payload))
                    (answer, body), seconds = await compute.run(work, cost)
                    told = Answer(
                        answer.session, answer.epoch, answer.step, answer.positions, answer.tensor, compute_s=seconds
                    )
                    await stream.send_all(encode_message(told, body))

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port_file.with_suffix(".tmp").write_text(str(listeners[0].socket.getsockname()[1]))
        port_file.with_suffix(".tmp").rename(port_file)
        await trio.serve_listeners(handle, listeners)


def main() -> None:
    """Load, then serve until terminated."""
    torch.set_num_threads(1)
    folder, start, end, port_file = sys.argv[1:]
    trio.run(serve, load_span(folder, Span(int(start), int(end))), Path(port_file))


if __name__ == "__main__":
    main()
