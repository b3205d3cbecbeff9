"""House rules that no linter knows: sizes, docstrings, a test file for every module, no dead modules."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(p for top in ("p2pllm", "sim", "p2pllm_native/src") for p in (ROOT / top).rglob("*.py"))
NATIVE = sorted(
    p for p in (ROOT / "p2pllm_native").rglob("*") if p.suffix in {".cpp", ".hpp"} and "build" not in p.parts
)
SCRIPTS = sorted(p for top in ("examples", "benchmarks") for p in (ROOT / top).rglob("*.py"))
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70

# Modules whose behaviour is proven by another test file than their mirror, and where.
TESTED_ELSEWHERE = {
    "p2pllm_native/src/p2pllm_native/kernels_reference.py": "tests/native/test_kernels.py",
    "p2pllm/ports.py": "tests/net/conformance.py",
    "p2pllm/api.py": "tests/node/test_world.py",
    "p2pllm/cli/bench.py": "tests/swarm/test_processes.py",
    "p2pllm/cli/bootstrap.py": "tests/swarm/test_processes.py",
    "p2pllm/cli/chat.py": "tests/swarm/test_processes.py",
    "p2pllm/cli/demo.py": "tests/swarm/test_demo.py",
    "p2pllm/cli/doctor.py": "tests/node/test_checkup.py",
    "p2pllm/cli/generate.py": "tests/swarm/test_processes.py",
    "p2pllm/cli/node.py": "tests/swarm/test_processes.py",
    "p2pllm/cli/status.py": "tests/swarm/test_processes.py",
    "p2pllm/client/backward.py": "tests/client/test_blocks.py",
    "p2pllm/client/servers.py": "tests/client/test_chain.py",
    "p2pllm/client/facade.py": "tests/swarm/test_facades.py",
    "p2pllm/node/look.py": "tests/swarm/test_processes.py",
    "p2pllm/node/measuring.py": "tests/swarm/test_processes.py",
    "sim/scene.py": "tests/sim/experiments/test_swarm.py",
    "sim/cli/everything.py": "tests/sim/test_batch.py",
    "sim/cli/explaining.py": "tests/sim/test_keys.py",
    "sim/cli/listing.py": "tests/sim/cli/test_running.py",
    "sim/cli/progress.py": "tests/sim/cli/test_running.py",
    "sim/cli/reporting.py": "tests/sim/test_batch.py",
    "sim/cli/side.py": "tests/sim/cli/test_checking.py",
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [*SOURCES, *NATIVE, *SCRIPTS], ids=name)
def test_files_are_short(path: Path) -> None:
    """A file that needs more than 400 lines is two files."""
    assert len(path.read_text().splitlines()) <= FILE_LINES_MAX


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS], ids=name)
def test_functions_are_short_and_modules_say_what_they_are(path: Path) -> None:
    """Every module opens with a docstring, and no function is longer than a screen."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{name(path)} does not say what it is"
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert not long


def test_every_module_has_a_test_file() -> None:
    """tests/ mirrors the tree: p2pllm/a/b.py is tested by tests/a/test_b.py, or a test of its package names it."""
    corpus = {p: p.read_text() for p in (ROOT / "tests").rglob("*.py")}
    missing = [f"{module}: {test}" for module, test in TESTED_ELSEWHERE.items() if not (ROOT / test).exists()]
    for path in SOURCES:
        relative = name(path)
        if path.name in {"__init__.py", "__main__.py"} or relative in TESTED_ELSEWHERE:
            continue
        module = relative.removeprefix("p2pllm_native/src/").removesuffix(".py").replace("/", ".")
        leaf = module.rsplit(".", 1)[-1]
        package = module.rsplit(".", 1)[0]
        named = re.compile(rf"\b{re.escape(module)}\b|from {re.escape(package)} import [^\n]*\b{leaf}\b")
        if not any(p.name == f"test_{leaf}.py" or named.search(text) for p, text in corpus.items()):
            missing.append(relative)
    assert not missing


def test_no_module_is_dead() -> None:
    """Every module is imported by another one, or is an entry point."""
    commands = (ROOT / "p2pllm" / "cli" / "main.py").read_text()
    everything = "\n".join(p.read_text() for p in [*SOURCES, *SCRIPTS, ROOT / "setup.cfg"])
    dead = []
    for path in SOURCES:
        if path.name in {"__init__.py", "__main__.py"}:
            continue
        if path.parent.name == "cli" and re.search(rf'command\(\s*"{path.stem}"', commands):
            continue  # imported by its command's name
        module = name(path).removeprefix("p2pllm_native/src/").removesuffix(".py").replace("/", ".")
        package, leaf = module.rsplit(".", 1)
        used = re.compile(
            rf"\b{re.escape(module)}\b|from {re.escape(package)} import (\([^)]*|[^\n]*)\b{leaf}\b"
            rf"|from \.{leaf} |from \. import [^\n]*\b{leaf}\b"
        )
        others = everything.replace(path.read_text(), "", 1)
        if not used.search(others):
            dead.append(module)
    assert not dead


def test_the_project_speaks_of_itself_alone() -> None:
    """No build folder, host name or ticket number of whoever wrote it leaks into the tree."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not files:
        pytest.skip("not a git checkout")
    words = re.compile(r"(^|[\s\"'(])/(work|home|root|farm)/|\bissue #?\d|TODO|FIXME")
    found = []
    for file in files:
        path = ROOT / file
        if path.suffix in {".safetensors", ".json", ".png"} or file == "tests/test_tidy.py" or not path.exists():
            continue
        found += [f"{file}:{i}" for i, line in enumerate(path.read_text().splitlines(), 1) if words.search(line)]
    assert not found
