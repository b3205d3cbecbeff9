"""A checkpoint, opened and identified: what servers and clients start from.

Invariants: all of it runs in the storage pool; nothing is read but config, headers and what digests need.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from p2pllm.errors import UserError
from p2pllm.local.models import resolve_model
from p2pllm.model.checkpoint import Checkpoint
from p2pllm.model.digest import DigestCache, identify
from p2pllm.model.source import Files, Source
from p2pllm.ports import Storage
from p2pllm.types import ModelId

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Progress = Callable[[int, int], None]
Resolve = Callable[[], Source]


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A checkpoint and the id under which its swarm meets."""

    name: str
    checkpoint: Checkpoint
    id: ModelId


async def open_model(
    name: str, storage: Storage, cache_dir: str, *, files: Files, progress: Progress | None = None
) -> OpenedModel:
    """Resolve ``name`` (folder, hub id or ``demo``), read its config, compute its id.

    Raises:
        CheckpointError: it is no checkpoint that p2pllm understands.
        StorageError: the disk or the download failed.
    """

    def work() -> OpenedModel:
        checkpoint = Checkpoint(resolve_model(name, cache_dir, files))
        return OpenedModel(name, checkpoint, identify(checkpoint, DigestCache(files, f"{cache_dir}/digests"), progress))

    return await storage.run(work)


def pick_device(wanted: str) -> str:
    """``auto`` becomes the first CUDA device, or the CPU.

    Raises:
        UserError: there is no such device here.
    """
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        return wanted
    kind, _, index = wanted.partition(":")
    if kind != "cuda" or not (index or "0").isdigit():
        raise UserError(f"device {wanted!r}: choose auto, cpu or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise UserError(f"device {wanted!r}: this machine has {count or 'no'} CUDA device{'s' * (count != 1)}; try cpu")
    return f"cuda:{index or 0}"


def pick_dtype(wanted: str, stored: str, device: str) -> torch.dtype:
    """``auto``: as stored on a GPU; float32 on a CPU, where 16-bit products are slow and exactness is promised.

    Raises:
        UserError: there is no such dtype.
    """
    name = wanted if wanted != "auto" else ("float32" if device == "cpu" or stored not in DTYPES else stored)
    if name not in DTYPES:
        raise UserError(f"dtype {wanted!r}: choose auto, {', '.join(DTYPES)}")
    return DTYPES[name]
