"""The same model in one process, without a swarm: what a swarm's tokens are compared with.

Invariants: the same blocks, ends and codec as everybody uses, in exact mode; hidden states are rounded at the borders
where the swarm rounds them. So within one numerics class a greedy generation agrees bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from p2pllm.model.checkpoint import Checkpoint
from p2pllm.model.ends import Ends
from p2pllm.model.exact import check_exact
from p2pllm.model.kv import KVArena
from p2pllm.model.span import Segment, SpanModel
from p2pllm.types import Span
from p2pllm.wire import tensor


class Reference:
    """A whole checkpoint in this process, fp32.

    Attributes:
        exact: exact mode holds here, so equality is promised to the last bit.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = checkpoint.config
        whole = Span(0, config.num_blocks)
        self.config = config
        self.blocks = SpanModel.load(config, whole, checkpoint.span_tensors(whole, torch.float32))
        self.ends = Ends.load(config, checkpoint.ends_tensors(torch.float32), exact=True)
        self.exact = check_exact(self.blocks)

    def logits(self, ids: Sequence[int], borders: Sequence[int] = (), codec: str = "fp32") -> torch.Tensor:
        """Logits [T, vocab] of whole sequences, with hidden states rounded by ``codec`` at ``borders``."""
        return self.ends.head(self._pass(ids, None, borders, codec))

    def greedy(
        self, prompt: Sequence[int], new_tokens: int, borders: Sequence[int] = (), codec: str = "fp32"
    ) -> list[int]:
        """The likeliest continuation of ``prompt``, token by token through a cache; ends after an end-of-text id."""
        arena = self.blocks.arena(len(prompt) + new_tokens)
        pages = tuple(range(arena.pages))
        new: list[int] = []
        fed, position = list(prompt), 0
        while len(new) < new_tokens and not (new and new[-1] in self.config.eos_ids):
            hidden = self._pass(fed, Segment(len(fed), position, pages), borders, codec, arena)
            position += len(fed)
            new.append(int(self.ends.head(hidden[-1:]).argmax()))
            fed = new[-1:]
        return new

    def _pass(
        self,
        ids: Sequence[int],
        segment: Segment | None,
        borders: Sequence[int],
        codec: str,
        arena: KVArena | None = None,
    ) -> torch.Tensor:
        def rounded(block: int, hidden: torch.Tensor) -> torch.Tensor:
            if block not in borders:
                return hidden
            return torch.from_numpy(tensor.round_trip(hidden.contiguous().numpy(), "fp32", codec))

        hidden = rounded(0, self.ends.embed(list(ids)))
        segments = [segment or Segment(len(ids), 0, None)]
        hidden = self.blocks.run(hidden, segments, arena, border=rounded)
        return rounded(self.config.num_blocks, hidden)
