"""A machine without a compiler still gets a working distribution, and an honest one."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2] / "p2pllm_native"


@pytest.mark.real_clock
def test_a_broken_compiler_gives_a_pure_wheel(tmp_path):
    pytest.importorskip("scikit_build_core", reason="builds without isolation need the build backend")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-build-isolation", "--no-deps"]
    done = subprocess.run(
        [*pip, "--no-index", "--wheel-dir", str(tmp_path), str(PROJECT)],
        env={**os.environ, "CXX": "/bin/false", "CC": "/bin/false"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.iterdir()
    assert wheel.name.endswith("-py3-none-any.whl"), "tagged for every machine, since it holds no machine code"
    names = zipfile.ZipFile(wheel).namelist()
    assert "p2pllm_native/codec.py" in names
    assert not [name for name in names if name.endswith((".so", ".cpp", ".hpp"))]
