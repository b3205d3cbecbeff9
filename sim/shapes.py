"""Models as shapes: their sizes, and blocks without weights through which hidden states of the real width travel.

``ShapeModel`` plugs in where ``sim.toy.ToyModel`` does (``sim.swarm.Blocks``). The production client, servers and codec
run unchanged and move exactly the bytes of the model; the blocks hand their input on, and the caches hold no memory.
What a pass takes is a cost model's matter (``sim.devices``). The ends know a tiny vocabulary: no logits travel, and
nobody wants 250,880 of them per token.

Invariants: pure; sizes are those of the published configurations, and every figure says where it comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from p2pllm.model.attention import Segment
from p2pllm.model.config import ModelConfig, RopeConfig
from p2pllm.model.ends import Ends
from p2pllm.model.span import Border, SpanModel
from p2pllm.types import Numerics, Span

VOCAB = 64
"""Of a shape's ends; see the module."""
CACHE_ITEM_BYTES = 2
"""Keys and values are held in 16 bits."""

BITS_PER_WEIGHT = {"float16": 16.0, "bfloat16": 16.0, "int8": 8.0, "nf4": 4.127}
"""int8: LLM.int8() without its few 16-bit columns. nf4: QLoRA (arXiv 2305.14314, section 3): 4 bits, and 0.127 of
doubly quantised statistics."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's sizes.

    Attributes:
        config: with the model's real vocabulary.
        block_params: numbers in one block.
        ends_params: in the embedding, the head (unless they are one) and the last norm.
        source: where the configuration was published.
    """

    name: str
    config: ModelConfig
    block_params: int
    ends_params: int
    source: str

    @property
    def params(self) -> int:
        return self.config.num_blocks * self.block_params + self.ends_params

    def block_bytes(self, quantization: str) -> int:
        """One block's weights, as they lie in memory."""
        return round(self.block_params * BITS_PER_WEIGHT[quantization] / 8)

    @property
    def head_bytes(self) -> int:
        """The head in 16 bits: what a client reads for every token."""
        return 2 * self.config.vocab_size * self.config.hidden_size

    @property
    def cache_bytes(self) -> int:
        """What one token keeps in the caches of one block."""
        return CACHE_ITEM_BYTES * self.config.kv_numbers

    def hidden_bytes(self, item_bytes: int = 2) -> int:
        """One token's hidden state on the wire, headers and scales aside."""
        return item_bytes * self.config.hidden_size


def _bloom(name: str, hidden: int, blocks: int, heads: int) -> Shape:
    """BLOOM: multi-head attention and a plain MLP of 4 x hidden, biases and layer norms, tied ends."""
    vocab = 250_880
    config = ModelConfig(
        family="bloom", hidden_size=hidden, num_blocks=blocks, num_heads=heads, num_kv_heads=heads,
        head_dim=hidden // heads, intermediate_size=4 * hidden, vocab_size=vocab, norm_eps=1e-5, rope=RopeConfig(),
        windows=(None,) * blocks, tie_word_embeddings=True, max_positions=2048, dtype="bfloat16", activation="gelu",
    )  # fmt: skip
    block_params = 12 * hidden * hidden + 13 * hidden
    return Shape(
        name, config, block_params, vocab * hidden + 4 * hidden, f"config.json of bigscience/{name} on Hugging Face"
    )


def _llama(name: str, hidden: int, blocks: int, heads: int, inter: int, vocab: int, context: int, repo: str) -> Shape:
    """Llama with eight KV heads: grouped attention, a gated MLP, two RMS norms, ends of their own."""
    kv_heads = 8
    config = ModelConfig(
        family="llama", hidden_size=hidden, num_blocks=blocks, num_heads=heads, num_kv_heads=kv_heads,
        head_dim=hidden // heads, intermediate_size=inter, vocab_size=vocab, norm_eps=1e-5, rope=RopeConfig(),
        windows=(None,) * blocks, max_positions=context, dtype="bfloat16",
    )  # fmt: skip
    kv_width = kv_heads * config.head_dim
    block_params = 2 * hidden * hidden + 2 * hidden * kv_width + 3 * hidden * inter + 2 * hidden
    return Shape(name, config, block_params, 2 * vocab * hidden + hidden, f"config.json of {repo} on Hugging Face")


