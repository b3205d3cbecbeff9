"""A pass computes what each task would get alone, bit for bit, whatever it shares the pass with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from p2pllm.errors import RemoteProtocolError, ServerFault
from p2pllm.server.backend import RowCopy, SpanBackend, SpanTask
from p2pllm.server.scheduler import Slice, kind_of_step
from p2pllm.types import PeerId, Span, WorkKind
from p2pllm.wire import tensor as codec_of
from p2pllm.wire.messages import TensorHeader
from tests.server.support import HIDDEN, WHOLE, alone, model, packed, tokens, unpacked

PAGES = ((0, 1, 2, 3), (4, 5, 6, 7), (11, 9, 10, 8))
"""Pages of 16 tokens; the third row's are scattered."""


def backend(span: Span = WHOLE) -> SpanBackend:
    return SpanBackend(model(span), model(span).arena(12 * 16, 16))


def step(hidden: torch.Tensor, *counts: int, at: tuple[int, ...] = (0,), rows: Any = PAGES, **more: Any) -> SpanTask:
    header, payload = packed(hidden, more.pop("arrives", "fp32"))
    codec = more.pop("codec", "fp32")
    task: dict[str, Any] = {"span": WHOLE, "tensor": header, "payload": payload, "codec": codec, "returns": codec}
    task |= {"positions": at, "rows": rows[: len(counts)]} if rows else {}
    return SpanTask(PeerId("p"), object(), kind_of_step(counts), counts, **(task | more))


def whole(task: SpanTask) -> Slice:
    return Slice(task, 0, task.tokens)


def output(task: SpanTask) -> torch.Tensor:
    assert task.error is None
    assert task.answer is not None
    return unpacked(*task.answer)


def test_steps_continue_from_the_cache():
    server, hidden = backend(), tokens(20)
    parts = []
    for start, stop in ((0, 15), (15, 16), (16, 20)):
        task = step(hidden[start:stop], stop - start, at=(start,))
        server.run([whole(task)])
        parts.append(output(task))
    assert torch.equal(torch.cat(parts), alone(hidden))


def test_sessions_share_a_pass_and_get_what_they_would_get_alone():
    server = backend()
    first, second, third = tokens(17, 1), tokens(5, 2), tokens(33, 3)
    server.run([whole(step(first[:16], 16))])
    together = [
        step(first[16:], 1, at=(16,)),
        step(second, 5, rows=PAGES[1:2]),
        step(third, 33, rows=PAGES[2:3]),
        step(tokens(9, 4), 4, 5, rows=None, at=(0, 0)),
    ]
    server.run([whole(task) for task in together])
    assert torch.equal(output(together[0]), alone(first)[16:])
    assert torch.equal(output(together[1]), alone(second))
    assert torch.equal(output(together[2]), alone(third))
    assert torch.equal(output(together[3]), torch.cat([alone(tokens(9, 4)[:4]), alone(tokens(9, 4)[4:])]))


def test_a_step_in_chunks_equals_the_step_in_one():
    server, hidden = backend(), tokens(30)
    task = step(hidden, 12, 18, at=(0, 0))
    for start, stop in ((0, 7), (7, 20), (20, 30)):
        server.run([Slice(task, start, stop)])
    assert torch.equal(output(task), torch.cat([alone(hidden[:12]), alone(hidden[12:])]))


@pytest.mark.parametrize("tail", [0, 1, 5, 30])
def test_only_the_tail_of_each_row_returns(tail: int):
    server, hidden = backend(), tokens(30)
    task = step(hidden, 12, 0, 18, at=(0, 0, 0), tail=tail)
    for start, stop in ((0, 7), (7, 11), (11, 30)):
        server.run([Slice(task, start, stop)])
    rows = alone(hidden[:12]), alone(hidden[12:])
    assert torch.equal(output(task), torch.cat([row[max(0, len(row) - tail) :] for row in rows]))


def test_a_rollback_forgets_what_came_after():
    server, hidden, other = backend(), tokens(10), tokens(4, 9)
    server.run([whole(step(hidden, 10))])
    task = step(other, 4, at=(6,))
    server.run([whole(task)])
    assert torch.equal(output(task), alone(torch.cat([hidden[:6], other]))[6:])


def test_rows_continue_others_after_a_copy():
    server, hidden = backend(), tokens(20)
    server.run([whole(step(torch.cat([hidden, tokens(8, 5)]), 20, 8, at=(0, 0)))])
    new = tokens(2, 6)
    task = step(new, 1, 1, at=(20, 18), copies=(RowCopy(PAGES[0], PAGES[1], 18),))
    server.run([whole(task)])
    expected = [alone(torch.cat([hidden, new[:1]]))[20:], alone(torch.cat([hidden[:18], new[1:]]))[18:]]
    assert torch.equal(output(task), torch.cat(expected))


