"""The record: run directories, where they came from, and what a new run may start from. Importing it needs no torch."""
