"""The forwarder: built once, its refusals told, ended with its parent."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.netlab import Lab, LabError
from sim.netlab.forwarder import build, start
from tests.sim.netlab.laboratory import needs_lab, two

pytestmark = [needs_lab, pytest.mark.real_clock]


def test_it_is_built_once() -> None:
    built = build()
    stamp = built.stat().st_mtime_ns
    assert build() == built
    assert built.stat().st_mtime_ns == stamp


def test_a_bad_configuration_is_told(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no such host: line 2"):
        start(["seed 1", "link nobody up=1"], tmp_path, tmp_path / "ctl")


def test_counters_begin_anew() -> None:
    with Lab(two()) as lab:
        lab.ctl("reset")
        total = lab.stats()["total"]
    assert total["delivered"] == 0
    assert total["late_over_300us"] == 0
