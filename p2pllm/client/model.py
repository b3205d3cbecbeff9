"""A model of the swarm, as its user holds it: what ``p2pllm.connect`` yields.

Invariants: everything long runs through ``ports.Compute``; the two exceptions are ``embed`` and ``head``, which are
plain torch for callers who want just that. Mistakes of the caller are UserError before anything is sent. Whatever was
opened through the model and not closed yet is closed with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from p2pllm.client.blocks import Blocks
from p2pllm.client.chain import ForwardPass, Part
from p2pllm.client.context import Context
from p2pllm.client.edge import Packed, pack, unpack
from p2pllm.client.generate import Generation
from p2pllm.client.inputs import Inputs, check_ids, prompts_of
from p2pllm.client.link import Links
from p2pllm.client.options import GenerateOptions, GenerateResult
from p2pllm.client.peers import Peers
from p2pllm.client.pings import Pings
from p2pllm.client.planner import Planner
from p2pllm.client.session import Session
from p2pllm.config import Config
from p2pllm.dht.record import Announcement
from p2pllm.dht.service import Directory
from p2pllm.errors import UserError
from p2pllm.model.ends import Ends
from p2pllm.model.tokenizer import Tokenizer
from p2pllm.ports import Ports
from p2pllm.types import ModelId, PeerId

SESSION_TOKENS = 2048
"""``max_length`` of a session when nobody says; less where the context is shorter."""
LONG_CACHE_TOKENS = 4096
"""Sequences too long for a forward go through sessions of at most so many tokens at a time."""


class DirectoryView:
    """The directory as a client of one model sees it."""

    def __init__(self, directory: Directory, model: ModelId) -> None:
        self._directory = directory
        self._model = model

    def servers(self) -> Sequence[Announcement]:
        """See ``ModelView``."""
        return self._directory.view.servers(self._model)

    def mark_reached(self, peer: PeerId) -> None:
        """See ``ModelView``."""
        self._directory.mark_reached(peer)

    async def refresh(self) -> None:
        """See ``ModelView``."""
        await self._directory.refresh()


class RemoteModel:
    """Generation, forward passes and sessions through the servers of a swarm.

    Attributes:
        id: the model's digest.
        tokenizer: None when the checkpoint has none.
    """

    def __init__(
        self,
        ports: Ports,
        config: Config,
        directory: Directory,
        model: ModelId,
        ends: Ends,
        tokenizer: Tokenizer | None = None,
        eos_ids: Sequence[int] = (),
    ) -> None:
        peers = Peers(config.client)
        view = DirectoryView(directory, model)
        self.id = model
        self.tokenizer = tokenizer
        self._eos_ids = tuple(eos_ids)
        self._context = Context(
            ports,
            config,
            model,
            ends.config,
            ends,
            ends.dtype,
            view,
            Planner(config.client, ports, peers, view),
            peers,
            Links(ports.network, config),
        )
        self._generations: list[Generation] = []

    @property
    def num_blocks(self) -> int:
        return self._context.shape.num_blocks

    @property
    def vocab_size(self) -> int:
        return self._context.shape.vocab_size

    @property
    def max_positions(self) -> int:
        """The model's context limit in tokens."""
        return self._context.shape.max_positions

    async def measure(self) -> None:
        """Keep measuring the ways to the servers that chains may use, until cancelled."""
        context = self._context
        config = context.config.client
        pings = Pings(config, context.ports, context.peers, context.planner, context.view, self.id, context.whole)
        await pings.run()

    async def aclose(self) -> None:
        """End what is still under way and give up all streams."""
        for generation in self._generations:
            await generation.aclose()
        await self._context.links.aclose()

    # -- generation ------------------------------------------------------------------------------------------------

    async def generate(self, inputs: Inputs, **options: Any) -> GenerateResult:
        """Continue prompts: text, token ids, lists of them, or a LongTensor [B, S]; options as ``GenerateOptions``.

        Raises:
            UserError: prompts or options do not fit the model.
            CoverageError: nobody serves some of the blocks.
            SwarmError: servers failed.
        """
        return await self.stream(inputs, **options).run()

    def stream(self, inputs: Inputs, **options: Any) -> Generation:
        """As ``generate``, piece by piece: ``async for piece in model.stream(...)``.

        Leave early through ``async with`` or ``aclose``; otherwise the caches are freed when the model is closed.
        """
        encode = self.tokenizer.encode if self.tokenizer is not None else None
        prompts = prompts_of(inputs, encode, self._context.shape.vocab_size)
        rows_max = self._context.config.wire.rows_max
        if len(prompts.rows) > rows_max:
            raise UserError(f"{len(prompts.rows)} prompts at once; at most {rows_max} fit one batch")
        generation = Generation(self._context, self.tokenizer, self._eos_ids, prompts, GenerateOptions.of(options))
        self._generations = [other for other in self._generations if not other.closed]
        self._generations.append(generation)
        return generation

    def session(
        self, max_length: int | None = None, *, rows: int | None = None, activations: str | None = None
    ) -> Session:
        """Caches of up to ``max_length`` tokens per row, for use step by step: ``async with model.session() as s``."""
        length = min(SESSION_TOKENS, self.max_positions) if max_length is None else max_length
        return Session(self._context, max_length=length, rows=rows, activations=activations)

    # -- whole sequences -------------------------------------------------------------------------------------------

    async def forward(self, input_ids: torch.Tensor, *, activations: str | None = None) -> torch.Tensor:
        """Token ids [B, S] to logits [B, S, vocab] in float32.

        Raises:
            UserError: the ids do not fit the model.
            CoverageError: nobody serves some of the blocks.
            SwarmError: servers failed.
        """
        context = self._context
        check_ids(input_ids, context.shape.vocab_size)
        batch, length = input_ids.shape
        if length > self.max_positions:
            raise UserError(f"sequences of {length} tokens; the model's context holds {self.max_positions}")
        codec = context.codec(activations)
        if length > context.config.client.forward_row_tokens_max:
            return await self._long_forward(input_ids, codec)
        logits = torch.empty(batch, length, context.shape.vocab_size)

        async def source(part: Part) -> Packed:
            ids = input_ids[part.first : part.first + len(part.counts)].reshape(-1)
            return await context.compute(lambda: pack(context.ends.embed(ids), codec), part.tokens)

        async def sink(part: Part, packed: Packed) -> None:
            def head() -> None:
                hidden = unpack(packed, context.dtype)
                rows = logits[part.first : part.first + len(part.counts)]
                rows.copy_(context.ends.head(hidden).view(rows.shape))

            await context.compute(head, part.tokens)

        await ForwardPass(context, codec).run((length,) * batch, source, sink)
        return logits

    async def _long_forward(self, input_ids: torch.Tensor, codec: str) -> torch.Tensor:
        """Sequences that no server takes whole, cut into the steps of a session."""
        batch, length = input_ids.shape
        rows = max(1, LONG_CACHE_TOKENS // length)
        parts = []
        for first in range(0, batch, rows):
            async with Session(self._context, max_length=length, activations=codec) as session:
                parts.append(await session.step(input_ids[first : first + rows]))
        return torch.cat(parts)

    @property
    def blocks(self) -> Blocks:
        """All blocks, to compute and differentiate with; ``model.blocks[3:7]`` are some of them."""
        return Blocks(self._context, self._context.whole)

    # -- the client's own ends -------------------------------------------------------------------------------------

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token ids [B, S] to hidden states [B, S, H]."""
        check_ids(input_ids, self._context.shape.vocab_size)
        hidden = self._context.ends.embed(input_ids.reshape(-1))
        return hidden.view(*input_ids.shape, -1).clone()  # a tensor like any other, not one of inference mode

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, S, H] to logits [B, S, vocab] in float32."""
        if hidden.dim() != 3 or hidden.shape[2] != self._context.shape.hidden_size:
            raise UserError(f"hidden states must be [rows, tokens, {self._context.shape.hidden_size}]")
        batch, length, width = hidden.shape
        return self._context.ends.head(hidden.reshape(batch * length, width)).view(batch, length, -1).clone()