def test_part_of_the_span():
    server, hidden = backend(), tokens(6)
    first = step(hidden, 6, span=Span(0, 1))
    server.run([whole(first)])
    second = step(output(first), 6, span=Span(1, 4))
    server.run([whole(second), whole(step(tokens(3), 3, rows=PAGES[1:2]))])
    assert torch.equal(output(second), alone(hidden))


def test_codec_points_inside_the_span_equal_hops_of_their_own():
    hidden = tokens(6)
    hops: list[torch.Tensor] = [hidden]
    for span in (Span(0, 1), Span(1, 3), Span(3, 4)):
        task = step(hops[-1], 6, span=span, codec="int8", arrives="int8" if span.start else "fp32")
        backend().run([whole(task)])
        hops.append(output(task))
    server = backend()
    one = step(hidden, 6, codec="int8", points=(1, 3))
    plain = step(tokens(2), 2, rows=PAGES[1:2])
    server.run([whole(plain), whole(one)])
    assert torch.equal(output(one), hops[-1])
    assert torch.equal(output(plain), alone(tokens(2))), "its neighbour has no such points"


def test_answers_travel_as_asked():
    server = backend()
    task = step(tokens(3), 3, codec="int8", returns="fp32")
    server.run([whole(task)])
    assert task.answer is not None
    assert task.answer[0].codec == "fp32"
    assert torch.equal(output(task), alone(tokens(3)))


def test_bad_bytes_fail_their_task_alone():
    server = backend()
    bad = step(tokens(2), 2)
    bad.payload = np.full(2 * HIDDEN, np.nan, np.float32).tobytes()
    good = step(tokens(3), 3, rows=PAGES[1:2])
    server.run([whole(bad), whole(good)])
    assert isinstance(bad.error, RemoteProtocolError)
    assert torch.equal(output(good), alone(tokens(3)))


def test_an_output_that_is_no_number_is_the_servers_fault():
    class Broken:
        dtype = torch.float32

        def run(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            return hidden * torch.inf

    task = step(tokens(2), 2)
    SpanBackend(Broken(), None).run([whole(task)])  # type: ignore[arg-type]
    assert isinstance(task.error, ServerFault)


def test_what_a_page_held_before_does_not_matter():
    server = backend()
    assert server.arena is not None
    for page_row in PAGES:
        place = server.arena.place(page_row, 0, 64)
        for block in range(len(WHOLE)):
            server.arena.write(block, place, torch.full((64, 4, 8), torch.nan))
    hidden = tokens(40)
    parts = []
    for start, stop in ((0, 33), (33, 34), (34, 40)):
        task = step(hidden[start:stop], stop - start, at=(start,), rows=PAGES[2:])
        server.run([whole(task)])
        parts.append(output(task))
    assert torch.equal(torch.cat(parts), alone(hidden))


def test_a_pass_may_be_run_again():
    server, hidden = backend(), tokens(8)
    task = step(hidden[:6], 6)
    calls = []
    run = server.model.run

    def fail_once(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        out = run(*args, **kwargs)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return out

    class Flaky:
        dtype = server.model.dtype
        run = staticmethod(fail_once)

    flaky = SpanBackend(Flaky(), server.arena)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError):
        flaky.run([whole(task)])
    flaky.run([whole(task)])
    assert torch.equal(output(task), alone(hidden[:6]))


def test_empty_steps_are_legal():
    server = backend()
    task = step(tokens(0), 0, 0, at=(0, 0))
    server.run([whole(task)])
    assert output(task).shape == (0, HIDDEN)


def test_costs_add_up():
    server = backend()
    cost = server.cost([whole(step(tokens(2), 1, 1, at=(5, 7))), Slice(step(tokens(20), 20), 0, 10)])
    assert (cost.kind, cost.tokens, cost.context, cost.blocks) == (WorkKind.PREFILL, 12, 12, 4)


def test_bf16_activations_decode_into_the_compute_dtype():
    header, payload = codec_of.encode(tokens(3).numpy(), "fp32", "bf16")
    task = step(tokens(3), 3)
    task.tensor, task.payload = TensorHeader("bf16", (3, HIDDEN), len(payload)), bytes(payload)
    backend().run([whole(task)])
    rounded = torch.from_numpy(np.array(codec_of.decode(header, payload, "fp32")))
    assert torch.equal(output(task), alone(rounded))
