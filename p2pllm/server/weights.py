"""Where a server's blocks come from: a checkpoint, or anything else that computes.

Invariants: everything here is blocking, and is called where that does no harm: ``load_span`` in a storage thread,
``settle`` in the device's. A server knows this protocol alone, so that a model without weights is served as a real one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import torch

from p2pllm.model.config import ModelConfig
from p2pllm.model.exact import check_exact, numerics
from p2pllm.model.span import SpanModel, TensorSource
from p2pllm.types import Numerics, Span

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Hears (bytes so far, bytes in all); what it raises ends the loading."""


class Weights(Protocol):
    """What ``Server`` loads its blocks from."""

    @property
    def config(self) -> ModelConfig: ...

    def load_span(self, span: Span, dtype: torch.dtype, device: str, progress: Progress) -> SpanModel:
        """The blocks, ready to compute.

        Raises:
            CheckpointError: a tensor is missing, misshapen, or of an unsupported dtype.
            StorageError: the disk or the download failed.
        """
        ...

    def settle(self, model: SpanModel, exact: bool, device: str) -> Numerics:
        """Make ``model`` exact where that is wanted and holds here; the numerics class that it then belongs to."""
        ...


class Tensors(Protocol):
    """Tensors of a model by their names: a ``Checkpoint``."""

    @property
    def config(self) -> ModelConfig: ...

    def span_tensors(
        self, span: Span, dtype: torch.dtype | None = None, progress: Progress | None = None
    ) -> TensorSource: ...


class CheckpointWeights:
    """Blocks built from a checkpoint's tensors; see ``Weights``."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    @property
    def config(self) -> ModelConfig:
        return self._tensors.config

    def load_span(self, span: Span, dtype: torch.dtype, device: str, progress: Progress) -> SpanModel:
        """See ``Weights.load_span``."""
        tensors = self._tensors.span_tensors(span, dtype, progress)
        return SpanModel.load(self.config, span, tensors, dtype, device)

    def settle(self, model: SpanModel, exact: bool, device: str) -> Numerics:
        """See ``Weights.settle``."""
        holds = exact and check_exact(model)
        if exact and not holds:
            log.warning("exact mode does not hold on this machine: announcing an inexact numerics class")
        return numerics(model.dtype, holds, device)
