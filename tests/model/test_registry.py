"""Every family that a config may name has blocks."""

from __future__ import annotations

import pytest

from p2pllm.model.llama import LlamaBlock
from p2pllm.model.registry import block_class
from tests.model import zoo


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_every_family_has_blocks(name: str) -> None:
    config, _ = zoo.ours(zoo.reference(name))
    assert block_class(config.family) is LlamaBlock


def test_unknown_families_have_none() -> None:
    with pytest.raises(KeyError):
        block_class("mamba")
