"""The tests of the checkpoint room."""
