"""p2pllm.node.world and p2pllm.api: the real ports open, serve a swarm in one process, and close."""

from __future__ import annotations

from pathlib import Path

import pytest

import p2pllm
from p2pllm import api
from p2pllm.config import local
from p2pllm.errors import SwarmError, UserError
from p2pllm.node.local_swarm import LOOPBACK
from p2pllm.node.world import BOOTSTRAP_ENV, WorldOptions, bootstrap_addresses, open_world


def test_bootstrap_addresses_come_from_flags_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags win over the environment."""
    monkeypatch.setenv(BOOTSTRAP_ENV, "/a /b")
    assert bootstrap_addresses([]) == ("/a", "/b")
    assert bootstrap_addresses(["/c"]) == ("/c",)


@pytest.mark.real_clock
async def test_an_unusable_cache_folder_is_named(tmp_path: Path) -> None:
    """A file where the folder should be: one clear error."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cache folder"):
        async with open_world(local(), WorldOptions(cache_dir=str(tmp_path / "file" / "x"))):
            raise AssertionError("not reached")


@pytest.mark.real_clock
async def test_a_client_that_knows_nobody_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to wait for: one line says what is missing."""
    monkeypatch.delenv(BOOTSTRAP_ENV, raising=False)
    with pytest.raises(SwarmError, match="--bootstrap"):
        async with p2pllm.connect("demo", cache_dir=str(tmp_path)):
            raise AssertionError("not reached")


@pytest.mark.real_clock
async def test_a_swarm_survives_the_loss_of_its_bootstrap_node(tmp_path: Path) -> None:
    """A client that was there once joins again through remembered members, without any bootstrap address."""
    here = {"config": "local", "listen": [LOOPBACK]}
    client = {"config": "local", "cache_dir": str(tmp_path / "client"), "threads": 1}
    async with api.open_bootstrap(cache_dir=str(tmp_path / "boot"), **here) as boot:
        addrs = boot.ports.network.addrs
        async with p2pllm.Node(
            "demo", bootstrap=addrs, cache_dir=str(tmp_path / "node"), throughput=1.0, **here
        ) as node:
            async with p2pllm.connect("demo", bootstrap=addrs, **client) as model:
                await model.generate("The old owl", max_new_tokens=4)
            assert node.peer_id in (tmp_path / "client" / "members.json").read_text()
            await boot.ports.network.aclose()
            async with p2pllm.connect("demo", **client) as model:
                again = await model.generate("The old owl", max_new_tokens=4)
    assert [hop.peer_id for hop in again.route] == [node.peer_id]
    assert node.span is not None
    assert len(node.span) == 8
