"""The command line: one module per command, and what their pictures share."""
