"""Gradients back through a server: one by one, stateless, refused as forwards are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from p2pllm.model.span import Segment
from p2pllm.types import Span
from p2pllm.wire import BACKWARD
from p2pllm.wire.messages import Backward, Backwarded, Fault, FaultKind
from sim.network import SimWorld
from tests.server.support import MODEL, WHOLE, Caller, model, packed, serving, tokens, unpacked


def a_backward(
    request: int, *rows: torch.Tensor, codec: str = "fp32", back: str = "fp32", **more: Any
) -> tuple[Backward, bytes, torch.Tensor]:
    inputs = torch.cat(rows)
    gradient = tokens(len(inputs), 1000 + request)
    header, payload = packed(inputs, codec)
    back_header, back_payload = packed(gradient, back)
    fields: dict[str, Any] = {"model": MODEL, "span": WHOLE, "activations": codec} | more
    asked = Backward(request, counts=tuple(len(row) for row in rows), tensor=header, gradient=back_header, **fields)
    return asked, payload + back_payload, gradient


def wanted(rows: list[torch.Tensor], gradient: torch.Tensor, span: Span = WHOLE) -> torch.Tensor:
    return model(span).backward(torch.cat(rows), gradient, [Segment(len(row)) for row in rows])


async def test_ragged_sequences_give_the_gradient_of_the_model_alone():
    async with SimWorld() as world, serving(world, prefill_chunk_tokens=64):
        caller = await Caller.dial(world.host("client"), world.hosts["server"], BACKWARD)
        rows = [tokens(count, count) for count in (7, 1, 30, 12)]
        asked, payload, gradient = a_backward(5, *rows)
        await caller.channel.send(asked, payload)
        answer, out = await caller.next()
        assert isinstance(answer, Backwarded)
        assert answer.request == 5
        assert torch.equal(unpacked(answer.tensor, out), wanted(rows, gradient))


async def test_a_long_batch_is_cut_between_its_rows():
    """Passes take whole sequences, and what they give is put together in order."""
    async with SimWorld() as world, serving(world, prefill_chunk_tokens=64) as server:
        caller = await Caller.dial(world.host("client"), world.hosts["server"], BACKWARD)
        rows = [tokens(40, number) for number in range(5)]
        asked, payload, gradient = a_backward(1, *rows)
        await caller.channel.send(asked, payload)
        answer, out = await caller.next()
        assert isinstance(answer, Backwarded)
        assert server.engine.passes >= 3
        each = [wanted([row], pull) for row, pull in zip(rows, gradient.split(40), strict=True)]
        torch.testing.assert_close(unpacked(answer.tensor, out), torch.cat(each), rtol=1e-4, atol=1e-4)


async def test_part_of_the_span_and_another_codec_for_the_gradient():
    async with SimWorld() as world, serving(world):
        caller = await Caller.dial(world.host("client"), world.hosts["server"], BACKWARD)
        rows = [tokens(9, 3)]
        asked, payload, gradient = a_backward(2, *rows, back="bf16", span=Span(1, 3))
        await caller.channel.send(asked, payload)
        answer, out = await caller.next()
        assert isinstance(answer, Backwarded)
        assert answer.tensor.codec == "bf16"
        exact = model(WHOLE).backward(rows[0], gradient.bfloat16().float(), [Segment(9)], span=Span(1, 3))
        torch.testing.assert_close(unpacked(answer.tensor, out), exact, rtol=1e-2, atol=1e-2)


async def test_it_keeps_nothing():
    """The same request twice, in any company, gives the same bits."""
    async with SimWorld() as world, serving(world):
        caller = await Caller.dial(world.host("client"), world.hosts["server"], BACKWARD)
        asked, payload, _ = a_backward(1, tokens(11, 1), tokens(5, 2))
        other, other_payload, _ = a_backward(2, tokens(20, 9))
        found = []
        for company in (False, True):
            await caller.channel.send(asked, payload)
            if company:
                await caller.channel.send(other, other_payload)
            answers = [await caller.next() for _ in range(1 + company)]
            found += [bytes(out) for answer, out in answers if answer.request == 1]  # type: ignore[union-attr]
        assert len(found) == 2
        assert found[0] == found[1]


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"model": "other"}, FaultKind.GONE),
        ({"span": Span(0, 5)}, FaultKind.GONE),
        ({"adapter": "mine"}, FaultKind.CLIENT),
    ],
)
async def test_refusals_are_per_request(more: dict[str, Any], kind: FaultKind):
    async with SimWorld() as world, serving(world):
        caller = await Caller.dial(world.host("client"), world.hosts["server"], BACKWARD)
        asked, payload, _ = a_backward(3, tokens(2), **more)
        refused = await caller.ask(asked, payload)
        assert isinstance(refused, Fault)
        assert (refused.kind, refused.step) == (kind, 3)
        asked, payload, _ = a_backward(4, tokens(2))
        assert isinstance(await caller.ask(asked, payload), Backwarded)


@pytest.mark.parametrize("spoilt", ["inputs", "gradient"])
async def test_numbers_that_are_none_are_the_clients_fault(spoilt: str):
    async with SimWorld() as world, serving(world):
        caller = await Caller.dial(world.host("client"), world.hosts["server"], BACKWARD)
        asked, payload, _ = a_backward(3, tokens(2))
        half = len(payload) // 2
        bad = b"\xff" * half + payload[half:] if spoilt == "inputs" else payload[:half] + b"\xff" * half
        refused = await caller.ask(asked, bad)
        assert isinstance(refused, Fault)
        assert refused.kind is FaultKind.CLIENT
