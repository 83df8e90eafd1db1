"""What watches a training. Callbacks know Lightning's hooks and the step-output contract, never a concrete model."""
