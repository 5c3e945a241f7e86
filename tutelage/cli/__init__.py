"""The command line: a thin composition root, the only code that knows all three services."""
