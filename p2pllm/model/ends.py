"""The client's share of a model: the embedding in front of the blocks, the norm and the head behind them.

Invariants: logits are float32. The same exactness as a span's: with ``exact``, a token's logits do not depend on what
is computed beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from p2pllm.model.attention import ROW_PAD
from p2pllm.model.config import ModelConfig, ends_tensors
from p2pllm.model.layers import RMSNorm, as_dtype, checked
from p2pllm.model.product import Product
from p2pllm.model.span import TensorSource


class Ends:
    """Embedding, final norm and head.

    Attributes:
        exact: see the module.
    """

    def __init__(self, config: ModelConfig, table: Tensor | None, norm: RMSNorm, head: Product) -> None:
        self.config = config
        self.dtype = norm.weight.dtype
        self.device = norm.weight.device
        self._table = table  # None: tied, the head's weight is the embedding
        self._norm = norm
        self._head = head

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        tensors: TensorSource,
        dtype: str | torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        exact: bool = False,
    ) -> Ends:
        """Build from a checkpoint's tensors, by the names of ``config.ends_tensors``.

        Raises:
            CheckpointError: a tensor is missing or misshapen.
        """
        get = tensors if callable(tensors) else tensors.__getitem__
        torch_dtype, torch_device = as_dtype(dtype), torch.device(device)
        specs = ends_tensors(config)
        with torch.no_grad():  # not inference mode: its tensors could never take part in a backward pass
            norm = RMSNorm(checked(get, specs["norm"]).to(torch_device, torch_dtype, copy=True), config.norm_eps)
            head = Product(config.vocab_size, config.hidden_size, dtype=torch_dtype, device=torch_device)
            head.fill(0, checked(get, specs["head" if "head" in specs else "embed"]))
            table = None
            if "head" in specs:
                table = checked(get, specs["embed"]).to(torch_device, torch_dtype, copy=True)
        ends = cls(config, table, norm, head)
        ends.exact = exact
        return ends

    @property
    def exact(self) -> bool:
        return self._head.exact

    @exact.setter
    def exact(self, exact: bool) -> None:
        self._head.exact = exact

    @torch.inference_mode()
    def embed(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Token ids [T] -> hidden states [T, H].

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        index = torch.as_tensor(ids, dtype=torch.long, device=self.device).reshape(-1)
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < self.config.vocab_size:
            raise ValueError(f"a token id is outside the vocabulary 0..{self.config.vocab_size - 1}")
        return self._head.rows(index) if self._table is None else functional.embedding(index, self._table)

    @torch.inference_mode()
    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states [T, H] -> logits [T, vocabulary], float32."""
        x = hidden.to(self.device, self.dtype)
        tokens = len(x)
        surplus = -tokens % ROW_PAD if self.exact else 0
        if surplus:
            x = torch.cat([x, x.new_zeros(surplus, x.shape[1])])
        return self._head(self._norm(x))[:tokens].float()
