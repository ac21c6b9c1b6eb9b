"""Carries out runs, from the user's options to stored results: plan, device, executors, checkpoints."""
