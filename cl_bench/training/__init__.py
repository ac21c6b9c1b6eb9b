"""The one training loop, its checkpoints, and what is measured beside it."""
