"""What is fast, against whom: `make bench`."""
