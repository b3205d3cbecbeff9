"""p2pllm.aio, p2pllm.sync and the examples against a real swarm: the same answers in three colours."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import p2pllm.aio
import p2pllm.sync
from p2pllm.errors import LocalProtocolError, UserError
from p2pllm.node.local_swarm import LOOPBACK, LocalSwarm

ROOT = Path(__file__).parent.parent.parent
IDS = torch.tensor([[0, 283, 402, 541]])


def test_sync_from_several_threads(swarm: LocalSwarm, tmp_path: Path) -> None:
    """One connection serves many threads; errors arrive where the mistake was made."""
    with p2pllm.sync.connect("demo", bootstrap=swarm.bootstrap, cache_dir=str(tmp_path), config="local") as model:
        expected = model.generate("The old owl", max_new_tokens=8).text
        found: list[object] = []
        threads = [
            threading.Thread(target=lambda: found.append(model.generate("The old owl", max_new_tokens=8).text))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [expected] * 3
        assert "".join(piece.text for piece in model.stream("The old owl", max_new_tokens=8)) == expected
        with pytest.raises(UserError, match="temprature"):
            model.generate("hi", temprature=1)
        with model.session(max_length=16) as session:
            logits = session.step(IDS)
            assert logits.shape == (1, 4, model.forward(IDS).shape[-1])
            assert session.position == 4
            assert len(session.route) == 3
            assert session.recoveries == 0
            session.position = 2
            assert torch.allclose(session.step(IDS[:, 2:]), logits[:, 2:], atol=1e-4)
            assert len(model.generate(IDS, session=session, max_new_tokens=4).new_ids[0]) == 4
            assert session.position == 7
        assert model.head(model.embed(IDS)).shape == logits.shape
    with pytest.raises(LocalProtocolError, match="closed"):
        model.generate("hi")


def test_asyncio_beside_other_tasks(swarm: LocalSwarm, tmp_path: Path) -> None:
    """asyncio's own tasks go on while a generation runs, and a cancelled task ends its call."""

    async def main() -> None:
        async with p2pllm.aio.connect(
            "demo", bootstrap=swarm.bootstrap, cache_dir=str(tmp_path), config="local"
        ) as model:
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await asyncio.sleep(0)
                    ticks += 1

            ticking = asyncio.create_task(tick())
            expected = (await model.generate("The old owl", max_new_tokens=8)).text
            assert ticks > 0
            ticking.cancel()
            assert "".join([p.text async for p in model.stream("The old owl", max_new_tokens=8)]) == expected
            endless = asyncio.create_task(model.generate("The old owl", max_new_tokens=1900, ignore_eos=True))
            await asyncio.sleep(0.2)
            endless.cancel()
            with pytest.raises(asyncio.CancelledError):
                await endless
            async with model.session(max_length=16) as session:
                await session.step(IDS)
                assert session.position == 4
            assert (await model.forward(IDS)).shape[:2] == (1, 4)

    asyncio.run(main())


def test_nodes_of_both_facades(tmp_path: Path) -> None:
    """A node from plain code and one from asyncio make a swarm of their own."""
    here = {"listen": [LOOPBACK], "config": "local"}
    plain = p2pllm.sync.Node("demo", blocks=(0, 4), cache_dir=str(tmp_path / "a"), **here)
    with plain as first:

        async def main() -> str | list[str]:
            second = p2pllm.aio.Node(
                "demo", blocks=(4, 8), bootstrap=first.addrs, cache_dir=str(tmp_path / "b"), **here
            )
            connecting = p2pllm.aio.connect(
                "demo", bootstrap=first.addrs, cache_dir=str(tmp_path / "c"), config="local"
            )
            async with second, connecting as model:
                return (await model.generate("Once upon a time", max_new_tokens=4)).text

        assert str(asyncio.run(main())).startswith(" there")


@pytest.mark.parametrize("example", ["generate", "generate_asyncio", "generate_sync"])
def test_examples_run(example: str, swarm: LocalSwarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every example does what its first lines say, and is at most 60 lines long."""
    path = ROOT / "examples" / f"{example}.py"
    assert len(path.read_text().splitlines()) <= 60
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = subprocess.run(
        [sys.executable, str(path), swarm.bootstrap[0]],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 40


def test_the_serving_example_runs(tmp_path: Path) -> None:
    """It serves, says where, and leaves on Ctrl-C."""
    import signal

    process = subprocess.Popen(
        [sys.executable, "-u", str(ROOT / "examples" / "serve.py")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path), "PATH": ""},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().startswith("blocks 4:8 as 12D3")
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "left the swarm" in out
