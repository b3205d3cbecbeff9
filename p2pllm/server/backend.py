"""A span of blocks on a device: payload bytes in, payload bytes out.

Invariants: everything here runs inside a compute pass, in the device's thread: decoding, the blocks, rounding at codec
points, encoding. Steps of several sessions go through the blocks as one packed batch. What is wrong with one task's
bytes fails that task; what is wrong with the pass is raised, and running it again is safe: pages are written in place
at the same positions, and copied rows are copied once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from p2pllm.errors import RemoteProtocolError, ServerFault
from p2pllm.model.kv import KVArena
from p2pllm.model.span import Segment, SpanModel
from p2pllm.server.engine import Task
from p2pllm.server.kvcache import Pages
from p2pllm.server.scheduler import Slice, row_parts
from p2pllm.types import Cost, Span, WorkKind
from p2pllm.wire import tensor as codec_of
from p2pllm.wire.messages import TensorHeader
from p2pllm.wire.session import Payload

TAGS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""Compute dtypes by the name of the codec that carries them without loss."""


@dataclass(frozen=True, slots=True)
class RowCopy:
    """The first ``length`` cached tokens of one row, to be copied into the pages of another."""

    source: Pages
    target: Pages
    length: int


@dataclass(eq=False, slots=True, kw_only=True)
class SpanTask(Task):
    """A step or a forward, as bytes.

    Attributes:
        span: the blocks to pass, all of them ours.
        codec: rounding at ``points``, and of the answer unless ``returns`` says otherwise.
        points: codec points strictly inside ``span``.
        positions: cached tokens per row that the new ones follow.
        rows: pages per row; None: no cache, every row is a whole sequence.
        copies: rows that continue others, copied before anything is computed.
        tail: how many of each row's last new tokens to return; -1: all.
        gradient: of a backward, the header and the payload of what comes back from the outputs.
        answer: the result.
    """

    span: Span
    tensor: TensorHeader
    payload: Payload
    codec: str
    returns: str
    points: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    rows: tuple[Pages, ...] | None = None
    copies: tuple[RowCopy, ...] = ()
    tail: int = -1
    gradient: tuple[TensorHeader, Payload] | None = None
    answer: tuple[TensorHeader, Payload] | None = None
    hidden: torch.Tensor | None = field(default=None, repr=False)
    pull: torch.Tensor | None = field(default=None, repr=False)
    outputs: list[torch.Tensor] = field(default_factory=list, repr=False)

    @property
    def bytes_held(self) -> int:
        return self.tensor.size + (self.gradient[0].size if self.gradient is not None else 0)


