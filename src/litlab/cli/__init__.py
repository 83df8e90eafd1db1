"""The command line: commands, settings, help and error messages."""
