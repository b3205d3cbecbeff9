"""The sizes that docs/fault-tolerance.md tells are those of the codecs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from p2pllm.wire.messages import plain_size

DOC = Path(__file__).parent.parent / "docs" / "fault-tolerance.md"
COLUMNS = ((3, 2048), (3, 8192), (12, 2048), (12, 8192))


@pytest.mark.parametrize("codec", ["int8", "bf16"])
@pytest.mark.parametrize(("model", "hidden"), [("Llama-2-70B", 8192), ("BLOOM-176B", 14336)])
def test_the_table_of_history_sizes(model: str, hidden: int, codec: str) -> None:
    """Bytes per token and hop, and megabytes for hops and tokens."""
    lines = DOC.read_text().splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith(f"| {model}"))
    line = lines[at if codec == "int8" else at + 1]
    assert codec in line
    cells = [int(re.sub(r"[^0-9]", "", cell)) for cell in line.split("|")[2:-1]]
    one = plain_size(codec, 1, hidden)
    assert cells == [one, *(round(one * tokens * hops / 1e6) for hops, tokens in COLUMNS)]
