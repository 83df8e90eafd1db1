"""Random inputs for all code that reads a file or a setting. This is a package, so that two conftest.py can coexist."""
