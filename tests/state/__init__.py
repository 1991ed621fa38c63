"""The tests of the state room."""
