"""Loading a checkpoint: exactly the bytes that are needed, bit for bit, and one clear line for everything wrong."""

from __future__ import annotations

import json
import math

import pytest
import torch

from p2pllm.errors import CheckpointError
from p2pllm.model import checkpoint as module
from p2pllm.model.checkpoint import Checkpoint
from p2pllm.model.config import ends_tensors, parse_config
from p2pllm.model.ends import Ends
from p2pllm.model.span import SpanModel
from p2pllm.types import Span
from tests.model.files import TINY, CountingSource, sharded, single, weights

LAYOUTS = pytest.mark.parametrize("layout", [single, sharded])


def header_bytes(files: dict[str, bytes], names: set[str]) -> int:
    return sum(8 + int.from_bytes(files[n][:8], "little") for n in names)


@LAYOUTS
def test_a_server_reads_its_span_and_nothing_else(layout):
    files = layout(TINY, weights(TINY))
    source = CountingSource(files)
    checkpoint = Checkpoint(source)
    loader = checkpoint.span_tensors(Span(1, 3))
    SpanModel.load(checkpoint.config, Span(1, 3), loader)

    wanted = 2 * 4 * parse_config(TINY).block_params
    touched = {name for name, _, _ in source.reads if name.endswith(".safetensors")}
    small = sum(len(data) for name, data in files.items() if name.endswith(".json"))
    assert checkpoint.bytes_read == sum(stop - start for _, start, stop in source.reads)
    assert checkpoint.bytes_read == wanted + header_bytes(files, touched) + small
    assert checkpoint.bytes_read < sum(map(len, files.values()))
    assert loader.total_bytes == wanted


@LAYOUTS
@pytest.mark.parametrize("tied", [False, True])
def test_a_client_reads_its_ends_and_nothing_else(layout, tied):
    config = {**TINY, "tie_word_embeddings": tied}
    files = layout(config, weights(config))
    source = CountingSource(files)
    checkpoint = Checkpoint(source)
    loader = checkpoint.ends_tensors()
    Ends.load(checkpoint.config, loader)
    wanted = 4 * sum(math.prod(spec.shape) for spec in ends_tensors(checkpoint.config).values())
    touched = {name for name, _, _ in source.reads if name.endswith(".safetensors")}
    small = sum(len(data) for name, data in files.items() if name.endswith(".json"))
    assert checkpoint.bytes_read == wanted + header_bytes(files, touched) + small
    assert loader.total_bytes == wanted == 4 * 16 * (32 + 1 + (0 if tied else 32))


@LAYOUTS
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16])
def test_weights_arrive_bit_for_bit_in_every_dtype(layout, stored, dtype, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 100)
    tensors = weights(TINY, stored)
    checkpoint = Checkpoint(CountingSource(layout(TINY, tensors)))
    span, ends = checkpoint.span_tensors(Span(0, 4), dtype), checkpoint.ends_tensors(dtype)
    names = {spec.name for spec in ends_tensors(checkpoint.config).values()}
    for name, tensor in tensors.items():
        loaded = (ends if name in names else span)(name)
        assert loaded.dtype == (dtype or stored)
        assert torch.equal(loaded, tensor.to(dtype or stored))


def test_a_loader_gives_its_own_tensors_only():
    loader = Checkpoint(CountingSource(single(TINY, weights(TINY)))).span_tensors(Span(1, 2))
    loader("model.layers.1.mlp.up_proj.weight")
    for name in ("model.layers.2.mlp.up_proj.weight", "model.norm.weight", "nonsense"):
        with pytest.raises(CheckpointError, match=name):
            loader(name)


def test_progress_reaches_the_total(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 100)
    checkpoint = Checkpoint(CountingSource(single(TINY, weights(TINY))))
    seen: list[tuple[int, int]] = []
    loader = checkpoint.span_tensors(Span(0, 2), progress=lambda done, total: seen.append((done, total)))
    SpanModel.load(checkpoint.config, Span(0, 2), loader)
    assert seen[-1] == (loader.total_bytes, loader.total_bytes)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


