"""What the documentation shows runs, and what it points to exists."""
