"""Models: what a checkpoint is, the blocks that a server runs, the ends that a client runs. Torch, no network."""
