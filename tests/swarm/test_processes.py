"""The main job, end to end on real parts: separate processes that generate what one process computes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import torch
import trio

import p2pllm
import p2pllm.sync
from p2pllm.cli import main as cli
from p2pllm.client.portal import Portal
from p2pllm.errors import UserError
from p2pllm.local.models import resolve_model
from p2pllm.local.storage import DiskStorage
from p2pllm.model.checkpoint import Checkpoint
from p2pllm.node.local_swarm import LOOPBACK, LocalSwarm
from p2pllm.node.reference import Reference

ROOT = Path(__file__).parent.parent.parent
PROMPTS = ["Once upon a time", "The old owl", "Once upon a time there was a brave knight"]
NEW_TOKENS = 48
BORDERS = (0, 3, 5, 8)


@pytest.fixture(scope="module")
def reference() -> Reference:
    torch.set_num_threads(1)
    return Reference(Checkpoint(resolve_model("demo", "", DiskStorage())))


@pytest.fixture
def model(swarm: LocalSwarm, tmp_path: Path):
    with p2pllm.sync.connect(
        "demo", bootstrap=swarm.bootstrap, exact=True, cache_dir=str(tmp_path), threads=1, config="local"
    ) as model:
        yield model


async def bounded(wait: Callable[[], Awaitable[int]]) -> int:
    with trio.fail_after(20):
        return await wait()


def command(
    swarm: LocalSwarm, tmp_path: Path, *arguments: str, timeout_s: float = 90
) -> subprocess.CompletedProcess[str]:
    flags = ["--bootstrap", swarm.bootstrap[0], "--preset", "local", "--cache-dir", str(tmp_path), "--threads", "1"]
    return subprocess.run(
        [sys.executable, "-m", "p2pllm", *arguments, *flags],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        cwd=ROOT,
    )


@pytest.mark.parametrize("codec", ["int8", "fp32"])
def test_tokens_equal_one_process_bit_for_bit(model: p2pllm.sync.Model, reference: Reference, codec: str) -> None:
    """In exact mode a chain of processes computes what one process does, rounded at the same borders."""
    assert reference.exact
    for prompt in PROMPTS:
        result = model.generate(prompt, max_new_tokens=NEW_TOKENS, activations=codec)
        ids = model.tokenizer.encode(prompt)
        assert list(result.new_ids[0]) == reference.greedy(ids, NEW_TOKENS, BORDERS, codec)
        assert result.exact
        assert [(hop.span.start, hop.span.end) for hop in result.route] == [(0, 3), (3, 5), (5, 8)]


def test_logits_equal_one_process_bit_for_bit(model: p2pllm.sync.Model, reference: Reference) -> None:
    """Every logit of whole sequences and of a prompt cut into odd steps is the same float."""
    ids = torch.tensor([model.tokenizer.encode("Once upon a time there was a clever fox who lived in a castle")])
    expected = reference.logits(ids[0].tolist())
    assert torch.equal(model.forward(ids, activations="fp32")[0], expected)
    with model.session(max_length=64, activations="fp32") as session:
        cuts = torch.split(ids, [3, 1, ids.shape[1] - 4], dim=1)
        assert torch.equal(torch.cat([session.step(cut) for cut in cuts], 1)[0], expected)
        session.position = 2
        assert torch.equal(session.step(ids[:, 2:])[0], expected[2:])


def test_tokens_equal_transformers(model: p2pllm.sync.Model) -> None:
    """Somebody else's implementation of the same checkpoint says the same words."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(ROOT / "p2pllm" / "data" / "demo", dtype=torch.float32)
    for prompt in PROMPTS:
        ids = torch.tensor([model.tokenizer.encode(prompt)])
        out = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=1
        )
        result = model.generate(ids, max_new_tokens=NEW_TOKENS, activations="fp32")
        assert torch.equal(result.ids, out)


def test_text_streams_and_ragged_batches_agree(model: p2pllm.sync.Model) -> None:
    """Pieces make up the text; prompts of several lengths in one batch get what each gets alone."""
    alone = [model.generate(prompt, max_new_tokens=20) for prompt in PROMPTS]
    assert "".join(p.text for p in model.stream(PROMPTS[0], max_new_tokens=20)) == alone[0].text
    together = model.generate(PROMPTS, max_new_tokens=20)
    assert together.text == [result.text for result in alone]
    assert together.ids == [result.ids for result in alone]


