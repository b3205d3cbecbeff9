"""A toy model that is exact by construction, for proofs about who computes what, when, and from which inputs.

It plugs in where ``SpanModel``, ``KVArena`` and ``Ends`` do. Every number is an integer below ``PRIME`` held in a
float, so any order of summation gives the same bits. A token's output depends, through attention-like weights, on every
token before it in its row and on all positions: one lost, doubled, reordered or differently rounded input changes
whatever follows. Inputs enter a block by their bit patterns, so that rounding at a wrong border shows, too.

Invariants: a pure function of its inputs; NumPy only inside; cheap, because proofs run it a million times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from p2pllm.model.attention import Segment
from p2pllm.model.config import ModelConfig, parse_config
from p2pllm.model.ends import Ends
from p2pllm.model.kv import KVArena
from p2pllm.model.span import Border, SpanModel
from p2pllm.types import Numerics, Span

PRIME = 8191
HIDDEN = 8
VOCAB = 256
CONTEXT = 256
NUMERICS = Numerics("float32", "none", "toy", "any", exact=True)

_Floats = npt.NDArray[np.float64]


def toy_config(blocks: int = 6, context: int = CONTEXT) -> ModelConfig:
    """The toy's shape, as a checkpoint would tell it."""
    return parse_config(
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": HIDDEN,
            "intermediate_size": HIDDEN,
            "num_hidden_layers": blocks,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "vocab_size": VOCAB,
            "max_position_embeddings": context,
        }
    )


def _attention(block: int, context: int) -> _Floats:
    """How much token t (row) takes of token j (column): positive up to itself, nothing of what follows."""
    t, j = np.arange(context)[:, None], np.arange(context)[None, :]
    weights = 1 + (31 * t + 17 * j + 7 * block + t * j) % 96
    return np.tril(weights).astype(np.float64)


class ToyArena:
    """What the blocks remember of every token; see ``KVArena``."""

    def __init__(self, blocks: int, tokens: int, page_tokens: int) -> None:
        self.page_tokens = page_tokens
        self.pages = -(-tokens // page_tokens)
        self.tokens = self.pages * page_tokens
        self.held = np.full((blocks, self.tokens, HIDDEN), np.nan)  # whatever is read before it was written shows
        self._places: dict[tuple[int, ...], npt.NDArray[np.intp]] = {}

    def places(self, pages: Sequence[int]) -> npt.NDArray[np.intp]:
        """The arena's tokens that a row with these pages owns, in order."""
        key = tuple(pages)
        known = self._places.get(key)
        if known is None:
            size = self.page_tokens
            runs = [np.arange(page * size, (page + 1) * size) for page in key]
            known = self._places[key] = np.concatenate(runs) if runs else np.zeros(0, np.intp)
        return known

    def copy_row(self, source: Sequence[int], target: Sequence[int], length: int) -> None:
        """See ``KVArena.copy_row``."""
        self.held[:, self.places(target)[:length]] = self.held[:, self.places(source)[:length]]


class ToySpan:
    """Blocks ``span`` of the toy; see ``SpanModel``."""

    dtype = torch.float32
    exact = True

    def __init__(self, config: ModelConfig, span: Span) -> None:
        self.config = config
        self.span = span
        self._attention = [_attention(block, config.max_positions) for block in span]
        self._mixing = [
            np.random.default_rng(block).integers(1, PRIME, (HIDDEN, HIDDEN)).astype(np.float64) for block in span
        ]

    def arena(self, tokens: int, page_tokens: int = 16) -> ToyArena:
        """A cache that fits this span."""
        return ToyArena(len(self.span), tokens, page_tokens)

    def run(
        self,
        hidden: torch.Tensor,
        segments: Sequence[Segment],
        kv: ToyArena | None = None,
        border: Border | None = None,
        span: Span | None = None,
    ) -> torch.Tensor:
        """See ``SpanModel.run``."""
        span = span or self.span
        if not self.span.covers(span) or len(hidden) != sum(segment.count for segment in segments):
            raise ValueError(f"{len(hidden)} tokens for {span} of {self.span}")
        x = np.array(hidden.numpy(), np.float32, order="C")
        for block in span:
            if border is not None and block > span.start:
                x = border(block, torch.from_numpy(x)).numpy()
            x = self._block(block - self.span.start, x, segments, kv)
        return torch.from_numpy(x)

    def _block(
        self, index: int, x: npt.NDArray[np.float32], segments: Sequence[Segment], kv: ToyArena | None
    ) -> npt.NDArray[np.float32]:
        keys = (np.ascontiguousarray(x).view(np.uint32) % PRIME).astype(np.float64)
        taken = np.empty_like(keys)
        at = 0
        for segment in segments:
            first, last = segment.position, segment.position + segment.count
            new = keys[at : at + segment.count]
            if kv is None or segment.slots is None:
                seen = new
            else:
                places = kv.places(segment.slots)[:last]
                kv.held[index, places[first:]] = new
                seen = kv.held[index, places]
            taken[at : at + segment.count] = self._attention[index][first:last, :last] @ seen
            at += segment.count
        if not np.isfinite(taken).all():
            raise ValueError("a token that was never written was read")
        mixed: npt.NDArray[np.float32] = ((taken % PRIME @ self._mixing[index]) % PRIME).astype(np.float32)
        return mixed


class ToyEnds:
    """The client's share of the toy; see ``Ends``. The next token is a digest of all of the last hidden state."""

    dtype = torch.float32
    exact = True

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        rng = np.random.default_rng(1000)
        self._table = torch.from_numpy(rng.integers(0, PRIME, (VOCAB, HIDDEN)).astype(np.float32))
        self._digest = rng.integers(1, PRIME, HIDDEN)

    def embed(self, ids: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """See ``Ends.embed``."""
        return self._table[torch.as_tensor(ids, dtype=torch.long).reshape(-1)]

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Ends.head``."""
        bits = np.ascontiguousarray(hidden.numpy()).view(np.uint32).astype(np.int64) % PRIME
        tokens = bits @ self._digest % PRIME % VOCAB
        logits = torch.zeros(len(tokens), VOCAB)
        logits[torch.arange(len(tokens)), torch.from_numpy(tokens)] = 1.0
        return logits


class ToyModel:
    """The whole toy: what ``sim.swarm`` makes servers and clients of."""

    numerics = NUMERICS

    def __init__(self, blocks: int = 6, context: int = CONTEXT) -> None:
        self.config = toy_config(blocks, context)
        self._ends = ToyEnds(self.config)
        self._spans: dict[Span, ToySpan] = {}

    def span(self, span: Span) -> SpanModel:
        """Some blocks; they hold no state, so replicas share them."""
        known = self._spans.get(span)
        if known is None:
            known = self._spans[span] = ToySpan(self.config, span)
        return cast("SpanModel", known)

    def ends(self) -> Ends:
        return cast("Ends", self._ends)

    def arena(self, model: SpanModel, tokens: int, page_tokens: int) -> KVArena:
        return model.arena(tokens, page_tokens)

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """The continuation of ``prompt`` by the whole model in one piece, without caches or rounding."""
        whole, out = self.span(Span(0, self.config.num_blocks)), list(prompt)
        for _ in range(new_tokens):
            hidden = whole.run(self._ends.embed(out), [Segment(len(out))])
            out.append(int(self._ends.head(hidden[-1:]).argmax()))
        return out[len(prompt) :]
