"""Real processes: the command line, the demo end to end, writers that are killed."""
