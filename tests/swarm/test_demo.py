"""``p2pllm demo``, as a newcomer sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from p2pllm.cli import main as cli

ROOT = Path(__file__).parent.parent.parent


def test_a_demo_without_spares_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Killing the only server of some blocks is not a demonstration."""
    assert cli.main(["demo", "--replicas", "1"]) == 2
    assert "--no-kill" in capsys.readouterr().err


def test_the_demo_tells_a_story_and_checks_it(tmp_path: Path) -> None:
    """A swarm of processes survives SIGKILL in mid-sentence, says what one process says, and is gone afterwards."""
    done = subprocess.run(
        [sys.executable, "-m", "p2pllm", "demo", "--max-new-tokens", "24", "--json"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["equal"] is True
    assert result["text"].startswith(" there was a")
    assert len(result["servers"]) == 6
    assert result["killed"] in [server["peer_id"] for server in result["servers"]]
    assert 0 < result["recovery_s"] < 20
    assert result["steps_per_s"] > 0
    assert not [s for s in result["servers"] if Path(f"/proc/{s['pid']}").exists()]
