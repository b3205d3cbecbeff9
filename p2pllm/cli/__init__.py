"""The `p2pllm` command: flags and printing, no logic. Importing it loads neither torch nor libp2p."""
