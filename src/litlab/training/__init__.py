"""A training from beginning to end: fit, evaluate, loops, checkpoints, precision, guards, logs."""
