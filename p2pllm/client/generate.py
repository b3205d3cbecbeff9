"""The token loop: feed, choose, feed again, until every row has ended.

A step costs the client one compute pass: decode what came back, head, choose, embed, encode. Rows of a batch may have
prompts of any lengths; a row that has ended sits out, and its share of the step is not computed anywhere.

Invariants: tokens are chosen here, never by a server. The text of a row is given out in whole characters and never
taken back. Whatever ends a generation, also a consumer that leaves, frees the caches of its session.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import torch
import trio

from p2pllm.client.chunks import Chunk, packed_slices
from p2pllm.client.context import Context
from p2pllm.client.edge import Packed, pack, unpack
from p2pllm.client.inputs import Prompts
from p2pllm.client.options import NEW_TOKENS, GenerateOptions, GenerateResult, Piece
from p2pllm.client.sampling import choose, generator
from p2pllm.client.session import Session
from p2pllm.errors import LocalProtocolError, UserError
from p2pllm.model.text import TextStream
from p2pllm.model.tokenizer import Tokenizer

SEED_BYTES = 8


@dataclass(eq=False, slots=True)
class _Row:
    """One sequence on its way."""

    index: int
    prompt: tuple[int, ...]
    text: TextStream | None
    chance: torch.Generator | None
    new_ids: list[int] = field(default_factory=list)
    finished: str = ""

    @property
    def ids(self) -> list[int]:
        return [*self.prompt, *self.new_ids]

    def take(self, token: int, eos_ids: Sequence[int], max_new_tokens: int) -> Piece:
        """Append a token; whether that ends the row."""
        self.new_ids.append(token)
        piece = self.text.push(token) if self.text is not None else ""
        if token in eos_ids:
            self.finished = "eos"
        elif self.text is not None and self.text.stopped:
            self.finished = "stop"
        elif len(self.new_ids) >= max_new_tokens:
            self.finished = "length"
        if self.finished and self.text is not None:
            piece += self.text.finish()
        return Piece(piece, (token,), self.index, self.finished)


class Generation:
    """A generation under way: an async iterator of ``Piece``, then a ``result``.

    Raises:
        UserError: prompts and options do not fit the model.
    """

    def __init__(
        self,
        context: Context,
        tokenizer: Tokenizer | None,
        eos_ids: Sequence[int],
        prompts: Prompts,
        options: GenerateOptions,
    ) -> None:
        stops = options.stops
        if stops and tokenizer is None:
            raise UserError(
                "this checkpoint has no tokenizer, so stop texts cannot be found; stop by token ids yourself"
            )
        self._context = context
        self._prompts = prompts
        self._eos_ids = () if options.ignore_eos else tuple(eos_ids)
        self._fill_id = eos_ids[0] if eos_ids else 0
        self._max_new_tokens = _new_tokens(options, prompts, context.shape.max_positions)
        self._sampling = options.sampling()
        self._seed: int | None = None
        if self._sampling.temperature > 0:
            drawn = int.from_bytes(context.ports.token_bytes(SEED_BYTES), "big") >> 1
            self._seed = drawn if options.seed is None else options.seed
        self._rows = [
            _Row(
                index,
                prompt,
                tokenizer.stream(prompt, stops) if tokenizer is not None else None,
                generator(self._seed, index) if self._seed is not None else None,
            )
            for index, prompt in enumerate(prompts.rows)
        ]
        self._session = Session(
            context,
            max_length=max(map(len, prompts.rows)) + self._max_new_tokens - 1,
            activations=options.activations,
        )
        self._codec = context.codec(options.activations)
        self._ready: deque[Piece] = deque()
        self._next: Packed | None = None
        self._started_s: float | None = None
        self._took_s = 0.0
        self._steps = 0
        self.closed = False

    # -- for the consumer ------------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        try:
            if not self._ready:
                await self._advance()
            if self._ready:
                return self._ready.popleft()
        except BaseException:
            await self.aclose()
            raise
        await self.aclose()
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End here; the caches are freed. Idempotent."""
        if not self.closed:
            self.closed = True
            await self._session.aclose()

    async def run(self) -> GenerateResult:
        """Go to the end."""
        async with self:
            async for _ in self:
                pass
        return self.result()

    def result(self) -> GenerateResult:
        """What came of it, once every row has ended."""
        if not all(row.finished for row in self._rows):
            raise LocalProtocolError("the generation is not over")
        texts = ["" if row.text is None else row.text.text for row in self._rows]
        one = self._prompts.single
        return GenerateResult(
            ids=self._ids(),
            text=texts[0] if one else texts,
            new_ids=tuple(tuple(row.new_ids) for row in self._rows),
            finished=tuple(row.finished for row in self._rows),
            steps_per_s=self._steps / self._took_s if self._took_s > 0 else 0.0,
            recoveries=self._session.recoveries,
            route=self._session.route,
            exact=self._session.exact,
            seed=self._seed,
        )

    def _ids(self) -> torch.Tensor | list[int] | list[list[int]]:
        rows = [row.ids for row in self._rows]
        if self._prompts.rectangular:
            longest = max(map(len, rows))
            filled = torch.tensor([[*row, *itertools.repeat(self._fill_id, longest - len(row))] for row in rows])
            return filled[0] if self._prompts.single else filled
        return rows[0] if self._prompts.single else rows

    # -- the loop --------------------------------------------------------------------------------------------------

    async def _advance(self) -> None:
        """One step of all rows that go on; nothing when none does."""
        active = [row for row in self._rows if not row.finished]
        if self.closed or not active:
            return
        if self._started_s is None:
            outputs = await self._prefill()
        else:
            assert self._next is not None
            outputs = await self._session.exchange(tuple(int(not row.finished) for row in self._rows), self._next)
            self._steps += 1
        pieces, self._next = await self._context.compute(lambda: self._turn(active, outputs), len(active))
        now = trio.current_time()
        if self._started_s is None:
            self._started_s = now
        self._took_s = now - self._started_s
        self._ready.extend(pieces)

    async def _prefill(self) -> Packed:
        """All prompts through the chain; the hidden states of each row's last token."""
        await self._session.open(len(self._rows))
        prompts = [torch.tensor(row.prompt) for row in self._rows]
        counts = tuple(len(prompt) for prompt in prompts)
        flat = torch.cat(prompts)
        last: list[Packed] = []

        async def source(chunk: Chunk) -> Packed:
            ids = torch.cat([flat[piece] for piece in packed_slices(counts, chunk)])
            return await self._context.compute(lambda: pack(self._context.ends.embed(ids), self._codec), len(ids))

        async def sink(chunk: Chunk, packed: Packed) -> None:
            last[:] = [packed]

        await self._session.run(counts, source, sink, tail=1)
        return last[0]

    def _turn(self, active: Sequence[_Row], outputs: Packed) -> tuple[list[Piece], Packed | None]:
        """From the last hidden states to the next ones; runs as one compute pass."""
        ends = self._context.ends
        logits = ends.head(unpack(outputs, self._context.dtype))  # [active rows, vocab]
        penalized = self._sampling.repetition_penalty != 1.0
        pieces = []
        for row, scores in zip(active, logits, strict=True):
            token = choose(scores, row.ids if penalized else (), self._sampling, row.chance)
            pieces.append(row.take(token, self._eos_ids, self._max_new_tokens))
        going = [row.new_ids[-1] for row in active if not row.finished]
        return pieces, pack(ends.embed(going), self._codec) if going else None


def _new_tokens(options: GenerateOptions, prompts: Prompts, max_positions: int) -> int:
    """How many tokens may be generated; the last one is never fed, so it needs no room."""
    longest = max(map(len, prompts.rows))
    room = max_positions + 1 - longest
    if room < 1:
        raise UserError(f"a prompt of {longest} tokens; the model's context holds {max_positions}")
    if options.max_new_tokens is None:
        return min(NEW_TOKENS, room)
    if options.max_new_tokens > room:
        raise UserError(
            f"{longest} tokens of prompt and {options.max_new_tokens} new ones are more than the model's context of "
            f"{max_positions}; at most {room} new tokens fit"
        )
    return options.max_new_tokens
