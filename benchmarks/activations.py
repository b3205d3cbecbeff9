"""What 8-bit activations change: how often the demo model's next token differs from fp32, and how many bytes travel.

Teacher-forced over stories of the grammar that it was trained on, with other seeds. The borders of 3 servers are the
usual case, every block border the worst.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from benchmarks.common import arguments, save, show
from p2pllm.local.storage import DiskStorage
from p2pllm.model.checkpoint import Checkpoint
from p2pllm.model.ends import Ends
from p2pllm.model.source import FolderSource
from p2pllm.model.span import Segment, SpanModel
from p2pllm.types import Span
from p2pllm.wire import tensor

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "p2pllm" / "data" / "demo"
STORIES_SEED = 4242
CASES = {"3 servers: borders 0 3 5 8": (0, 3, 5, 8), "every block border": tuple(range(9))}


def rounded(hidden: torch.Tensor, codec: str) -> torch.Tensor:
    """What arrives of hidden states [T, H] that travel as ``codec``."""
    return torch.from_numpy(tensor.round_trip(hidden.contiguous().numpy(), "fp32", codec))


def logits(model: SpanModel, ends: Ends, ids: list[int], borders: tuple[int, ...], codec: str) -> torch.Tensor:
    """Logits [T, vocab], with hidden states rounded at ``borders``."""
    hidden = ends.embed(ids)
    if 0 in borders:
        hidden = rounded(hidden, codec)

    def border(block: int, x: torch.Tensor) -> torch.Tensor:
        return rounded(x, codec) if block in borders else x

    hidden = model.run(hidden, [Segment(len(ids), 0, None)], border=border)
    if model.config.num_blocks in borders:
        hidden = rounded(hidden, codec)
    return ends.head(hidden)


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--stories", type=int, default=40)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "examples"))
    from demo_stories import stories

    torch.set_num_threads(1)
    checkpoint = Checkpoint(FolderSource(str(DEMO), DiskStorage()))
    config = checkpoint.config
    whole = Span(0, config.num_blocks)
    model = SpanModel.load(config, whole, checkpoint.span_tensors(whole, torch.float32))
    ends = Ends.load(config, checkpoint.ends_tensors(torch.float32))
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    texts = [tokenizer.encode(text).ids[: config.max_positions] for text in islice(stories(STORIES_SEED), args.stories)]

    rows: list[dict[str, Any]] = []
    for name, borders in CASES.items():
        for codec in ("int8", "bf16", "fp16"):
            changed, positions, noise = 0, 0, 0.0
            for ids in texts:
                truth, seen = logits(model, ends, ids, (), codec), logits(model, ends, ids, borders, codec)
                changed += int((seen.argmax(-1) != truth.argmax(-1)).sum())
                noise = max(noise, float((seen - truth).abs().max()))
                positions += len(ids)
            size = tensor.payload_size(codec, 1, config.hidden_size)
            percent = 100 * changed / positions
            rows.append(
                {
                    "case": name,
                    "codec": codec,
                    "argmax changed, %": percent,
                    "of positions": positions,
                    "largest logit change": noise,
                    "bytes/token/hop": size,
                }
            )
    sizes = {h: tensor.payload_size("int8", 1, h) / tensor.payload_size("bf16", 1, h) for h in (192, 512, 4096, 8192)}
    show(
        "Activations against fp32, demo model",
        rows,
        "int8 / bf16 bytes by hidden size: "
        + str({h: round(r, 3) for h, r in sizes.items()})
        + " (limits: < 1 % of positions, <= 0.52 at 4096)",
    )
    save(args.out, {"rows": rows, "int8_over_bf16": sizes})


if __name__ == "__main__":
    main()
