"""Loading a checkpoint: exactly the bytes that are needed, bit for bit, and one clear line for everything wrong."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.errors import CheckpointError
from p2pllm.model import checkpoint as module
from p2pllm.model.checkpoint import Checkpoint
from p2pllm.model.config import block_tensors, ends_tensors, parse_config
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
    span = Span(1, 3)
    loaded = dict(checkpoint.load_span(span))
    assert list(loaded) == [1, 2]

    config = parse_config(TINY)
    wanted = sum(t.numel() * 4 for block in span for t in loaded[block].values())
    touched = {name for name, _, _ in source.reads if name.endswith(".safetensors")}
    small = sum(len(data) for name, data in files.items() if name.endswith(".json"))
    assert checkpoint.bytes_read == sum(stop - start for _, start, stop in source.reads)
    assert checkpoint.bytes_read == wanted + header_bytes(files, touched) + small
    assert checkpoint.bytes_read < sum(map(len, files.values()))
    assert wanted == checkpoint.span_bytes(span) == 2 * 4 * config.block_params


@LAYOUTS
@pytest.mark.parametrize("tied", [False, True])
def test_a_client_reads_its_ends_and_nothing_else(layout, tied):
    config = {**TINY, "tie_word_embeddings": tied}
    files = layout(config, weights(config))
    source = CountingSource(files)
    checkpoint = Checkpoint(source)
    ends = checkpoint.load_ends()
    assert set(ends) == {"embed", "norm"} | (set() if tied else {"head"})
    wanted = sum(t.numel() * 4 for t in ends.values())
    touched = {name for name, _, _ in source.reads if name.endswith(".safetensors")}
    small = sum(len(data) for name, data in files.items() if name.endswith(".json"))
    assert checkpoint.bytes_read == wanted + header_bytes(files, touched) + small
    assert wanted == checkpoint.ends_bytes()


@LAYOUTS
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16])
def test_weights_arrive_bit_for_bit_in_every_dtype(layout, stored, dtype, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 101)  # cuts tensors, and would cut numbers
    tensors = weights(TINY, stored)
    checkpoint = Checkpoint(CountingSource(layout(TINY, tensors)))
    for block, loaded in checkpoint.load_span(Span(0, 4), dtype):
        for local, spec in block_tensors(checkpoint.config, block).items():
            assert loaded[local].dtype == (dtype or stored)
            assert torch.equal(loaded[local], tensors[spec.name].to(dtype or stored))
    ends = checkpoint.load_ends(dtype)
    for local, spec in ends_tensors(checkpoint.config).items():
        assert torch.equal(ends[local], tensors[spec.name].to(dtype or stored))


@given(chunk=st.integers(8, 5000), block=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_any_chunk_size_reads_the_same(chunk, block):
    tensors = weights(TINY)
    checkpoint = Checkpoint(CountingSource(single(TINY, tensors)))
    before, module.CHUNK_BYTES = module.CHUNK_BYTES, chunk
    try:
        loaded = checkpoint.load_block(block)
    finally:
        module.CHUNK_BYTES = before
    for local, spec in block_tensors(checkpoint.config, block).items():
        assert torch.equal(loaded[local], tensors[spec.name])


def test_tensors_side_by_side_are_read_together():
    source = CountingSource(single(TINY, weights(TINY)))
    checkpoint = Checkpoint(source)
    checkpoint.span_bytes(Span(0, 1))
    source.reads.clear()
    checkpoint.load_block(1)
    assert len(source.reads) == 1


def test_progress_reaches_the_total():
    checkpoint = Checkpoint(CountingSource(single(TINY, weights(TINY))))
    seen: list[tuple[int, int]] = []
    list(checkpoint.load_span(Span(0, 2), torch.float32, lambda done, total: seen.append((done, total))))
    total = checkpoint.span_bytes(Span(0, 2))
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# ------------------------------------------------------------------------------------------------- what may be wrong


def load_all(files: dict[str, bytes]) -> None:
    checkpoint = Checkpoint(CountingSource(files))
    list(checkpoint.load_span(Span(0, 4)))
    checkpoint.load_ends()


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
        next(checkpoint.load_span(Span(0, 4)))
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
        list(checkpoint.load_span(Span(2, 5)))


def test_values_beyond_float16_are_refused():
    tensors = weights(TINY)
    tensors["model.norm.weight"][3] = 1e6
    checkpoint = Checkpoint(CountingSource(single(TINY, tensors)))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight.*float16"):
        checkpoint.load_ends(torch.float16)
