"""The training loop of all methods, evaluation, checkpoints, and optional measurements."""
