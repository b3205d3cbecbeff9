"""p2pllm.node.checkup and ``p2pllm doctor``: findings that are true here, and advice where something is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pllm.cli import main as cli
from p2pllm.node import checkup


def test_findings_about_this_machine(tmp_path: Path) -> None:
    """Versions, kernels, memory and disk are found without a network."""
    findings = [*checkup.software(), *checkup.hardware(1), *checkup.disk(str(tmp_path / "not" / "yet"))]
    assert {"software", "activation codec", "processor", "memory reads", "disk"} <= {f.what for f in findings}
    assert all(f.verdict in ("good", "note") for f in findings)
    assert all(f.advice for f in findings if f.verdict == "note" and f.what != "GPU")


def test_doctor_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It says what to do when no member is known, and fails when the known ones do not answer."""
    assert cli.main(["doctor", "--json", "--cache-dir", str(tmp_path), "--threads", "1"]) == 0
    findings = {f["what"]: f for f in json.loads(capfd.readouterr().out)["findings"]}
    assert "p2pllm bootstrap" in findings["swarm"]["advice"]
    assert findings["exact mode"]["verdict"] == "good"
    nobody = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGCH6FA1u95USNutBNSaVTtM1qQGmxashPoDmHBNWHCoj"
    assert cli.main(["doctor", "--bootstrap", nobody, "--cache-dir", str(tmp_path), "--preset", "local"]) == 1
    assert "none of 1 known addresses answers" in " ".join(capfd.readouterr().out.split())
