"""The tests of the search room."""
