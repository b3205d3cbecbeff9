"""Reads a checkpoint: its config, and of its weights exactly the tensors that are asked for.

Invariants: a server that loads a span reads the bytes of that span's tensors, a client those of its ends, and besides
only the config, the index and the headers of the files concerned; ``bytes_read`` counts all of it. Tensors that lie
side by side are read together, in bounded chunks, and converted chunk by chunk: the peak is what stays resident plus
two chunks. Every error names the file, tensor or field. Nothing is unpickled, ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
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

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

CHUNK_BYTES = 16 << 20
"""One read: large enough for disks and downloads, small beside a tensor of a large model."""
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

    def load_span(
        self, span: Span, dtype: torch.dtype | None = None, progress: Progress | None = None
    ) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """Yield (block, its tensors by the names of ``block_tensors``) for every block of ``span``, in order.

        All tensors are looked up, and their shapes compared, before the first weight is read. ``dtype`` None keeps
        what is stored.

        Raises:
            CheckpointError: a tensor is missing, misshapen or of an unsupported dtype, or a file is truncated.
            StorageError: the disk or the download failed.
        """
        if span.end > self.config.num_blocks:
            raise CheckpointError(f"{self.source.title} has {self.config.num_blocks} blocks, there is no span {span}")
        specs = {block: block_tensors(self.config, block) for block in span}
        meter = _Meter(progress, sum(self._stored_bytes(of_block.values()) for of_block in specs.values()))
        for block, of_block in specs.items():
            yield block, self._load(of_block, dtype, meter)

    def load_block(
        self, block: int, dtype: torch.dtype | None = None, progress: Progress | None = None
    ) -> dict[str, torch.Tensor]:
        """One block's tensors; see ``load_span``."""
        return dict(self.load_span(Span(block, block + 1), dtype, progress))[block]

    def load_ends(self, dtype: torch.dtype | None = None, progress: Progress | None = None) -> dict[str, torch.Tensor]:
        """The client's tensors by the names of ``ends_tensors``; raises as ``load_span`` does."""
        specs = ends_tensors(self.config)
        return self._load(specs, dtype, _Meter(progress, self._stored_bytes(specs.values())))

    def span_bytes(self, span: Span) -> int:
        """Stored bytes of a span's tensors; checks that they are there and have their shapes."""
        return sum(self._stored_bytes(block_tensors(self.config, block).values()) for block in span)

    def ends_bytes(self) -> int:
        """Stored bytes of the client's tensors; checks that they are there and have their shapes."""
        return self._stored_bytes(ends_tensors(self.config).values())

    def _stored_bytes(self, specs: Iterable[TensorSpec]) -> int:
        return sum(stored.stop - stored.start for _, stored in map(self._find, specs))

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

    def _find(self, spec: TensorSpec) -> tuple[str, StoredTensor]:
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

    def _load(
        self, specs: Mapping[str, TensorSpec], dtype: torch.dtype | None, meter: _Meter
    ) -> dict[str, torch.Tensor]:
        targets: dict[str, torch.Tensor] = {}
        pieces: dict[str, list[tuple[StoredTensor, torch.Tensor]]] = {}
        for local, spec in specs.items():
            file, stored = self._find(spec)
            targets[local] = torch.empty(spec.shape, dtype=dtype or _DTYPES[stored.dtype])
            pieces.setdefault(file, []).append((stored, targets[local].view(-1)))
        for file, found in pieces.items():
            for run in _runs(found):
                self._fill(file, run, meter)
        return targets

    def _fill(self, file: str, run: list[tuple[StoredTensor, torch.Tensor]], meter: _Meter) -> None:
        """Read tensors that lie side by side, in chunks that never cut a number in two."""
        position, end = run[0][0].start, run[-1][0].stop
        while position < end:
            cut = min(position + CHUNK_BYTES, end)
            for stored, _ in run:
                if stored.start < cut < stored.stop:
                    cut -= (cut - stored.start) % ITEM_BYTES[stored.dtype]
            chunk = np.frombuffer(self._read(file, position, cut), dtype=np.uint8)
            for stored, target in run:
                low, high = max(stored.start, position), min(stored.stop, cut)
                if low < high:
                    _copy(stored, target, low, chunk[low - position : high - position])
            meter.add(cut - position)
            position = cut


class _Meter:
    """Adds up bytes and tells the caller."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def add(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def _runs(found: list[tuple[StoredTensor, torch.Tensor]]) -> list[list[tuple[StoredTensor, torch.Tensor]]]:
    """Group tensors of one file that touch each other, in the order of the file."""
    runs: list[list[tuple[StoredTensor, torch.Tensor]]] = []
    for item in sorted(found, key=lambda pair: pair[0].start):
        if runs and runs[-1][-1][0].stop == item[0].start:
            runs[-1].append(item)
        else:
            runs.append([item])
    return runs


def _copy(stored: StoredTensor, target: torch.Tensor, at: int, data: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Put bytes that lie at ``at`` in the file into their place in ``target``, converted to its dtype."""
    item = ITEM_BYTES[stored.dtype]
    staging = torch.empty(len(data), dtype=torch.uint8)
    staging.numpy()[:] = data
    values = staging.view(_DTYPES[stored.dtype])
    first = (at - stored.start) // item
    place = target[first : first + len(values)]
    place.copy_(values)
    if target.dtype == torch.float16 and values.dtype != torch.float16 and not bool(torch.isfinite(place).all()):
        raise CheckpointError(f"tensor {stored.name} has values beyond the range of float16; use bfloat16 or float32")
