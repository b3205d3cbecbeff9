"""``python -m p2pllm``: the same as the ``p2pllm`` command."""

import sys

from p2pllm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
