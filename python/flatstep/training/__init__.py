"""A training run: its configuration, steps, checkpoints, and what it shows."""
