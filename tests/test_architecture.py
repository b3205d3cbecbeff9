"""The layers of docs/ARCHITECTURE.md, held by import-linter; and imports that must stay light."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_imports_go_down_the_layers_only() -> None:
    """The contracts in pyproject.toml hold."""
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "module", ["p2pllm", "p2pllm.wire.session_server", "p2pllm.wire.tensor", "p2pllm.wire.frame", "p2pllm.cli.main"]
)
def test_light_modules_load_neither_torch_nor_libp2p(module: str) -> None:
    """A codec test, a protocol tool or ``--help`` never pays for torch or libp2p."""
    code = f"import sys, {module}; print(sorted({{'torch', 'libp2p', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stdout.strip() == "[]"
