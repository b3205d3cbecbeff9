"""Whatever happens to a lab, nothing of it is left."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sim.netlab import Lab, LabError
from sim.netlab.__main__ import main
from sim.netlab.tools import NETNS, collect, folder_of, run_tool, stale_netns
from tests.sim.netlab.laboratory import needs_lab, two

ROOT = Path(__file__).parents[3]
BEGIN = """import sys, time
from sim.netlab import Lab
lab = Lab({'hosts': [{'name': 'a'}, {'name': 'b'}]}).start()
process = lab.popen('a', ['sleep', '988'])
print(process.pid, lab.fwd.pid, flush=True)
"""


def begin(end: str) -> subprocess.Popen[str]:
    """A process with a lab."""
    command = [sys.executable, "-c", BEGIN + end]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **pipes)


def test_what_tools_say_is_told() -> None:
    with pytest.raises(LabError, match="No such file"):
        run_tool(["cat", "/nowhere"])


@needs_lab
@pytest.mark.real_clock
@pytest.mark.parametrize(("how", "end"), [("exception", "1/0"), ("SIGTERM", "time.sleep(60)"), ("exit", "sys.exit(3)")])
def test_cleanup(how: str, end: str) -> None:
    with begin(end) as process:
        pids = process.stdout.readline().split()
        assert len(pids) == 2
        if how == "SIGTERM":
            assert len(list(NETNS.glob(f"nl{process.pid}x*"))) == 2
            process.send_signal(signal.SIGTERM)
        process.wait(20)
    assert not list(NETNS.glob(f"nl{process.pid}x*"))
    assert not [pid for pid in pids if Path("/proc", pid).exists()]


@needs_lab
@pytest.mark.real_clock
def test_what_a_killed_lab_leaves_is_collected() -> None:
    with begin("time.sleep(60)") as process:
        sleeper, forwarder = process.stdout.readline().split()
        process.kill()
        process.wait()
    name = f"nl{process.pid}x0-a"
    assert name in stale_netns()
    assert name in collect()
    assert name not in stale_netns()
    assert not folder_of(f"nl{process.pid}x0").exists()
    deadline = time.monotonic() + 5  # its standard input was closed
    while any(Path("/proc", pid).exists() for pid in (sleeper, forwarder)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@needs_lab
@pytest.mark.real_clock
def test_stubborn_processes_are_ended() -> None:
    with Lab(two()) as lab:
        process = lab.popen("a", "trap '' TERM; setsid sleep 987 & echo up; while :; do sleep 1; done", stdout=-1)
        with process:
            assert process.stdout.readline() == b"up\n"
            lab.close()
    assert process.returncode is not None


@needs_lab
@pytest.mark.real_clock
def test_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A lab from a file, with a command in a host; its exit code, and the counters afterwards."""
    config = tmp_path / "lab.toml"
    config.write_text('[[hosts]]\nname = "a"\n[[hosts]]\nname = "b"\ncmd = "echo from b"\n')
    assert main(["run", str(config), "--host", "a", "--", "sh", "-c", "echo $NETLAB_ADDR; exit 4"]) == 4
    out, err = capfd.readouterr()
    assert "10.0.0.1\n" in out
    assert "host=a tx_pkts=" in err
    assert "late_over_300us=" in err
    config.write_text('[[hosts]]\nnmae = "a"\n')
    assert main(["run", str(config)]) == 1
    assert "unknown key(s) nmae" in capfd.readouterr().err
    assert main(["gc"]) == 0
