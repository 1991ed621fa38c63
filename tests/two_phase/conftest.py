"""The fixtures of this room."""

from tests.two_phase.fixtures import coordinate, parties

__all__ = ["coordinate", "parties"]
