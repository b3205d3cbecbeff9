"""The token loop: feed, choose, feed again, until every row has ended.

A step costs the client one compute pass: decode what came back, head, choose, embed, encode. Rows of a batch may have
prompts of any lengths; a row that has ended sits out, and its share of the step is not computed anywhere. How tokens
are chosen, and which rows go on from which, is the matter of ``rows``.

Invariants: tokens are chosen here, never by a server. Whatever ends a generation, also a consumer that leaves, frees
the caches of its session, unless the session was the caller's: that one stays open and knows what it holds.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch
import trio

from p2pllm.client.beams import candidates_of
from p2pllm.client.chunks import Chunk, packed_slices
from p2pllm.client.context import Context
from p2pllm.client.edge import Packed, pack, unpack
from p2pllm.client.inputs import Prompts
from p2pllm.client.options import NEW_TOKENS, GenerateOptions, GenerateResult, Piece
from p2pllm.client.rows import Beams, Choice, Row, Sampled, Turn
from p2pllm.client.sampling import generator
from p2pllm.client.session import Session
from p2pllm.errors import LocalProtocolError, UserError
from p2pllm.model.tokenizer import Tokenizer

SEED_BYTES = 8


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
        max_new_tokens = _new_tokens(options, prompts, context.shape.max_positions)
        self._seed: int | None = None
        if options.temperature > 0:
            drawn = int.from_bytes(context.ports.token_bytes(SEED_BYTES), "big") >> 1
            self._seed = drawn if options.seed is None else options.seed
        self._rows = [
            Row(
                index,
                prompt,
                tokenizer.stream(prompt, stops) if tokenizer is not None else None,
                generator(self._seed, index) if self._seed is not None else None,
            )
            for index, prompt in enumerate(prompts.rows)
        ]
        self._choice = self._choose_by(options, max_new_tokens)
        self._kept = options.session is not None
        self._session = options.session or Session(
            context,
            max_length=max(map(len, prompts.rows)) + max_new_tokens - 1,
            activations=options.activations,
        )
        if not self._session.belongs_to(context):
            raise UserError("the session belongs to another model")
        self._codec = self._session.activations
        if options.activations not in (None, self._codec):
            raise UserError(f"the session's activations are {self._codec}; they cannot change to {options.activations}")
        self._claimed = False
        self._ready: deque[Piece] = deque()
        self._turn: Turn | None = None
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
            while not (self._ready or self._over):
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
        """End here; the caches are freed, unless the session was given. Idempotent."""
        if self.closed:
            return
        self.closed = True
        if self._claimed:
            self._session.held.in_use = False
        if not self._kept:
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

    @property
    def _over(self) -> bool:
        return self.closed or (self._turn is not None and not self._turn.ids)

    async def _advance(self) -> None:
        """One step of all rows that go on."""
        outputs = await self._prefill() if self._turn is None else await self._step(self._turn)
        pieces, self._next = await self._context.compute(lambda: self._choose(outputs), outputs.tokens)
        now = trio.current_time()
        if self._started_s is None:
            self._started_s = now
        self._took_s = now - self._started_s
        self._ready.extend(pieces)

    async def _prefill(self) -> Packed:
        """All prompts through the chain; the hidden states of each row's last token."""
        session, feeds = self._session, self._choice.feeds
        if session.held.in_use:
            raise UserError("another generation is under way in this session; one at a time")
        self._claimed = session.held.in_use = True
        if not session.route:
            await session.open(len(feeds))
        if len(session.positions) != len(feeds):
            raise UserError(f"{len(feeds)} prompts in a session of {len(session.positions)} rows")
        starts = tuple(
            # At least one token has to go through the chain: its output is what the first new token is chosen from.
            min(session.held.common(row, position, prompt), max(0, len(prompt) - 1))
            for row, (position, prompt) in enumerate(zip(session.positions, feeds, strict=True))
        )
        session.rewind(starts)
        prompts = [torch.tensor(prompt[start:]) for prompt, start in zip(feeds, starts, strict=True)]
        counts = tuple(len(prompt) for prompt in prompts)
        flat = torch.cat([prompt for prompt in prompts if len(prompt)])
        last: list[Packed] = []

        async def source(chunk: Chunk) -> Packed:
            ids = torch.cat([flat[piece] for piece in packed_slices(counts, chunk)])
            return await self._context.compute(lambda: pack(self._context.ends.embed(ids), self._codec), len(ids))

        async def sink(chunk: Chunk, packed: Packed) -> None:
            last[:] = [packed]

        await session.run(counts, source, sink, tail=1)
        for row, (prompt, start) in enumerate(zip(feeds, starts, strict=True)):
            session.held.fed(row, start, prompt[start:])
        return last[0]

    async def _step(self, turn: Turn) -> Packed:
        """The chosen tokens through the chain."""
        assert self._next is not None
        before = self._session.positions
        outputs = await self._session.exchange(turn.counts, self._next, sources=turn.sources)
        self._steps += 1
        if self._kept:
            ids = iter(turn.ids)
            for row in itertools.compress(range(len(before)), turn.counts):
                self._session.held.fed(row, before[row], [next(ids)])
        return outputs

    def _choose(self, outputs: Packed) -> tuple[list[Piece], Packed | None]:
        """From the last hidden states to the next ones; runs as one compute pass."""
        ends = self._context.ends
        turn = self._turn = self._choice.turn(ends.head(unpack(outputs, self._context.dtype)))
        return turn.pieces, pack(ends.embed(turn.ids), self._codec) if turn.ids else None

    def _choose_by(self, options: GenerateOptions, max_new_tokens: int) -> Choice:
        if options.num_beams == 1:
            return Sampled(self._rows, options.sampling(), self._eos_ids, max_new_tokens)
        vocab, rows_max = self._context.shape.vocab_size, self._context.config.wire.rows_max
        if len(self._rows) * options.num_beams > rows_max:
            raise UserError(f"{len(self._rows)} prompts with {options.num_beams} beams each: at most {rows_max} in all")
        if candidates_of(options.num_beams, self._eos_ids) > vocab:
            raise UserError(f"{options.num_beams} beams are too many for a vocabulary of {vocab} tokens")
        return Beams(
            self._rows,
            options.num_beams,
            options.length_penalty,
            options.repetition_penalty,
            self._eos_ids,
            max_new_tokens,
        )


def _new_tokens(options: GenerateOptions, prompts: Prompts, max_positions: int) -> int:
    """How many tokens may be generated; the last one is never fed, so it needs no room."""
    limit, what = max_positions, "the model's context"
    if options.session is not None:
        limit, what = options.session.max_length, "the session"
    longest = max(map(len, prompts.rows))
    room = limit + 1 - longest
    if room < 1:
        raise UserError(f"a prompt of {longest} tokens; {what} holds {limit}")
    if options.max_new_tokens is None:
        return min(NEW_TOKENS, room)
    if options.max_new_tokens > room:
        raise UserError(
            f"{longest} tokens of prompt and {options.max_new_tokens} new ones are more than the {limit} that {what} "
            f"holds; at most {room} new tokens fit"
        )
    return options.max_new_tokens