BLOOM_176B = _bloom("bloom", 14336, 70, 112)
BLOOM_7B = _bloom("bloom-7b1", 4096, 30, 32)
LLAMA_2_70B = _llama("llama-2-70b", 8192, 80, 64, 28672, 32000, 4096, "meta-llama/Llama-2-70b-hf")
LLAMA_31_405B = _llama(
    "llama-3.1-405b", 16384, 126, 128, 53248, 128_256, 131_072, "meta-llama/Llama-3.1-405B"
)  # fmt: skip

SHAPES = {
    "bloom-176b": BLOOM_176B,
    "bloom-7.1b": BLOOM_7B,
    "llama-2-70b": LLAMA_2_70B,
    "llama-3.1-405b": LLAMA_31_405B,
}
"""By the names that scenarios use."""


class ShapeArena:
    """Caches that are accounted for and take no memory; see ``KVArena``."""

    def __init__(self, tokens: int, page_tokens: int) -> None:
        self.page_tokens = page_tokens
        self.pages = -(-tokens // page_tokens)
        self.tokens = self.pages * page_tokens

    def copy_row(self, source: Sequence[int], target: Sequence[int], length: int) -> None:
        """See ``KVArena.copy_row``: there is nothing to copy."""


class ShapeSpan:
    """Blocks without weights; see ``SpanModel``."""

    exact = False

    def __init__(self, config: ModelConfig, span: Span, dtype: torch.dtype) -> None:
        self.config = config
        self.span = span
        self.dtype = dtype

    def arena(self, tokens: int, page_tokens: int = 16) -> ShapeArena:
        """A cache that fits this span."""
        return ShapeArena(tokens, page_tokens)

    def run(
        self,
        hidden: torch.Tensor,
        segments: Sequence[Segment],
        kv: ShapeArena | None = None,
        border: Border | None = None,
        span: Span | None = None,
    ) -> torch.Tensor:
        """See ``SpanModel.run``: out comes what went in, rounded where a border of the session lies inside."""
        span = span or self.span
        tokens = sum(segment.count for segment in segments)
        if not self.span.covers(span) or hidden.shape != (tokens, self.config.hidden_size):
            raise ValueError(f"{tuple(hidden.shape)} for {tokens} tokens through {span} of {self.span}")
        if border is None:
            return hidden
        x = hidden.clone()
        for block in range(span.start + 1, span.end):
            x = border(block, x)
        return x

    def backward(
        self,
        hidden: torch.Tensor,
        gradient: torch.Tensor,
        segments: Sequence[Segment],
        border: Border | None = None,
        span: Span | None = None,
    ) -> torch.Tensor:
        """See ``SpanModel.backward``: blocks that hand on what they get hand gradients back."""
        tokens = sum(segment.count for segment in segments)
        if not hidden.shape == gradient.shape == (tokens, self.config.hidden_size):
            raise ValueError(f"{tuple(hidden.shape)} and {tuple(gradient.shape)} for {tokens} tokens")
        return gradient


class ShapeEnds:
    """The client's share: a hidden state per token of the tiny vocabulary, and a head that reads its beginning."""

    exact = False

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        self.config = config
        self.dtype = dtype
        noise = torch.Generator().manual_seed(config.hidden_size)
        self._table = torch.randn(VOCAB, config.hidden_size, generator=noise).to(dtype)

    def embed(self, ids: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """See ``Ends.embed``."""
        return self._table[torch.as_tensor(ids, dtype=torch.long).reshape(-1)]

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Ends.head``."""
        return hidden[:, :VOCAB].float()


class ShapeModel:
    """A model without weights: what ``sim.swarm`` makes servers and clients of."""

    def __init__(self, shape: Shape, quantization: str = "int8", dtype: torch.dtype = torch.float16) -> None:
        name = str(dtype).removeprefix("torch.")
        self.shape = shape
        self.config = replace(shape.config, vocab_size=VOCAB, max_positions=max(shape.config.max_positions, 4096))
        self.numerics = Numerics(name, "none" if quantization == name else quantization, "shape", "any", exact=False)
        self._dtype = dtype
        self._ends = ShapeEnds(self.config, dtype)

    def span(self, span: Span) -> SpanModel:
        """Some blocks."""
        return cast("SpanModel", ShapeSpan(self.config, span, self._dtype))

    def ends(self) -> Ends:
        return cast("Ends", self._ends)
