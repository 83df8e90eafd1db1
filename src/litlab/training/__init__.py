"""Training and evaluation: fit, evaluate, loops, checkpoints, precision, guard and logging."""