def test_generate_command(swarm: LocalSwarm, tmp_path: Path) -> None:
    """The command prints the text, and as JSON everything that others rely on."""
    done = command(swarm, tmp_path, "generate", "demo", "Once upon a time", "--max-new-tokens", "12", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["text"].startswith(" there")
    assert len(result["new_ids"]) == 12
    assert [hop["span"] for hop in result["route"]] == [[0, 3], [3, 5], [5, 8]]
    assert {"text", "ids", "steps_per_s", "recoveries"} <= set(result)


def test_status_command(swarm: LocalSwarm, tmp_path: Path) -> None:
    """Every server is listed with its span and answers a ping; every block is covered."""
    done = command(swarm, tmp_path, "status", "demo", "--json")
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert status["coverage"] == [1] * 8
    assert sorted(server["span"] for server in status["servers"]) == [[0, 3], [3, 5], [5, 8]]
    assert all(server["state"] == "ONLINE" and server["rtt_ms"] is not None for server in status["servers"])
    assert "Every block is served" in command(swarm, tmp_path, "status", "demo").stderr


@pytest.mark.parametrize("what", ["inference", "forward"])
def test_bench_command(what: str, swarm: LocalSwarm, tmp_path: Path) -> None:
    """A measurement ends with figures."""
    done = command(swarm, tmp_path, "bench", what, "demo", "--steps", "3", "--seq-len", "16", "--batch", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens_per_s"] > 0


def test_chat_command(swarm: LocalSwarm, tmp_path: Path) -> None:
    """Two turns through a pipe; the end of the input ends the conversation."""
    flags = [
        "--bootstrap",
        swarm.bootstrap[0],
        "--preset",
        "local",
        "--cache-dir",
        str(tmp_path),
        "--max-new-tokens",
        "8",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "p2pllm", "chat", "demo", *flags],
        input="Once upon a time\nand then\n",
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("> ") == 3
    assert "there" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["generate", "nothing/", "hi"], 2),
        (["generate", "demo", "hi", "--allow-server", "not a peer", "--patience", "0"], 1),
        (["node", "demo", "--blocks", "4:99", "--listen", LOOPBACK], 2),
        (["node", "demo", "--device", "cuda:7", "--listen", LOOPBACK], 2),
        (["node", "demo", "--listen", "/ip4/nowhere"], 2),
        (["bootstrap", "--listen", "tcp:1"], 2),
    ],
)
def test_mistakes_end_in_one_line(
    arguments: list[str], code: int, swarm: LocalSwarm, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line and the right exit code, whatever the user got wrong."""
    flags = ["--bootstrap", swarm.bootstrap[0], "--preset", "local", "--cache-dir", str(tmp_path), "--threads", "1"]
    assert cli.main([*arguments, *flags]) == code
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    assert len([line for line in errors.splitlines() if line.startswith("p2pllm: ")]) == 1


def test_a_gap_is_named_and_closed_by_the_joiners_rule(portal: Portal, swarm: LocalSwarm, tmp_path: Path) -> None:
    """SIGTERM leaves the swarm politely; then the missing blocks are named; --blocks auto takes exactly them."""
    leaving = next(m for m in swarm.servers if m.span is not None and m.span.start == 3)
    leaving.process.send_signal(signal.SIGTERM)
    assert portal.call(bounded, leaving.process.wait) == 0
    swarm.members.remove(leaving)
    status = json.loads(command(swarm, tmp_path, "status", "demo", "--json").stdout)
    assert status["coverage"] == [1, 1, 1, 0, 0, 1, 1, 1]
    done = command(swarm, tmp_path, "generate", "demo", "hi", "--patience", "1")
    assert done.returncode == 1
    assert "blocks 3-4" in done.stderr

    async def join() -> list[int]:
        member = await swarm.start(
            "node", "demo", "--num-blocks", "2", "--bootstrap", swarm.bootstrap[0], "--exact", "--threads", "1"
        )
        assert member.span is not None
        return [member.span.start, member.span.end]

    assert portal.call(join) == [3, 5]
    assert command(swarm, tmp_path, "generate", "demo", "hi", "--max-new-tokens", "4").returncode == 0


def test_ctrl_c_ends_a_generation_with_130(swarm: LocalSwarm, tmp_path: Path) -> None:
    """An interrupt leaves no traceback."""
    flags = ["--bootstrap", swarm.bootstrap[0], "--preset", "local", "--cache-dir", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "p2pllm", "generate", "demo", "Once upon a time", "--max-new-tokens", "1000", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    process.stdout.read(len("Once upon a time there"))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


async def _misuse() -> None:
    async with p2pllm.connect("demo", activations="int4"):
        raise AssertionError("not reached")


@pytest.mark.real_clock
async def test_api_mistakes_are_user_errors() -> None:
    """One clear error, not a group of them."""
    with pytest.raises(UserError, match="fp16"):
        await _misuse()
