"""What a generation must give, whatever fails on its way: the whole model in one piece, without servers.

Invariants: the same blocks and ends as the swarm's, so in exact mode a greedy generation agrees to the last bit; hidden
states are rounded at the borders at which the session rounded them, and nowhere where its codec loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from p2pllm.model.kv import KVArena
from p2pllm.model.span import Segment
from p2pllm.server.backend import TAGS
from p2pllm.types import Span
from p2pllm.wire import tensor
from sim.swarm import Blocks


class Expected:
    """A model without a swarm."""

    def __init__(self, blocks: Blocks) -> None:
        self._whole = blocks.span(Span(0, blocks.config.num_blocks))
        self._ends = blocks.ends()
        self._tag = TAGS[self._whole.dtype]

    def lossless(self, codec: str) -> bool:
        """Whether hidden states travel as they are, so that it does not matter where they do."""
        return codec in (self._tag, "fp32")

    def greedy(
        self, prompt: Sequence[int], new_tokens: int, codec: str = "fp32", points: Sequence[int] = ()
    ) -> list[int]:
        """The likeliest continuation of ``prompt``; ``points`` are the borders at which a session rounded."""
        arena = self._whole.arena(len(prompt) + new_tokens)
        fed, position, new = list(prompt), 0, list[int]()
        while len(new) < new_tokens:
            hidden = self._pass(fed, Segment(len(fed), position, tuple(range(arena.pages))), arena, codec, points)
            position += len(fed)
            fed = [int(self._ends.head(hidden[-1:]).argmax())]
            new += fed
        return new

    def logits(self, ids: Sequence[int], codec: str = "fp32", points: Sequence[int] = ()) -> torch.Tensor:
        """Logits [T, vocab] of a whole sequence."""
        return self._ends.head(self._pass(ids, Segment(len(ids), 0, None), None, codec, points))

    def _pass(
        self, ids: Sequence[int], segment: Segment, arena: KVArena | None, codec: str, points: Sequence[int]
    ) -> torch.Tensor:
        def border(block: int, hidden: torch.Tensor) -> torch.Tensor:
            return self._rounded(hidden, codec) if block in points else hidden

        hidden = self._rounded(self._ends.embed(list(ids)), codec)
        return self._rounded(self._whole.run(hidden, [segment], arena, border=border), codec)

    def _rounded(self, hidden: torch.Tensor, codec: str) -> torch.Tensor:
        return torch.from_numpy(np.array(tensor.round_trip(hidden.contiguous().numpy(), self._tag, codec)))
