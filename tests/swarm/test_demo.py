"""``p2pllm demo``, as a newcomer sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_demo_tells_a_story_and_checks_it(tmp_path: Path) -> None:
    """A swarm of processes starts, generates what one process computes, and is gone afterwards."""
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
    assert result["steps_per_s"] > 0
    assert not [s for s in result["servers"] if Path(f"/proc/{s['pid']}").exists()]
