"""Reads a checkpoint: its config, and of its weights exactly the tensors that are asked for.

Invariants: a server that loads a span reads the bytes of that span's tensors, a client those of its ends, and besides
only the config, the index and the headers of the files concerned; ``bytes_read`` counts all of it. A tensor is read
and converted chunk by chunk, so the peak is what stays resident plus two chunks. Every error names the file, tensor or
field. Nothing is unpickled, ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from p2pllm.errors import CheckpointError
from p2pllm.model.config import ModelConfig, TensorSpec, block_tensors, ends_tensors, parse_config
from p2pllm.model.header import (
    ITEM_BYTES,
    PREFIX_BYTES,
    StoredTensor,
    header_length,
    parse_header,
    parse_index,
    parse_json,
)
from p2pllm.model.source import Source
from p2pllm.types import Span

Progress = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all) after every chunk."""

Stored = tuple[str, StoredTensor]
"""A tensor and the file that it lies in."""

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

CHUNK_BYTES = 16 << 20
"""One read: large enough for disks and downloads, small beside a large tensor; a multiple of every dtype's size."""
JSON_BYTES_MAX = 64 << 20

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class Checkpoint:
    """One model's checkpoint.

    Attributes:
        source: the files.
        raw_config: ``config.json`` as it is.
        config: the same, understood.
        bytes_read: everything that was read from ``source`` so far.

    Raises:
        CheckpointError: ``config.json`` is missing, malformed or describes an unsupported model.
        StorageError: the disk or the download failed.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.bytes_read = 0
        self._names = frozenset(source.names())
        if CONFIG not in self._names:
            raise CheckpointError(f"{source.title} is not a checkpoint: {CONFIG} is missing")
        self.raw_config: dict[str, Any] = parse_json(self._whole(CONFIG), f"{source.title}: {CONFIG}")
        self.config: ModelConfig = parse_config(self.raw_config)
        self._where: dict[str, str] | None = None
        self._headers: dict[str, dict[str, StoredTensor]] = {}

    def weight_files(self) -> tuple[str, ...]:
        """The files that hold the weights, sorted.

        Raises:
            CheckpointError: there are none, or only such that p2pllm does not read.
        """
        if SINGLE in self._names:
            return (SINGLE,)
        return tuple(sorted(set(self._shards().values())))

    def span_tensors(
        self, span: Span, dtype: torch.dtype | None = None, progress: Progress | None = None
    ) -> TensorLoader:
        """What ``SpanModel.load`` takes: tensors of the span's blocks by their names, read when asked for.

        All of them are looked up, and their shapes compared, before this returns. ``dtype`` None keeps what is stored.

        Raises:
            CheckpointError: a tensor is missing, misshapen or of an unsupported dtype, or a file is truncated.
            StorageError: the disk or the download failed.
        """
        if span.end > self.config.num_blocks:
            raise CheckpointError(f"{self.source.title} has {self.config.num_blocks} blocks, there is no span {span}")
        specs = [spec for block in span for spec in block_tensors(self.config, block).values()]
        return TensorLoader(self._read, self.find(specs), dtype, progress)

    def ends_tensors(self, dtype: torch.dtype | None = None, progress: Progress | None = None) -> TensorLoader:
        """What ``Ends.load`` takes: the client's tensors; raises as ``span_tensors`` does."""
        return TensorLoader(self._read, self.find(ends_tensors(self.config).values()), dtype, progress)

    def find(self, specs: Iterable[TensorSpec]) -> list[Stored]:
        """Where tensors lie, their shapes and dtypes checked against ``specs``; reads headers, no weights."""
        return [self._find(spec) for spec in specs]

    # ------------------------------------------------------------------------------------------ where tensors lie

    def _shards(self) -> dict[str, str]:
        """Tensor -> file, of a sharded checkpoint."""
        if self._where is None:
            if INDEX not in self._names:
                raise CheckpointError(self._no_weights())
            self._where = parse_index(self._whole(INDEX), f"{self.source.title}: {INDEX}")
        return self._where

    def _no_weights(self) -> str:
        pickled = sorted(n for n in self._names if n.endswith((".bin", ".pt", ".pth", ".ckpt")))
        if pickled:
            return (
                f"{self.source.title} has pickled weights only ({pickled[0]}), and a pickle can run any code: p2pllm "
                "reads safetensors alone. Look for a revision that has them, or convert: load the model with "
                "transformers where you trust it, and save_pretrained(folder, safe_serialization=True)"
            )
        other = sorted(n for n in self._names if n.endswith((".gguf", ".safetensors", ".h5", ".msgpack")))
        found = f" (found {other[0]}, which is not read)" if other else ""
        return f"{self.source.title} has no weights: neither {SINGLE} nor {INDEX} is there{found}"

    def _find(self, spec: TensorSpec) -> Stored:
        """In which file and where ``spec`` is stored, its shape and dtype checked."""
        if SINGLE in self._names:
            file, listing = SINGLE, SINGLE
        else:
            file, listing = self._shards().get(spec.name, ""), INDEX
        stored = self._header(file).get(spec.name) if file else None
        if stored is None:
            raise CheckpointError(f"{self.source.title}: tensor {spec.name} is missing from {file or listing}")
        if stored.shape != spec.shape:
            raise CheckpointError(
                f"{self.source.title}: tensor {spec.name} has shape {list(stored.shape)}, "
                f"but config.json implies {list(spec.shape)}"
            )
        if stored.dtype not in ITEM_BYTES:
            raise CheckpointError(
                f"{self.source.title}: tensor {spec.name} is stored as {stored.dtype}, supported are "
                f"{', '.join(ITEM_BYTES)}"
            )
        return file, stored

    def _header(self, file: str) -> dict[str, StoredTensor]:
        if file not in self._headers:
            if file not in self._names:
                raise CheckpointError(f"{self.source.title}: {file} is missing, but {INDEX} names it")
            title, size = f"{self.source.title}: {file}", self.source.size(file)
            prefix = self._read(file, 0, min(PREFIX_BYTES, size))
            length = header_length(prefix, title, size)
            table = parse_header(self._read(file, PREFIX_BYTES, PREFIX_BYTES + length), title, size)
            self._headers[file] = table
        return self._headers[file]

    # ------------------------------------------------------------------------------------------ reading

    def _read(self, name: str, start: int, stop: int) -> bytes:
        data = self.source.read(name, start, stop)
        self.bytes_read += len(data)
        return data

    def _whole(self, name: str) -> bytes:
        size = self.source.size(name)
        if size > JSON_BYTES_MAX:
            raise CheckpointError(f"{self.source.title}: {name} has {size} bytes, more than any such file needs")
        return self._read(name, 0, size)