class SpanBackend:
    """Blocks, their cache, and the codec around them; see ``engine.Backend``."""

    def __init__(self, model: SpanModel, arena: KVArena | None) -> None:
        self.model = model
        self.arena = arena
        self._dtype = model.dtype
        self._tag = TAGS[model.dtype]

    def cost(self, batch: Sequence[Slice]) -> Cost:
        """Sums over the batch; blocks are averaged where spans differ."""
        tokens = context = work = 0
        for part in batch:
            task = _task(part)
            count = part.stop - part.start
            tokens += count
            work += count * len(task.span)
            context += sum(task.positions)
        kinds = [part.job.kind for part in batch]
        longest_first = (WorkKind.BACKWARD, WorkKind.FORWARD, WorkKind.PREFILL)
        kind = next((k for k in longest_first if k in kinds), WorkKind.STEP)
        return Cost(kind, tokens, context, round(work / tokens) if tokens else 0)

    def run(self, batch: Sequence[Slice]) -> None:
        """Compute a pass; see ``engine.Backend``."""
        by_span: dict[Span, list[Slice]] = {}
        back: list[Slice] = []
        for part in batch:
            task = _task(part)
            if self._prepare(task):
                (by_span.setdefault(task.span, []) if task.gradient is None else back).append(part)
        results = [(parts, self._compute(span, parts)) for span, parts in by_span.items()]
        results += [([part], [self._compute_back(part)]) for part in back]
        for parts, outputs in results:
            for part, output in zip(parts, outputs, strict=True):
                self._collect(part, output)

    def _prepare(self, task: SpanTask) -> bool:
        """Decode and copy rows, once per task; whether the task can run."""
        if task.error is None and task.hidden is None:
            try:
                task.hidden = self._decoded(task.tensor, task.payload)
                if task.gradient is not None:
                    task.pull = self._decoded(*task.gradient)
                    task.gradient = (task.gradient[0], b"")
            except RemoteProtocolError as exc:
                task.error = exc
                return False
            task.payload = b""
            if task.copies:
                assert self.arena is not None
                for copy in task.copies:
                    self.arena.copy_row(copy.source, copy.target, copy.length)
                task.copies = ()
        return task.error is None

    def _decoded(self, header: TensorHeader, payload: Payload) -> torch.Tensor:
        return _tensor(codec_of.decode(header, payload, self._tag), self._dtype)

    def _compute_back(self, part: Slice) -> torch.Tensor:
        """The gradient at the inputs of one task's sequences: never together with another's, so that the sums inside
        do not depend on who else asks."""
        task = _task(part)
        assert task.hidden is not None
        assert task.pull is not None
        segments = [Segment(count) for _, _, count in row_parts(task.counts, part.start, part.stop)]
        hidden, pull = task.hidden[part.start : part.stop], task.pull[part.start : part.stop]
        return self.model.backward(hidden, pull, segments, self._rounding([part]), task.span)

    def _compute(self, span: Span, parts: list[Slice]) -> list[torch.Tensor]:
        """The parts' outputs, one each; all went through the blocks as one batch."""
        inputs: list[torch.Tensor] = []
        segments: list[Segment] = []
        for part in parts:
            task = _task(part)
            assert task.hidden is not None
            inputs.append(task.hidden[part.start : part.stop])
            for row, first, count in row_parts(task.counts, part.start, part.stop):
                if task.rows is None:
                    segments.append(Segment(count, first, None))
                else:
                    segments.append(Segment(count, task.positions[row] + first, task.rows[row]))
        packed = inputs[0] if len(inputs) == 1 else torch.cat(inputs)
        if segments:
            packed = self.model.run(packed, segments, self.arena, border=self._rounding(parts), span=span)
        return list(torch.split(packed, [part.stop - part.start for part in parts]))

    def _rounding(self, parts: list[Slice]) -> Callable[[int, torch.Tensor], torch.Tensor] | None:
        """Rounds the tokens of those sessions that have a codec point at a border."""
        ranges: dict[int, list[tuple[int, int, str]]] = {}
        at = 0
        for part in parts:
            task = _task(part)
            end = at + part.stop - part.start
            for point in task.points:
                ranges.setdefault(point, []).append((at, end, task.codec))
            at = end
        if not ranges:
            return None

        def border(block: int, hidden: torch.Tensor) -> torch.Tensor:
            for start, stop, codec in _merged(ranges.get(block, [])):
                rounded = codec_of.round_trip(_array(hidden[start:stop]), self._tag, codec)
                hidden[start:stop] = _tensor(rounded, self._dtype)
            return hidden

        return border

    def _collect(self, part: Slice, output: torch.Tensor) -> None:
        """Keep what the task returns; encode it when the task is complete."""
        task = _task(part)
        if task.tail < 0:
            kept = output
        else:
            at, pieces = 0, []
            for row, first, count in row_parts(task.counts, part.start, part.stop):
                skip = max(0, task.counts[row] - task.tail - first)
                pieces.append(output[at + min(skip, count) : at + count])
                at += count
            kept = torch.cat(pieces) if len(pieces) > 1 else pieces[0] if pieces else output
        task.outputs.append(kept)
        if part.last:
            task.hidden = task.pull = None
            whole = torch.cat(task.outputs) if len(task.outputs) > 1 else kept
            task.outputs.clear()
            try:
                task.answer = codec_of.encode(_array(whole), self._tag, task.returns)
            except ValueError as exc:
                task.error = ServerFault(f"the blocks' output cannot be sent as {task.returns}: {exc}")


def _merged(ranges: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Neighbours with the same codec as one range: one call for the whole batch, as a rule."""
    merged: list[tuple[int, int, str]] = []
    for start, stop, codec in ranges:
        if merged and merged[-1][1] == start and merged[-1][2] == codec:
            merged[-1] = (merged[-1][0], stop, codec)
        else:
            merged.append((start, stop, codec))
    return merged


def _array(hidden: torch.Tensor) -> codec_of.Array:
    """A tensor as the codec takes it; bfloat16 crosses as its bits, because NumPy has no such dtype."""
    hidden = hidden.detach().to("cpu").contiguous()
    return hidden.view(torch.uint16).numpy() if hidden.dtype is torch.bfloat16 else hidden.numpy()


def _tensor(array: codec_of.Array, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(array if array.flags.writeable else np.array(array))
    return tensor.view(torch.bfloat16) if dtype is torch.bfloat16 else tensor


def _task(part: Slice) -> SpanTask:
    assert isinstance(part.job, SpanTask)
    return part.job
