"""One module per kind of experiment, each with ``KIND``; ``sim.kinds`` names them."""
