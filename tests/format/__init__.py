"""Tests of the pure room: bytes to values and back."""
