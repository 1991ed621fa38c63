"""The tests of mmwal: one folder for each room of the package, and some for what crosses rooms."""
