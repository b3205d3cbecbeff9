"""A session: rows of tokens generated through one chain of servers.

A step's hidden states enter at the first server; what a server answers goes to the next one as it came, byte for byte.
Long steps are cut into chunks that follow each other through the chain, several under way at once.

Invariants: codec points are the borders of the chain at the time of opening, for the session's whole life. Positions
change only when a whole step has come back. A step whose servers fail goes on with others (``failover``); one that
fails all the same, or is interrupted, leaves the session where it was before it, and the next one tries again.
Nothing runs in the background between steps.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import torch

from p2pllm.client.chunks import ALL, Chunk, cut, packed_slices, wanted_slices
from p2pllm.client.context import Context
from p2pllm.client.edge import Packed, pack, unpack
from p2pllm.client.failover import Failover, Recovery
from p2pllm.client.flow import Sink, Source
from p2pllm.client.held import UNKNOWN, Held
from p2pllm.client.inputs import check_ids
from p2pllm.client.legs import Chain, Terms
from p2pllm.client.past import entries_of, lengths, shortened
from p2pllm.client.push import Pusher
from p2pllm.client.replay import History
from p2pllm.client.route import Hop, Plan
from p2pllm.errors import UserError


class Session:
    """Caches for ``rows`` sequences of up to ``max_length`` tokens, on every server of a chain.

    Use it as ``async with``. Without ``rows`` the first step decides how many there are, and the chain is opened then.

    Raises:
        UserError: ``max_length`` is beyond the model's context, or another argument is wrong.
    """

    def __init__(
        self, context: Context, *, max_length: int, rows: int | None = None, activations: str | None = None
    ) -> None:
        limit = context.shape.max_positions
        if not 1 <= max_length <= limit:
            raise UserError(f"max_length {max_length}: the model's context holds 1 to {limit} tokens")
        if rows is not None and not 1 <= rows <= context.config.wire.rows_max:
            raise UserError(f"rows {rows}: a session has 1 to {context.config.wire.rows_max}")
        self.max_length = max_length
        self.held = Held()
        self._context = context
        self._rows = rows
        self._codec = context.codec(activations)
        self._live: Failover | None = None
        self._stepping = False
        self._closed = False

    # -- where it stands -------------------------------------------------------------------------------------------

    @property
    def activations(self) -> str:
        """The codec of its hidden states on the wire."""
        return self._codec

    def belongs_to(self, context: Context) -> bool:
        """Whether it is a session of this client and model."""
        return self._context is context

    @property
    def route(self) -> tuple[Hop, ...]:
        """Who serves which blocks; empty until the chain is open."""
        return () if self._live is None else tuple(leg.place for leg in self._live.chain.legs)

    @property
    def recoveries(self) -> int:
        """How many failures of servers and streams this session has survived."""
        return 0 if self._live is None else self._live.count

    @property
    def recovered(self) -> tuple[Recovery, ...]:
        """The failures of servers whose blocks went on elsewhere, in order."""
        return () if self._live is None else tuple(self._live.recoveries)

    @property
    def exact(self) -> bool:
        """Whether all servers are of one exact numerics class, and our own ends exact: then equal inputs give equal
        bits, however they are cut and batched."""
        tags = {leg.hop.numerics for leg in self._live.chain.legs} if self._live is not None else set()
        return len(tags) == 1 and tags.pop().endswith("/exact") and self._context.ends.exact

    @property
    def positions(self) -> tuple[int, ...]:
        """Per row, the tokens in the caches."""
        return (0,) * (self._rows or 1) if self._live is None else lengths(self._live.history.rows)

    @property
    def position(self) -> int:
        """The tokens that every row has in the caches; set it lower to forget what came after."""
        return min(self.positions)

    @position.setter
    def position(self, value: int) -> None:
        if not 0 <= value <= self.position:
            raise UserError(f"position {value}: the session stands at {self.position} and can only go back")
        self.rewind(tuple(value for _ in self.positions))

    def rewind(self, positions: tuple[int, ...]) -> None:
        """Forget, per row, what came after a position of its own."""
        there = self.positions
        if len(positions) != len(there) or not all(0 <= to <= at for to, at in zip(positions, there, strict=True)):
            raise UserError(f"positions {positions}: the session stands at {self.positions} and can only go back")
        if self._live is not None:
            rows = zip(self._live.history.rows, positions, strict=True)
            self._live.history.rows = tuple(shortened(row, position) for row, position in rows)

    # -- life ------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._rows is not None:
            await self.open(self._rows)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def open(self, rows: int) -> None:
        """Find a chain and reserve caches on all of its servers; others are tried while patience lasts.

        Raises:
            CoverageError: nobody serves some of the blocks.
            HopLost: the chains that were tried all failed; tells of the last one.
        """
        if self._live is not None:
            return
        context = self._context
        terms = Terms(rows, self.max_length, self._codec)
        history = History(
            context.ports.storage, context.shape.hidden_size, rows, context.config.client.history_bytes_max
        )
        live = Failover(context, Chain(context, terms), history)
        await live.fill([], context.whole, history.rows)
        self._live, self._rows = live, rows

    async def aclose(self) -> None:
        """Free the caches; within a bound, also when cancelled."""
        self._closed = True
        if self._live is not None:
            self._live.history.close()
            await self._live.chain.aclose()

    # -- other places ----------------------------------------------------------------------------------------------

    async def fork(self) -> Session:
        """Another session that stands where this one does; both go their own ways from here.

        Its servers are fed the history; it shares with this one what both have in common.

        Raises:
            SwarmError: nobody serves some of the blocks, or servers failed.
        """
        other = Session(self._context, max_length=self.max_length, activations=self._codec)
        other._rows, other.held = self._rows, self.held.copy()
        if self._live is not None:
            async with self._between_steps() as live:
                history = live.history.fork()
            other._live = Failover(self._context, Chain(self._context, live.chain.terms), history)
            try:
                await other._live.fill([], self._context.whole, history.rows)
            except BaseException:
                history.close()
                raise
        return other

    async def reroute(self, plan: Plan) -> bool:
        """Move to another chain, through replay; whether that worked. If not, everything is as before.

        Raises:
            SwarmError: servers of the present chain failed, and cannot be replaced.
        """
        async with self._between_steps() as live:
            return await live.reroute(plan)

    @asynccontextmanager
    async def _between_steps(self) -> AsyncIterator[Failover]:
        if self._closed or self._live is None:
            raise UserError("the session is not open")
        if self._stepping:
            raise UserError("a step of this session is under way already")
        self._stepping = True
        try:
            await Pusher(self._context, self._live).calm()
            yield self._live
        finally:
            self._stepping = False

    # -- steps -----------------------------------------------------------------------------------------------------

    async def step(self, inputs: torch.Tensor, *, tail: int = ALL) -> torch.Tensor:
        """Feed new tokens [B, n], or their hidden states [B, n, H]; returns logits [B, n, vocab] in float32.

        With ``tail``, only the logits of each row's last ``tail`` tokens travel and come back.

        Raises:
            UserError: shapes, ids or lengths do not fit.
            SwarmError, StorageError: as ``run``.
        """
        ends = self._context.ends
        batch, n = self._check_inputs(inputs)
        if self._closed:
            raise UserError("the session is closed")
        if self._live is None:
            await self.open(batch)
        counts = (n,) * batch
        pieces: list[list[torch.Tensor]] = [[] for _ in counts]
        flat = inputs.reshape(batch * n, *inputs.shape[2:])

        async def source(chunk: Chunk) -> Packed:
            def embed() -> Packed:
                part = torch.cat([flat[piece] for piece in packed_slices(counts, chunk)])
                hidden = part.to(self._context.dtype) if part.is_floating_point() else ends.embed(part)
                return pack(hidden, self._codec)

            return await self._context.compute(embed, chunk.tokens)

        async def sink(chunk: Chunk, packed: Packed) -> None:
            def logits() -> list[torch.Tensor]:
                hidden = unpack(packed, self._context.dtype)
                parts = wanted_slices(chunk)
                wanted = ends.head(torch.cat([hidden[part] for part in parts]))
                return list(wanted.split_with_sizes(chunk.wanted))

            if any(chunk.wanted):
                for row, piece in enumerate(await self._context.compute(logits, sum(chunk.wanted))):
                    pieces[row].append(piece)

        before = self.positions
        await self.run(counts, source, sink, tail=tail)
        for row, ids in enumerate(inputs.tolist() if not inputs.is_floating_point() else [[UNKNOWN] * n] * batch):
            self.held.fed(row, before[row], ids)
        if tail == 0:
            return torch.empty(batch, 0, self._context.shape.vocab_size)
        return torch.stack([torch.cat(row) for row in pieces])

    async def run(
        self,
        counts: tuple[int, ...],
        source: Source,
        sink: Sink,
        *,
        tail: int = ALL,
        sources: tuple[int, ...] = (),
    ) -> None:
        """One step of ``counts`` new tokens per row: ``source`` makes each chunk's input, ``sink`` takes its output.

        With ``sources``, every row continues what the row named there held before the step. A server that fails is
        replaced, and the step goes on; where that is not possible the session stays where it was, for another try.

        Raises:
            CoverageError: servers failed, and nobody else serves their blocks.
            SwarmError: servers failed, and others that were tried, too.
            StorageError: the history does not fit into memory, nor onto the disk.
        """
        live = self._usable(counts, sources)
        history, first = live.history, live.history.entries
        chunks = cut(counts, self._context.config.client.prefill_chunk_tokens, tail)
        self._stepping = True
        try:
            await history.tidy()
            if (plan := live.better()) is not None:
                await Pusher(self._context, live).calm()
                await live.reroute(plan)
            entries = entries_of(chunks, history.rows, sources, number=history.entries, token=history.tokens)
            history.number(entries)
            await Pusher(self._context, live).run(entries, source, sink)
            history.rows = entries[-1].after
        except BaseException:
            history.void.update(range(first, history.entries))
            raise
        finally:
            self._stepping = False

    async def exchange(self, counts: tuple[int, ...], packed: Packed, *, sources: tuple[int, ...] = ()) -> Packed:
        """One short step of hidden states that are encoded already, one hop after the other; all outputs come back.

        Raises:
            SwarmError, StorageError: as ``run``.
        """
        out: list[Packed] = []

        async def source(chunk: Chunk) -> Packed:
            return packed

        async def sink(chunk: Chunk, answer: Packed) -> None:
            out.append(answer)

        await self.run(counts, source, sink, sources=sources)
        return out[0]

    # -- checks ----------------------------------------------------------------------------------------------------

    def _check_inputs(self, inputs: torch.Tensor) -> tuple[int, int]:
        """Rows and tokens per row of a step's inputs."""
        shape, context = self._context.shape, self._context
        if inputs.is_floating_point():
            if inputs.dim() != 3 or inputs.shape[2] != shape.hidden_size or not bool(inputs.isfinite().all()):
                raise UserError(f"hidden states must be finite and [rows, tokens, {shape.hidden_size}]")
        else:
            check_ids(inputs, shape.vocab_size)
        rows, n = inputs.shape[0], inputs.shape[1]
        if not 1 <= rows <= context.config.wire.rows_max or n < 1:
            raise UserError(f"a step of {rows} rows with {n} tokens each; both must be at least 1")
        if self._rows is not None and rows != self._rows:
            raise UserError(f"{rows} rows in a step of a session of {self._rows}")
        return rows, n

    def _usable(self, counts: tuple[int, ...], sources: tuple[int, ...]) -> Failover:
        """The live chain; the step is sure to fit."""
        live = self._live
        if self._closed or live is None:
            raise UserError("the session is not open")
        if self._stepping:
            raise UserError("a step of this session is under way already")
        positions = self.positions
        rows = len(positions)
        if len(counts) != rows or not any(counts):
            raise UserError(f"a step needs a count for each of the session's {rows} rows, not all 0")
        if sources and (len(sources) != rows or not all(0 <= source < rows for source in sources)):
            raise UserError(f"sources must name one of the session's {rows} rows for each of them")
        base = tuple(positions[source] for source in sources) if sources else positions
        for position, count in zip(base, counts, strict=True):
            if position + count > self.max_length:
                raise UserError(
                    f"{count} tokens after {position} are more than the session's max_length of {self.max_length}"
                )
        return live
