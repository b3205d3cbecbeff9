"""The model id: equal for equal models however they are written down, different for everything else."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from p2pllm.errors import StorageError
from p2pllm.model.checkpoint import Checkpoint
from p2pllm.model.config import parse_config
from p2pllm.model.digest import DigestCache, canonical_config, identify, model_id
from p2pllm.model.source import FolderSource
from sim.storage import MemoryStorage
from tests.model.files import TINY, CountingSource, single, weights

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


def of(**changes):
    return model_id(parse_config({**TINY, **changes}), ["00"])


def test_bookkeeping_and_spelling_do_not_count():
    base = of()
    assert of(transformers_version="9.9", use_cache=False, _name_or_path="x") == base
    assert of(torch_dtype=None, dtype="bfloat16") == base
    assert of(rope_theta=10000, eos_token_id=[2, 3]) == base
    assert of(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **LLAMA3}) == of(
        rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3}
    )


def test_what_is_computed_counts():
    assert len({of(), of(rms_norm_eps=1e-6), of(rope_theta=1e6), of(attention_bias=True), of(num_hidden_layers=5)}) == 5


def test_weights_count_and_their_order():
    config = parse_config(TINY)
    assert len({model_id(config, d) for d in (["aa"], ["bb"], ["aa", "bb"], ["bb", "aa"], ["aabb"], [])}) == 6


def test_the_id_is_frozen():
    """Another version of p2pllm must find the same swarm."""
    assert json.loads(canonical_config(parse_config(TINY))) == {
        "family": "llama",
        "head_dim": 4,
        "hidden_size": 16,
        "intermediate_size": 24,
        "max_positions": 64,
        "norm_eps": 1e-05,
        "num_blocks": 4,
        "num_heads": 4,
        "num_kv_heads": 2,
        "rope": {"original_positions": 64},
        "vocab_size": 32,
        "windows": [None, None, None, None],
    }
    body = hashlib.sha256(canonical_config(parse_config(TINY))).hexdigest()
    assert of() == hashlib.sha256(f"p2pllm model 1\n{body}\n00".encode()).hexdigest()


def folder(storage):
    return Checkpoint(FolderSource("m", storage))


def test_a_fine_tune_is_another_model_and_digests_are_remembered():
    tensors = weights(TINY)
    storage = MemoryStorage({f"m/{n}": data for n, data in single(TINY, tensors).items()})
    cache = DigestCache(storage, "cache/digests")
    first = identify(folder(storage), cache)
    assert identify(folder(storage)) == first

    reads: list[str] = []
    storage.fail(lambda operation, path: reads.append(path) if operation == "read" else None)
    assert identify(folder(storage), cache) == first
    assert "m/model.safetensors" not in reads

    tensors["model.norm.weight"] = tensors["model.norm.weight"] + torch.tensor(1e-3)
    storage.write("m/model.safetensors", single(TINY, tensors)["model.safetensors"])
    assert identify(folder(storage), cache) != first


def test_known_digests_save_reading():
    files = single(TINY, weights(TINY))
    source = CountingSource(files)
    expected = identify(Checkpoint(source))
    source.digests = lambda: {"model.safetensors": hashlib.sha256(files["model.safetensors"]).hexdigest()}
    source.reads.clear()
    assert identify(Checkpoint(source)) == expected
    assert {name for name, _, _ in source.reads} == {"config.json"}


def test_a_full_disk_costs_time_only(caplog):
    storage = MemoryStorage({f"m/{n}": data for n, data in single(TINY, weights(TINY)).items()})

    def full(operation: str, path: str) -> None:
        if operation == "write":
            raise StorageError("disk full")

    storage.fail(full)
    assert identify(folder(storage), DigestCache(storage, "cache")) == identify(folder(storage))
    assert "disk full" in caplog.text


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"zz" * 32])
def test_a_damaged_memory_is_ignored(content):
    storage = MemoryStorage()
    cache = DigestCache(storage, "c")
    cache.put("stamp", "ab" * 32)
    assert cache.get("stamp") == "ab" * 32
    (path,) = storage.files
    storage.files[path] = content
    assert cache.get("stamp") is None


def test_progress_counts_what_is_hashed():
    files = single(TINY, weights(TINY))
    seen: list[tuple[int, int]] = []
    identify(Checkpoint(CountingSource(files)), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(files["model.safetensors"]),) * 2
