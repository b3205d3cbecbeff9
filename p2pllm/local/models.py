"""What ``MODEL`` means on the command line and in ``connect``: a folder, a hub id, or the model that is shipped."""

from __future__ import annotations

import os
import re
from importlib.resources import files as package_files
from pathlib import Path

from p2pllm.errors import CheckpointError
from p2pllm.model.source import Files, FolderSource, Source

DEMO = "demo"
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]{1,100}))?")


def default_cache_dir() -> str:
    """``~/.cache/p2pllm``, or where ``XDG_CACHE_HOME`` says."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return str((Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "p2pllm")


def resolve_model(name: str, cache_dir: str, storage: Files) -> Source:
    """The files of a model; blocking (a hub id asks the hub which commit and files there are).

    A folder that exists goes before a hub id of the same spelling; ``owner/name@revision`` picks a revision.

    Raises:
        CheckpointError: ``name`` is none of the three.
        StorageError: the hub cannot be reached, or the disk failed.
    """
    if name == DEMO:
        return FolderSource(str(package_files("p2pllm") / "data" / DEMO), storage)
    folder = str(Path(name).expanduser()) if name else ""
    if folder and storage.names(folder):
        return FolderSource(folder, storage)
    hub_id = _HUB_ID.fullmatch(name)
    if hub_id is not None and not Path(folder).exists():
        from p2pllm.local.hub import HubSource  # its HTTP stack takes a second to load, and folders do not need it

        return HubSource(hub_id[1], storage, cache_dir, hub_id[2] or "main")
    if folder and Path(folder).is_file():
        raise CheckpointError(f"{name} is a file; give the folder that it is in")
    if folder and Path(folder).is_dir():
        raise CheckpointError(f"{name} is an empty folder, not a checkpoint")
    raise CheckpointError(f"no such model: {name!r} is neither a folder, nor a hub id (owner/name), nor {DEMO!r}")
