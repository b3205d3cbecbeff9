"""A client from ports: the directory, the model's ends, the tokenizer.

Invariants: works on any ports; reads of a checkpoint only what a client needs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import torch
import trio

from p2pllm.client.model import RemoteModel
from p2pllm.config import Config
from p2pllm.dht.service import Directory
from p2pllm.model.checkpoint import Checkpoint, Progress
from p2pllm.model.ends import Ends
from p2pllm.model.tokenizer import TextEnds, Tokenizer, load_tokenizer, text_ends
from p2pllm.ports import Ports
from p2pllm.types import ModelId


@dataclass(frozen=True, slots=True)
class ClientShare:
    """What a client holds of a model."""

    ends: Ends
    tokenizer: Tokenizer | None
    text: TextEnds


def load_share(checkpoint: Checkpoint, exact: bool, progress: Progress | None = None) -> ClientShare:
    """Read embeddings, final norm, head and tokenizer; blocking.

    Raises:
        CheckpointError: something is missing, misshapen or malformed; names it.
        StorageError: the disk or the download failed.
    """
    tensors = checkpoint.ends_tensors(torch.float32, progress)
    ends = Ends.load(checkpoint.config, tensors, torch.float32, exact=exact)
    return ClientShare(ends, load_tokenizer(checkpoint.source), text_ends(checkpoint.source, checkpoint.config))


@asynccontextmanager
async def unwrapped() -> AsyncIterator[None]:
    """The nurseries inside are ours, not the caller's: a single error leaves as it was raised, not as a group."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if error is group:
            raise
        raise error from None


@asynccontextmanager
async def open_client(
    ports: Ports, config: Config, directory: Directory, model: ModelId, share: ClientShare
) -> AsyncIterator[RemoteModel]:
    """A model to generate with; everything that was opened through it is closed with it."""
    remote = RemoteModel(ports, config, directory, model, share.ends, share.tokenizer, share.text.eos_ids)
    async with unwrapped(), trio.open_nursery() as nursery:
        nursery.start_soon(remote.measure)
        try:
            yield remote
        finally:
            await remote.aclose()
            nursery.cancel_scope.cancel()
