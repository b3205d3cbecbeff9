"""Real checkpoints in virtual time: real tokens, small enough that a simulation computes them itself.

Blocks are loaded once and shared by all servers of a world, for they hold no state; caches are each server's own.

Invariants: exact mode, fp32 on CPU, one torch thread, so that tokens depend neither on the chain nor on this machine's
number of cores; where exact mode does not hold here, the numerics class says so, and so does ``exact``.
"""

from __future__ import annotations

from pathlib import Path

import torch

from p2pllm.errors import UserError
from p2pllm.local.models import DEMO, resolve_model
from p2pllm.local.storage import DiskStorage
from p2pllm.model.checkpoint import Checkpoint
from p2pllm.model.config import ModelConfig
from p2pllm.model.ends import Ends
from p2pllm.model.exact import check_exact, numerics
from p2pllm.model.span import SpanModel
from p2pllm.types import Span


class CheckpointModel:
    """A checkpoint as ``sim.swarm.Blocks``.

    Args:
        name: a folder in Hugging Face layout, or ``demo``: the model that is shipped.

    Raises:
        UserError: it is neither; CheckpointError: it is no checkpoint that p2pllm understands.
        StorageError: the disk failed.
    """

    def __init__(self, name: str = DEMO) -> None:
        if name != DEMO and not Path(name).is_dir():
            raise UserError(f"no model {name!r}: give {DEMO!r} or a folder; a simulation downloads nothing")
        torch.set_num_threads(1)
        self.checkpoint = Checkpoint(resolve_model(name, "", DiskStorage()))
        self._spans: dict[Span, SpanModel] = {}
        self._ends: Ends | None = None
        self.exact = check_exact(self._load(Span(0, 1)))
        self.numerics = numerics(torch.float32, self.exact, "cpu")

    @property
    def config(self) -> ModelConfig:
        return self.checkpoint.config

    def span(self, span: Span) -> SpanModel:
        """See ``Blocks.span``."""
        known = self._spans.get(span)
        if known is None:
            known = self._spans[span] = self._load(span)
            check_exact(known)  # settles how it is exact, too
        return known

    def ends(self) -> Ends:
        """See ``Blocks.ends``."""
        if self._ends is None:
            self._ends = Ends.load(self.config, self.checkpoint.ends_tensors(torch.float32), exact=self.exact)
        return self._ends

    def _load(self, span: Span) -> SpanModel:
        return SpanModel.load(self.config, span, self.checkpoint.span_tensors(span, torch.float32))
