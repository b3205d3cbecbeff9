"""Rows of a session that continue other rows: what beams stand on."""

from __future__ import annotations

import pytest
import torch

from p2pllm.client.chunks import packed_slices
from p2pllm.client.edge import pack, unpack
from p2pllm.client.session import Session
from p2pllm.errors import UserError
from tests.client.harness import open_swarm

IDS = [5, 9, 33, 2, 60, 17, 8, 41, 3, 22, 12]


async def feed(session, reference, rows, sources=()):
    """New tokens per row; the logits of each row's last one."""
    counts = tuple(map(len, rows))
    flat = torch.tensor([token for row in rows for token in row])
    out = []

    async def source(chunk):
        return pack(reference.ends.embed(torch.cat([flat[piece] for piece in packed_slices(counts, chunk)])), "fp32")

    async def sink(chunk, packed):
        out[:] = [reference.ends.head(unpack(packed, torch.float32))]

    await session.run(counts, source, sink, tail=1, sources=sources)
    return out[0]


@pytest.mark.parametrize("long", [1, 20])
async def test_rows_continue_other_rows(long):
    """Also when the step that reorders is cut into several chunks."""
    async with open_swarm((0, 2), (2, 6)) as swarm:
        reference = swarm.reference
        async with Session(swarm.context(), max_length=64, rows=3) as session:
            await feed(session, reference, [IDS, [], [7, 7]])
            new = [[(k * i) % 64 for i in range(long)] for k in (3, 5, 11)]
            logits = await feed(session, reference, new, sources=(0, 0, 2))
            for row, past in enumerate((IDS, IDS, [7, 7])):
                assert torch.equal(logits[row], reference.logits(past + new[row])[-1])
            assert session.positions == (11 + long, 11 + long, 2 + long)
            logits = await feed(session, reference, [[1], [2], []], sources=(1, 2, 0))
            assert torch.equal(logits[0], reference.logits([*IDS, *new[1], 1])[-1])
            assert torch.equal(logits[1], reference.logits([7, 7, *new[2], 2])[-1])
            assert session.positions == (12 + long, 3 + long, 11 + long)


async def test_rows_are_rewound_one_by_one():
    async with open_swarm((0, 3), (3, 6)) as swarm:
        reference = swarm.reference
        async with Session(swarm.context(), max_length=64, rows=2) as session:
            await feed(session, reference, [IDS, [7, 7, 7]])
            session.rewind((4, 3))
            logits = await feed(session, reference, [[1], [2]])
            assert torch.equal(logits[0], reference.logits([*IDS[:4], 1])[-1])
            assert torch.equal(logits[1], reference.logits([7, 7, 7, 2])[-1])
            for wrong in [(6, 4), (1,), (-1, 0)]:
                with pytest.raises(UserError, match="can only go back"):
                    session.rewind(wrong)


async def test_sources_that_name_no_row_are_refused_here():
    async with open_swarm((0, 6)) as swarm, Session(swarm.context(), max_length=64, rows=2) as session:
        for wrong in [(0,), (0, 2), (-1, 0)]:
            with pytest.raises(UserError, match="sources must name"):
                await feed(session, swarm.reference, [[1], [2]], sources=wrong)
        await feed(session, swarm.reference, [[1], [2]])
