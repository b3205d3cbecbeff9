"""C++ kernels of p2pllm and their pure-Python twins.

Invariants: this module imports nothing, so that ``p2pllm_native.codec`` (NumPy only) can be had without torch; every
native function has a twin that is its specification, its test and its fallback; it imports nothing of p2pllm.
"""

__version__ = "0.2.0"
