"""p2pllm.node.opening and .using: from a name to an identified checkpoint and a client's share of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from p2pllm.errors import CheckpointError, UserError
from p2pllm.local.storage import DiskStorage
from p2pllm.node.opening import open_model, pick_device, pick_dtype
from p2pllm.node.using import load_share
from sim.storage import MemoryStorage


@pytest.mark.real_clock
async def test_the_demo_model_opens_like_any_other(tmp_path: Path) -> None:
    """Its id is stable, also from the cache, and a client's share has both ends and a tokenizer."""
    storage = DiskStorage()
    first = await open_model("demo", storage, str(tmp_path), files=storage)
    again = await open_model("demo", storage, str(tmp_path), files=storage)
    assert first.id == again.id
    assert len(first.id) == 64
    assert again.checkpoint.bytes_read < first.checkpoint.config.vocab_size * 100
    share = load_share(first.checkpoint, exact=False)
    assert share.tokenizer is not None
    assert share.text.eos_ids == (1,)
    assert share.ends.embed([0, 1]).shape == (2, first.checkpoint.config.hidden_size)


async def test_no_such_model_is_the_users_mistake() -> None:
    """A name that is neither a folder nor a hub id nor demo is named."""
    storage = MemoryStorage()
    with pytest.raises(CheckpointError, match="nowhere"):
        await open_model("nowhere", storage, "cache", files=storage)


def test_devices_and_dtypes() -> None:
    """``auto`` picks what runs here; what does not exist is refused with what does."""
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") == ("cuda:0" if torch.cuda.is_available() else "cpu")
    for wrong in ("cuda:99", "tpu", "cuda:x"):
        with pytest.raises(UserError, match="device"):
            pick_device(wrong)
    assert pick_dtype("auto", "bfloat16", "cpu") == torch.float32
    assert pick_dtype("auto", "bfloat16", "cuda:0") == torch.bfloat16
    assert pick_dtype("auto", "", "cuda:0") == torch.float32
    assert pick_dtype("float16", "bfloat16", "cpu") == torch.float16
    with pytest.raises(UserError, match="float32"):
        pick_dtype("float8", "bfloat16", "cpu")
