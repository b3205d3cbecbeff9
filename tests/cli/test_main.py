"""The command tree: exit codes, one-line errors, configuration files, and help that loads nothing heavy."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pllm.cli import main as cli
from p2pllm.errors import CoverageError, UserError

COMMANDS = ["demo", "bootstrap", "node", "generate", "chat", "status", "doctor", "bench"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--help of every command exits with 0 and names its flags."""
    with pytest.raises(SystemExit) as done:
        cli.parse([command, "--help"])
    assert done.value.code == 0
    assert "--cache-dir" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [
        "generate demo hi --max-new-tokens 0",
        "generate demo hi --top-p 0",
        "generate demo hi --temperature warm",
        "generate demo hi --activations int4",
        "node demo --blocks 4:2",
        "node demo --memory plenty",
        "node demo --quantize nf4",
        "node demo --swarm-key FILE",
        "demo --servers 0",
        "demo --repl 2",
        "bench backward demo",
        "frobnicate",
        "",
    ],
)
def test_a_mistake_in_the_flags_exits_with_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Out of range, unknown, abbreviated, or not built yet: exit code 2 and a line on stderr, nothing on stdout."""
    with pytest.raises(SystemExit) as done:
        cli.main(line.split())
    assert done.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert "error:" in err


def test_values_are_parsed_to_their_types() -> None:
    """Sizes, spans and numbers arrive as what the code needs."""
    flags = ["--blocks", "0:4", "--memory", "1.5GiB", "--throughput", "40", "--cache-tokens", "4096"]
    args = cli.parse(["node", "demo", *flags])
    assert (args.blocks, args.memory, args.throughput, args.cache_tokens) == ((0, 4), 1610612736, 40.0, 4096)
    assert cli.parse(["node", "demo", "--blocks", "auto"]).blocks is None


def test_a_config_file_gives_defaults_and_flags_win(tmp_path: Path) -> None:
    """Top-level keys reach every command that has them, tables only their own; the command line wins."""
    file = tmp_path / "p2pllm.toml"
    file.write_text(
        'bootstrap = ["/ip4/127.0.0.1/tcp/1/p2p/x"]\ntop-k = 7\n[generate]\nmax-new-tokens = 5\nexact = true\n'
    )
    args = cli.parse(["generate", "demo", "hi", "--config", str(file), "--top-k", "9"])
    assert args.bootstrap == ["/ip4/127.0.0.1/tcp/1/p2p/x"]
    assert (args.max_new_tokens, args.top_k, args.exact) == (5, 9, True)
    assert cli.parse(["status", "--config", str(file)]).bootstrap == ["/ip4/127.0.0.1/tcp/1/p2p/x"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[generate]\nmax-tokens = 5\n", "max-tokens"),
        ("[generate]\ntop-p = 2\n", "top-p"),
        ("[generate]\nexact = 1\n", "true or false"),
        ("[generate]\nactivations = 'int4'\n", "one of int8"),
        ("[generate]\ntop-k = [1, 2]\n", "one value"),
        ("oops", "not TOML"),
    ],
)
def test_a_mistake_in_a_config_file_is_named(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """File, key and what is allowed, in one line; exit code 2."""
    file = tmp_path / "p2pllm.toml"
    file.write_text(text)
    assert cli.main(["generate", "demo", "hi", "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert str(file) in error
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("bad\n  path"), 2),
        (CoverageError("nobody serves blocks 3-4", (3, 4)), 1),
        (ExceptionGroup("", [ExceptionGroup("", [UserError("x")]), CoverageError("y", (1,))]), 2),
        (KeyboardInterrupt(), 130),
        (BaseExceptionGroup("", [KeyboardInterrupt(), UserError("x")]), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Errors inside nurseries' groups count as what they are, each in one line."""
    assert cli._exit_code(error) == code
    assert capsys.readouterr().err.count("\n") == (0 if code == 130 else 1)


def test_a_bug_is_not_hidden() -> None:
    """An error that is not ours keeps its traceback."""
    with pytest.raises(ZeroDivisionError):
        cli._exit_code(ZeroDivisionError())