class TensorLoader:
    """Loads one tensor at a time, by name, in chunks of bounded size.

    Attributes:
        total_bytes: what all of its tensors take in the files.
    """

    def __init__(
        self,
        read: Callable[[str, int, int], bytes],
        stored: Sequence[Stored],
        dtype: torch.dtype | None,
        progress: Progress | None,
    ) -> None:
        self._read = read
        self._stored = {tensor.name: (file, tensor) for file, tensor in stored}
        self._dtype = dtype
        self._progress = progress
        self._done_bytes = 0
        self.total_bytes = sum(tensor.stop - tensor.start for _, tensor in stored)

    def __call__(self, name: str) -> torch.Tensor:
        """The tensor ``name``, converted.

        Raises:
            CheckpointError: it is none of this loader's, or does not fit the dtype.
            StorageError: the disk or the download failed.
        """
        if name not in self._stored:
            raise CheckpointError(f"tensor {name} does not belong to what is being loaded")
        file, stored = self._stored[name]
        target = torch.empty(stored.shape, dtype=self._dtype or _DTYPES[stored.dtype])
        flat, item = target.view(-1), ITEM_BYTES[stored.dtype]
        for start in range(stored.start, stored.stop, CHUNK_BYTES):
            stop = min(start + CHUNK_BYTES, stored.stop)
            first, after = (start - stored.start) // item, (stop - stored.start) // item
            _convert(self._read(file, start, stop), stored, flat[first:after])
            self._done_bytes += stop - start
            if self._progress is not None:
                self._progress(self._done_bytes, self.total_bytes)
        return target


def _convert(data: bytes, stored: StoredTensor, place: torch.Tensor) -> None:
    """Write stored numbers into ``place``, in its dtype."""
    staging = torch.empty(len(data), dtype=torch.uint8)
    staging.numpy()[:] = np.frombuffer(data, dtype=np.uint8)
    values = staging.view(_DTYPES[stored.dtype])
    place.copy_(values)
    if place.dtype == torch.float16 and values.dtype != torch.float16 and not bool(torch.isfinite(place).all()):
        raise CheckpointError(f"tensor {stored.name} has values beyond the range of float16; use bfloat16 or float32")
