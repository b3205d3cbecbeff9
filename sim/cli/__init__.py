"""``python -m sim``: flags and printing."""
