"""The training loop, what an algorithm learns from, logs, and the weights that a run starts from."""