# ------------------------------------------------------------------------------------------------- what may be wrong


def load_all(files: dict[str, bytes]) -> None:
    checkpoint = Checkpoint(CountingSource(files))
    SpanModel.load(checkpoint.config, Span(0, 4), checkpoint.span_tensors(Span(0, 4)))
    Ends.load(checkpoint.config, checkpoint.ends_tensors())


def refuses(files: dict[str, bytes], *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_all(files)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@LAYOUTS
def test_a_missing_tensor_is_named(layout):
    tensors = weights(TINY)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    refuses(layout(TINY, tensors), "model.layers.2.mlp.up_proj.weight", "missing")


@LAYOUTS
def test_a_misshapen_tensor_is_named_with_both_shapes(layout):
    tensors = weights(TINY)
    tensors["model.norm.weight"] = torch.zeros(17)
    refuses(layout(TINY, tensors), "model.norm.weight", "[17]", "[16]")


@LAYOUTS
def test_an_unsupported_dtype_is_named(layout):
    tensors = weights(TINY)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].double()
    refuses(layout(TINY, tensors), "lm_head.weight", "F64", "BF16")


def test_everything_is_checked_before_the_first_weight_is_read():
    tensors = weights(TINY)
    del tensors["model.layers.3.mlp.up_proj.weight"]
    source = CountingSource(single(TINY, tensors))
    checkpoint = Checkpoint(source)
    with pytest.raises(CheckpointError):
        checkpoint.span_tensors(Span(0, 4))
    assert max(stop for name, _, stop in source.reads if name == "model.safetensors") == header_bytes(
        source.files, {"model.safetensors"}
    )


@pytest.mark.parametrize("left", [0, 5, 40, 3000, -1])
def test_a_truncated_file_is_named(left):
    files = single(TINY, weights(TINY))
    files["model.safetensors"] = files["model.safetensors"][:left]
    refuses(files, "model.safetensors", "truncated")


def test_a_file_that_is_something_else_is_named():
    files = single(TINY, weights(TINY))
    files["model.safetensors"] = b"<!DOCTYPE html><html>not found</html>" * 10
    refuses(files, "model.safetensors", "not a safetensors file")


def test_a_missing_shard_is_named():
    files = sharded(TINY, weights(TINY))
    del files["model-00002-of-00003.safetensors"]
    refuses(files, "model-00002-of-00003.safetensors", "missing")


def test_pickles_are_refused_with_a_way_out():
    files = {"config.json": json.dumps(TINY).encode(), "pytorch_model.bin": b"\x80\x02"}
    refuses(files, "pytorch_model.bin", "safetensors", "convert")


def test_no_weights_at_all():
    refuses({"config.json": json.dumps(TINY).encode()}, "no weights", "model.safetensors")
    refuses({"config.json": json.dumps(TINY).encode(), "model.Q4.gguf": b""}, "no weights", "model.Q4.gguf")


def test_no_config_and_a_broken_one():
    refuses({"model.safetensors": b""}, "config.json is missing")
    refuses({"config.json": b"{"}, "config.json", "JSON")
    refuses({"config.json": b"[1]"}, "config.json", "object")


def test_an_unsupported_architecture_is_named():
    refuses({"config.json": json.dumps({**TINY, "architectures": ["XLNetModel"]}).encode()}, "XLNetModel")


def test_a_span_beyond_the_model():
    checkpoint = Checkpoint(CountingSource(single(TINY, weights(TINY))))
    with pytest.raises(CheckpointError, match="4 blocks"):
        checkpoint.span_tensors(Span(2, 5))


def test_values_beyond_float16_are_refused():
    tensors = weights(TINY)
    tensors["model.norm.weight"][3] = 1e6
    checkpoint = Checkpoint(CountingSource(single(TINY, tensors)))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight.*float16"):
        checkpoint.ends_tensors(torch.float16)("model.norm.weight")
