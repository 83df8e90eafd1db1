"""The command line: commands, layers of settings, help and error messages."""
