"""Run directories, their provenance, and what a run can start from. Importing this package does not import torch."""
