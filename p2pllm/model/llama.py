"""A transformer block of the Llama kind: Llama, Mistral, Qwen2 and Qwen3 differ in what their config switches on.

Invariants: weights are copied in once, fused (q, k, v in one product, gate and up in another); a block keeps no state
between passes, the cache belongs to the caller.
"""

from __future__ import annotations

import torch
from torch import Tensor

from p2pllm.model.attention import Plan
from p2pllm.model.config import ModelConfig, block_tensors
from p2pllm.model.layers import RMSNorm, TensorGetter, checked
from p2pllm.model.product import GatedProduct, Product
from p2pllm.model.rope import interleave


class LlamaBlock:
    """One block, ready to compute.

    Attributes:
        window: sliding window in tokens, None for full attention.
    """

    def __init__(
        self, config: ModelConfig, block: int, get: TensorGetter, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._config = config
        self.window = config.windows[block]
        load = _Loader(config, block, get, dtype, device)
        self._input_norm = load.norm("input_norm")
        self._post_norm = load.norm("post_norm")
        self._qkv = load.qkv()
        self._qk_norm = load.qk_norm() if config.qk_norm else None
        self._o = load.product("o", config.hidden_size, config.num_heads * config.head_dim)
        self._gated = load.gated()
        self._down = load.product("down", config.hidden_size, self._gated.half)

    @property
    def products(self) -> tuple[Product, ...]:
        """The weight matrices, for settings that concern all of them."""
        return self._qkv, self._o, self._gated, self._down

    def __call__(self, hidden: Tensor, index: int, plan: Plan) -> Tensor:
        """Add this block's contribution to ``hidden`` [T, H] in place; ``index`` is its place in the cache."""
        config = self._config
        heads = config.num_heads + 2 * config.num_kv_heads
        qkv = self._qkv(self._input_norm(hidden)).view(hidden.shape[0], heads, config.head_dim)
        qk = qkv.narrow(1, 0, config.num_heads + config.num_kv_heads)
        if self._qk_norm is not None:
            qk.copy_(self._qk_norm(qk))
        rotate_(qk, plan.factors)
        plan.store(index, qkv.narrow(1, config.num_heads, 2 * config.num_kv_heads))
        hidden.add_(self._o(plan.attend(index, self.window, qkv)))
        hidden.add_(self._down(self._gated(self._post_norm(hidden))))
        return hidden

    def differentiable(self, hidden: Tensor, plan: Plan) -> Tensor:
        """[T, H] after this block, with a gradient to ``hidden``; whole sequences only, nothing is cached."""
        config = self._config
        heads = config.num_heads + 2 * config.num_kv_heads
        qkv = self._qkv.differentiable(self._input_norm(hidden)).view(hidden.shape[0], heads, config.head_dim)
        qk = qkv.narrow(1, 0, config.num_heads + config.num_kv_heads)
        v = qkv.narrow(1, config.num_heads + config.num_kv_heads, config.num_kv_heads)
        if self._qk_norm is not None:
            qk = self._qk_norm(qk)
        attended = plan.attend(0, self.window, torch.cat([rotated(qk, plan.factors), v], dim=1))
        hidden = hidden + self._o.differentiable(attended)
        return hidden + self._down.differentiable(self._gated.differentiable(self._post_norm(hidden)))


def rotated(x: Tensor, factors: Tensor) -> Tensor:
    """As ``rotate_``, into a new tensor."""
    pairs = torch.view_as_complex(x.float().view(x.shape[0], x.shape[1], -1, 2))
    return torch.view_as_real(pairs * factors).flatten(-2).to(x.dtype)


def rotate_(x: Tensor, factors: Tensor) -> None:
    """Rotate neighbouring pairs of the last dimension in place: x [T, heads, dim], factors complex [T, 1, dim/2]."""
    wide = x if x.dtype == torch.float32 else x.float()
    pairs = torch.view_as_complex(wide.view(x.shape[0], x.shape[1], -1, 2)).mul_(factors)
    if wide is not x:
        x.copy_(torch.view_as_real(pairs).flatten(-2))


class _Loader:
    """Takes a block's tensors one at a time, checks them, and copies them where they stay."""

    def __init__(
        self, config: ModelConfig, block: int, get: TensorGetter, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._config = config
        self._specs = block_tensors(config, block)
        self._get = get
        self._dtype = dtype
        self._device = device

    def _tensor(self, name: str) -> Tensor:
        return checked(self._get, self._specs[name])

    def norm(self, name: str) -> RMSNorm:
        return RMSNorm(self._tensor(name).to(self._device, self._dtype, copy=True), self._config.norm_eps)

    def qk_norm(self) -> RMSNorm:
        config = self._config
        q = interleave(self._tensor("q_norm"), 1).expand(config.num_heads, -1)
        k = interleave(self._tensor("k_norm"), 1).expand(config.num_kv_heads, -1)
        return RMSNorm(torch.cat([q, k]).to(self._device, self._dtype), config.norm_eps)

    def qkv(self) -> Product:
        config = self._config
        heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
        product = Product(
            sum(heads.values()) * config.head_dim,
            config.hidden_size,
            dtype=self._dtype,
            device=self._device,
            bias=config.qkv_bias,
        )
        offset = 0
        for name, count in heads.items():
            self._fill(product, offset, name, rotate_heads=0 if name == "v" else count)
            offset += count * config.head_dim
        return product

    def gated(self) -> GatedProduct:
        config = self._config
        gated = GatedProduct(
            config.intermediate_size,
            config.hidden_size,
            dtype=self._dtype,
            device=self._device,
            bias=config.mlp_bias,
        )
        self._fill(gated, 0, "gate")
        self._fill(gated, gated.half, "up")
        return gated

    def product(self, name: str, outputs: int, inputs: int) -> Product:
        bias = name + "_bias" in self._specs
        product = Product(outputs, inputs, dtype=self._dtype, device=self._device, bias=bias)
        self._fill(product, 0, name)
        return product

    def _fill(self, product: Product, offset: int, name: str, rotate_heads: int = 0) -> None:
        weight = self._tensor(name)
        bias = self._tensor(name + "_bias") if name + "_bias" in self._specs else None
        if rotate_heads:
            weight = interleave(weight, rotate_heads)
            bias = None if bias is None else interleave(bias, rotate_heads)
        product.fill(offset, weight, bias)
