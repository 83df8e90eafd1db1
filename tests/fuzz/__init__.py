"""Random inputs for everything that reads a file or a setting. A package, so that there can be two files conftest.py."""
