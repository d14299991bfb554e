"""The training loop, learners, checkpoints, logs and initial weights."""
