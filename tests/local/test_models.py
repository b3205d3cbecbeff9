"""What MODEL means: a folder, a hub id, or the model that is shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pllm.errors import CheckpointError
from p2pllm.local import models
from p2pllm.local.models import default_cache_dir, resolve_model
from p2pllm.local.storage import DiskStorage
from p2pllm.model.checkpoint import Checkpoint


def test_demo_is_loaded_as_any_folder_is():
    source = resolve_model("demo", "cache", DiskStorage())
    assert Path(source.title).is_dir()
    assert Checkpoint(source).config.num_blocks >= 8
    assert type(source) is type(resolve_model(source.title, "cache", DiskStorage()))


def test_a_folder_goes_before_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "config.json").write_text("{}")
    assert resolve_model("owner/name", "cache", DiskStorage()).names() == ("config.json",)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/owner/name", "cache", DiskStorage()).names() == ("config.json",)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "no such model"),
        ("gpt2", "no such model"),
        ("./nowhere", "no such model"),
        ("/nowhere/at/all", "no such model"),
        ("a/b/c", "no such model"),
        ("empty", "empty folder"),
        ("file.safetensors", "is a file"),
    ],
)
def test_what_is_none_of_them(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=words):
        resolve_model(name, "cache", DiskStorage())


@pytest.mark.parametrize(
    ("name", "repo", "revision"),
    [("owner/na.me-1", "owner/na.me-1", "main"), ("o/n@v1.0", "o/n", "v1.0"), ("o/n@refs/pr/1", "o/n", "refs/pr/1")],
)
def test_hub_ids(monkeypatch, name, repo, revision):
    asked = []
    monkeypatch.setattr("p2pllm.local.hub.HubSource", lambda *args: asked.append((args[0], args[2], args[3])))
    resolve_model(name, "cache", DiskStorage())
    assert asked == [(repo, "cache", revision)]


def test_the_cache_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/users/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_dir() == "/users/me/.cache/p2pllm"
    monkeypatch.setenv("XDG_CACHE_HOME", "/big/cache")
    assert models.default_cache_dir() == "/big/cache/p2pllm"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache_dir() == "/users/me/.cache/p2pllm"
